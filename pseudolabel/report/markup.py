"""HTML for one self-contained page. Text is escaped unless it is `Html`, which only code here and
in the sections makes: what comes from data can never be markup.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

# No script, no font, no frame and no address on the page may be followed by the browser.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
# Longer values (a file name, a reject's detail) are cut; the label file holds them in full.
LONGEST = 300
_LONGEST_COMMAND = 8000
# Scripts such as Persian and Hindi spell words with these two.
_JOINERS = "\u200c\u200d"
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #565656; --line: #d5d5d5;
  --ground: #fff; --plate: #f4f5f6; --mark: #0072b2; --second: #b34700; --bad: #b00020; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --soft: #b4b4b4; --line: #474747;
  --ground: #141414; --plate: #212121; --mark: #56b4e9; --second: #e69f00; --bad: #ff7b86; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 72rem;
  color: var(--ink); background: var(--ground); }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1.2rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
h1, h2, h3, p, li, figcaption, summary, code, .words td { overflow-wrap: anywhere; }
p, ul { max-width: 46rem; }
a { color: var(--mark); }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; }
.note { color: var(--soft); font-size: .9rem; }
.bad { color: var(--bad); font-weight: 600; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; list-style: none;
  max-width: none; }
.tiles li { background: var(--plate); border-radius: .4rem; padding: .5rem .8rem;
  min-width: 8.2rem; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; }
.tiles span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .3rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; }
td, thead th { white-space: nowrap; } .words td { white-space: normal; min-width: 6rem; }
tbody th { overflow-wrap: break-word; min-width: 6rem; }
th:first-child, td:first-child, .words td, .words th { text-align: left; font-weight: 400; }
thead th, .words thead th, thead th:first-child { font-weight: 600; }
tr.chosen { background: var(--plate); font-weight: 600; }
td ul { margin: 0; padding-left: 1.1rem; }
details { margin: .4rem 0; }
summary { cursor: pointer; padding: .25rem 0; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; }
.charts figure { flex: 0 1 27rem; max-width: 100%; }
figure { margin: 0; }
figcaption { font-size: .85rem; color: var(--soft); line-height: 1.35; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.masks { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.6rem, 1fr));
  gap: .9rem; margin: .6rem 0; }
.masks img { display: block; max-width: 100%; height: 11.5rem; object-fit: contain;
  background: var(--plate); width: 100%; }
.masks .none { height: 11.5rem; background: var(--plate); padding: .5rem; font-size: .85rem; }
.key { display: inline-block; width: 1.6em; height: .7em; border-radius: 2px; }
@media (max-width: 30rem) { .masks { grid-template-columns: 1fr 1fr; gap: .7rem; }
  .masks img, .masks .none { height: 9.5rem; } th, td { padding-right: .6rem; } }
pre { background: var(--plate); padding: .6rem .8rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 11pt; } nav { display: none; }
  figure, tr, .tiles li { break-inside: avoid; } h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; }
  details::details-content { content-visibility: visible; display: block; height: auto; } }
"""


class Html(str):
    """Text that is markup already."""


def escape(value: object, longest: int = LONGEST) -> Html:
    """A value as text of the page, cut at so many characters; `Html` stays as it is.

    Control and direction characters, which can hide or reorder what follows them, become "�";
    so do lone surrogates, which no UTF-8 file can hold.
    """
    if isinstance(value, Html):
        return value
    text = str(value)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    text = "".join(" " if c in "\n\r\t" else c if _harmless(c) else "�" for c in text)
    return Html(html.escape(text))


def _harmless(character: str) -> bool:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs")
    return not hidden or character in _JOINERS


def join(parts: Iterable[str], separator: str = "") -> Html:
    """Parts in a row, each escaped unless it is `Html`."""
    return Html(separator.join(escape(part) for part in parts))


def paragraph(*parts: str, kind: str = "") -> Html:
    """A paragraph; `kind` is a class of the style sheet: "note" or "bad"."""
    attribute = f' class="{kind}"' if kind else ""
    return Html(f"<p{attribute}>{join(parts)}</p>")


def section(title: str, *parts: str) -> Html:
    """A section with a heading that the page's contents link to."""
    return Html(
        f'<section><h2 id="{anchor(title)}">{escape(title)}</h2>\n{join(parts, chr(10))}</section>'
    )


def anchor(title: str) -> str:
    """The `id` of a section: letters, digits and hyphens alone."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    caption: str = "",
    *,
    words: bool = False,
    chosen: int | None = None,
) -> Html:
    """A table that scrolls sideways by itself where the screen is narrow.

    Args:
        header: column titles.
        rows: cells, the first of each row being its title.
        caption: what the table shows.
        words: whether columns hold words (left) or numbers (right).
        chosen: position of a row to mark.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = []
    for number, row in enumerate(rows):
        first, *others = row
        cells = f'<th scope="row">{escape(first)}</th>'
        cells += "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body.append(f'<tr class="chosen">{cells}</tr>' if number == chosen else f"<tr>{cells}</tr>")
    kind = ' class="words"' if words else ""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    label = escape(caption or " / ".join(header))
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table{kind}>{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def bullets(items: Iterable[str]) -> Html:
    """A list."""
    return Html("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")


def tiles(facts: Iterable[tuple[str, str]]) -> Html:
    """(number, what it counts) side by side."""
    parts = (f"<li><b>{escape(n)}</b><span>{escape(name)}</span></li>" for n, name in facts)
    return Html(f'<ul class="tiles">{"".join(parts)}</ul>')


def details(summary: str, *parts: str, opened: bool = False) -> Html:
    """A part that opens by a click, without a script."""
    state = " open" if opened else ""
    return Html(f"<details{state}><summary>{escape(summary)}</summary>{join(parts)}</details>")


def code(text: str) -> Html:
    """A block of commands or hashes."""
    lines = "\n".join(escape(line, _LONGEST_COMMAND) for line in str(text).splitlines())
    return Html(f"<pre><code>{lines}</code></pre>")


def page(title: str, lead: Iterable[str], sections: Iterable[tuple[str, Html]]) -> str:
    """The document.

    Args:
        title: of the window and the first heading.
        lead: what stands above the contents.
        sections: (title, parts); a section without parts is left out.
    """
    shown = [(name, body) for name, body in sections if body]
    links = "".join(f'<li><a href="#{anchor(name)}">{escape(name)}</a></li>' for name, _ in shown)
    body = "\n".join(section(name, parts) for name, parts in shown)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>\n"
        f"<h1>{escape(title)}</h1>\n{join(lead)}\n</header>\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{body}\n</main>\n'
        "</body>\n</html>\n"
    )
