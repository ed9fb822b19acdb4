"""The sections of a report, each from the label file's arrays to markup."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pseudolabel.masks import SIZE_BINS, size_bin_index
from pseudolabel.report.charts import Axis, Line, bars, lines
from pseudolabel.report.label_file import Account, LabelFile
from pseudolabel.report.markup import (
    Html,
    bullets,
    code,
    details,
    join,
    paragraph,
    table,
    tiles,
)
from pseudolabel.report.statistics import Reliability, reliability

HISTOGRAM_BINS = 20
# Rows of the tables by class and by reason; the rest is counted.
CLASS_ROWS = 100
REASON_ROWS = 40
_SIZES = {"small": "small, below 32²", "medium": "medium, below 96²", "large": "large, 96² or more"}


@dataclass
class Report:
    """What the sections are made of.

    Attributes:
        labels: N records.
        ious: float64 (N,), NaN where there is no human mask; None without human masks.
        truth_name: file of the human masks.
    """

    labels: LabelFile
    ious: np.ndarray | None = None
    truth_name: str = ""

    @property
    def both(self) -> np.ndarray:
        """bool (N,): records with a quality and a human mask."""
        return ~np.isnan(self.ious) & ~np.isnan(self.labels.quality)

    @property
    def unseen(self) -> np.ndarray:
        """bool (N,): those of `both` on images that the quality was not calibrated on."""
        return self.both & ~self.labels.fitted


def number(value: float | None, digits: int = 3) -> str:
    """A number of a table; "–" where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}".replace("-", "−")


def mean(values: np.ndarray) -> float:
    """Over the numbers among the values; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def lead(report: Report) -> list[Html]:
    """Above the contents: what this is, and the numbers that one asks for first."""
    labels = report.labels
    manifest = labels.manifest or {}
    made = manifest.get("labeler", {})
    name = made.get("name") if isinstance(made, dict) else None
    by = f"the labeler “{name}”" if name else "an unnamed labeler"
    source = f" for {manifest['input']}" if manifest.get("input") else ""
    facts = [(f"{len(labels.annotations):,}", "records with a mask")]
    if labels.rejects is not None:
        facts.append((f"{labels.rejects.reasons.total():,}", "rejected, with a reason"))
    facts.append((f"{len(labels.images):,}", "images"))
    facts.append((number(mean(labels.quality)), "mean quality (estimated IoU)"))
    if report.ious is not None:
        facts.append((number(mean(report.ious)), "mean IoU with human masks"))
    return [
        paragraph(
            f"Instance masks that {by} drew{source}: how many, how good they seem, and where to "
            "look first."
        ),
        tiles(facts),
        *_warnings(labels),
    ]


def _warnings(labels: LabelFile) -> list[Html]:
    notes = []
    if labels.manifest is None:
        notes.append(
            paragraph(
                "There is no manifest beside the label file: how many boxes went in, with which "
                "labeler, weights and versions is unknown.",
                kind="bad",
            )
        )
    if labels.rejects is None:
        notes.append(
            paragraph(
                "There is no list of rejects beside the label file: what was left out is unknown.",
                kind="bad",
            )
        )
    account = labels.account()
    if account is not None and not account.fits:
        notes.append(paragraph("The account does not add up: see Accounts.", kind="bad"))
    return notes


def accounts(report: Report) -> Html:
    """Boxes in = records + rejects, states of images, sources of masks."""
    labels = report.labels
    account = labels.account()
    if account is None:
        count = len(labels.annotations)
        text = paragraph(f"{count:,} records; without manifest and rejects there is no account.")
    else:
        text = _equation(account)
    states = Counter(str(image.get("status", "not stated")) for image in labels.images.values())
    return join(
        [
            text,
            _shares("image status", states, "Images by status"),
            _shares("mask_source", Counter(labels.sources), "Records by where the mask comes from"),
            paragraph(
                "model: drawn by the labeler. filled_tiny: box too small for it, filled. "
                "filled_empty: it found nothing, box filled. input: the mask came with the box, as "
                "that of a crowd.",
                kind="note",
            ),
        ]
    )


def _equation(account: Account) -> Html:
    kept = "records" if account.unit == "boxes" else "images labelled or empty"
    total = account.kept + account.rejected
    sum_of = f"{account.kept:,} {kept} + {account.rejected:,} rejects = {total:,}"
    if account.fits:
        return paragraph(f"{sum_of} = {account.unit} in. Nothing is lost.")
    return paragraph(
        f"{sum_of} ≠ {account.stated:,} {account.unit} in, as the manifest says. Label file, "
        "rejects and manifest may come from different runs.",
        kind="bad",
    )


def _shares(title: str, counts: Counter, caption: str) -> Html:
    total = counts.total()
    rows = [
        [name, f"{n:,}", f"{100 * n / total:.1f} %"] for name, n in counts.most_common(REASON_ROWS)
    ]
    return table([title, "number", "share"], rows, caption)


def rejects(report: Report) -> Html:
    """Rejects by reason, the first of each in full."""
    found = report.labels.rejects
    if found is None:
        return Html("")
    if not found.reasons:
        return paragraph("None.")
    parts = [_shares("reason", found.reasons, "Boxes without a mask, by reason")]
    for reason, count in found.reasons.most_common(REASON_ROWS):
        examples = found.examples[reason]
        rows = [
            [
                row.get("id", "–"),
                row.get("image_id", "–"),
                _box(row.get("bbox")),
                row.get("detail", ""),
            ]
            for row in examples
        ]
        shown = table(["annotation", "image", "bbox", "detail"], rows, words=True)
        parts.append(details(f"{reason}: the first {len(examples)} of {count:,}", shown))
    return join(parts)


def _box(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def quality(report: Report) -> Html:
    """Histogram; with human masks also reliability and ranks."""
    labels = report.labels
    known = labels.quality[~np.isnan(labels.quality)]
    missing = len(labels.quality) - len(known)
    parts = [
        paragraph(
            "Quality is the labeler's own estimate of the IoU of its mask with the true one. ",
            f"{missing:,} records (crowds among them) state none." if missing else "",
        )
    ]
    if not len(known):
        return join(parts)
    counts = np.histogram(known, HISTOGRAM_BINS, (0, 1))[0].tolist()
    quartiles = [float(q) for q in np.quantile(known, (0.25, 0.5, 0.75))]
    low, middle, high = quartiles
    text = (
        f"{len(known):,} records with {len(np.unique(known)):,} different values; quartiles "
        f"{low:.2f}, {middle:.2f} and {high:.2f}."
    )
    charts = [figure(bars(counts, Axis("quality", 0, 1), "records", text), text)]
    if report.ious is not None and report.both.any():
        left_out = int((report.both & labels.fitted).sum())
        if left_out:
            parts.append(_left_out(left_out, bool(report.unseen.any())))
        if report.unseen.any():
            compared = (labels.quality, report.ious, labels.box_area)
            fit = reliability(*(values[report.unseen] for values in compared))
            charts.append(_reliability_figure(fit))
            parts.append(_ranks(report, fit))
    return join([*parts, Html(f'<div class="charts">{join(charts)}</div>')])


def _left_out(count: int, others: bool) -> Html:
    rest = "left out of the comparison" if others else "not compared, and no others have one"
    return paragraph(
        f"{count:,} records with a human mask lie on images that the quality was calibrated on, as "
        f"the manifest says; they would flatter it. They are {rest}.",
        kind="note",
    )


def figure(picture: Html, caption: str) -> Html:
    """A chart with what it says."""
    return Html(f"<figure>{picture}<figcaption>{join([caption])}</figcaption></figure>")


def _reliability_figure(fit: Reliability) -> Html:
    most = max(n for n, _, _ in fit.bins)
    dots = Line(
        "",
        [(estimate, true) for _, estimate, true in fit.bins],
        sizes=[3 + 6 * (n / most) ** 0.5 for n, _, _ in fit.bins],
    )
    words = "; ".join(f"{q:.2f}: {true:.2f} ({n:,} records)" for n, q, true in fit.bins)
    picture = lines(
        [dots],
        Axis("mean quality of the bin", 0, 1),
        Axis("mean true IoU", 0, 1),
        f"True IoU by quality. {words}",
        diagonal=True,
    )
    caption = (
        "Each dot is a tenth of the scale, its size the number of records. On the dotted line "
        "quality is right; below it masks are worse than they claim."
    )
    return figure(picture, caption)


def _ranks(report: Report, fit: Reliability) -> Html:
    flat = "no rank: it does not vary"
    rows = [
        [
            "Spearman, quality with true IoU",
            number(fit.spearman) if fit.spearman is not None else flat,
        ],
        [
            "Spearman, box area with true IoU (what costs nothing)",
            number(fit.spearman_area) if fit.spearman_area is not None else flat,
        ],
        ["expected calibration error of quality, ten bins", number(fit.error)],
        ["mean quality minus mean IoU (above 0: too sure)", number(fit.excess)],
        ["records compared", f"{int(report.unseen.sum()):,}"],
    ]
    return table(["against human masks", "value"], rows, f"Human masks: {report.truth_name}")


def sizes(report: Report) -> Html:
    """Quality and true IoU by size of the box."""
    labels = report.labels
    bins = size_bin_index(labels.box_area)
    groups = [(_SIZES[name], (bins == i) & ~labels.crowd) for i, name in enumerate(SIZE_BINS)]
    return _groups("box area, px²", groups, report, "Crowds are left out.")


def classes(report: Report) -> Html:
    """Quality and true IoU by class, the most frequent first."""
    labels = report.labels
    objects = ~labels.crowd
    found, counts = np.unique(labels.categories[objects], return_counts=True)
    ranked = [int(c) for _, c in sorted(zip(-counts, found))]
    groups = [(labels.name(c), (labels.categories == c) & objects) for c in ranked[:CLASS_ROWS]]
    more = len(ranked) - CLASS_ROWS
    caption = f"{len(ranked)} of {len(labels.names)} classes have records. Crowds are left out."
    if more > 0:
        caption += f" The {more} rarest of them are not listed."
    shown = _groups("class", groups, report, caption)
    return shown if len(groups) <= 12 else details(f"{len(groups)} classes", shown)


def _groups(
    title: str, groups: Iterable[tuple[str, np.ndarray]], report: Report, caption: str
) -> Html:
    rows = []
    for name, inside in groups:
        row = [name, f"{int(inside.sum()):,}", number(mean(report.labels.quality[inside]))]
        if report.ious is not None:
            ious = report.ious[inside]
            row += [number(mean(ious)), f"{int((~np.isnan(ious)).sum()):,}"]
        rows.append(row)
    header = [title, "records", "mean quality"]
    header += [] if report.ious is None else ["mIoU", "compared"]
    return table(header, rows, caption)


def provenance(report: Report, command: str | None) -> Html:
    """Commands, hashes and versions."""
    labels = report.labels
    manifest = labels.manifest or {}
    commands = [text for text in (manifest.get("command"), command) if text]
    parts = [code("\n".join(map(str, commands)))] if commands else []
    if not commands:
        parts.append(paragraph("No command was given (--command).", kind="note"))
    marks = {True: "as in the manifest", False: "differs from the manifest", None: "not compared"}
    rows = [[key, value, marks[same]] for key, (value, same) in labels.hashes().items()]
    if any(same is False for _, same in labels.hashes().values()):
        parts.append(
            paragraph("A file is not the one that the manifest was written for.", kind="bad")
        )
    parts.append(table(["file", "SHA-256", "check"], rows, words=True))
    if manifest:
        facts = [[name, _flat(value)] for name, value in manifest.items() if name != "counts"]
        parts.append(details("Manifest", table(["key", "value"], facts, words=True), opened=True))
    return join(parts)


def _flat(value: Any) -> Html:
    if isinstance(value, dict):
        return bullets(f"{key}: {json.dumps(part)}" for key, part in value.items())
    return join([value if isinstance(value, str) else json.dumps(value)])
