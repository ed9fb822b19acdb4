"""How much of this build's text also stands in upstream Detectron2.

    python detectron2_lite/conformance/independence.py --upstream DIR

Names, signatures, config keys and numbers coincide by design; bodies, comments and docstrings
should not. So every 8 consecutive tokens of a body (8 words of a comment or docstring) are looked
up among all that upstream has, in any file and at any place. Only the text of this build is ever
printed.

What is left out of the bodies: imports, headers of functions and classes with their decorators
and defaults, assignments to `__all__` and to `_C` (config defaults), and literals that hold
nothing but four or more constants and names. Of what remains, `source_text.Kind` says which
8-grams are reported apart, because the interface leaves no choice.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import record
from source_text import Kind, Piece, Segment, body_segments, prose_segments, whole_file

GRAM = 8
LONG_RUN = 20
UPSTREAM_FOLDERS = ("detectron2", "projects/PointRend", "projects/DeepLab")


@dataclass(frozen=True)
class Run:
    """Consecutive tokens (or words) of ours, of which every 8 occur upstream."""

    file: str
    first_line: int
    last_line: int
    length: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.first_line}-{self.last_line}  {self.length}  {self.text}"


@dataclass
class Measure:
    """Counts over one sort of text. `apart` counts the grams that the interface dictates."""

    grams: int = 0
    shared: int = 0
    apart: dict[str, int] = field(default_factory=dict)
    apart_shared: dict[str, int] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of the grams that occur upstream, those set apart included."""
        total = self.grams + sum(self.apart.values())
        return (self.shared + sum(self.apart_shared.values())) / total if total else 0.0

    @property
    def own_share(self) -> float:
        """The same without the grams set apart."""
        return self.shared / self.grams if self.grams else 0.0

    def summary(self) -> dict[str, object]:
        """The numbers for docs/conformance.json."""
        return {
            "grams": self.grams + sum(self.apart.values()),
            "share": round(self.share, 5),
            "share_without_apart": round(self.own_share, 5),
            "apart": dict(sorted(self.apart.items())),
            "longest_run": max((run.length for run in self.runs), default=0),
            "long_runs": sum(run.length >= LONG_RUN for run in self.runs),
        }


def grams_of(pieces: list[Piece]) -> Iterator[tuple[str, ...]]:
    """All windows of GRAM consecutive texts."""
    texts = [piece.text for piece in pieces]
    return (tuple(texts[i : i + GRAM]) for i in range(len(texts) - GRAM + 1))


def kind_of(window: list[Piece]) -> Kind:
    """What one window is made of: own text as soon as a piece of it is."""
    kinds = {piece.kind for piece in window} - {Kind.MARK}
    named = {piece.text for piece in window if piece.kind is not Kind.MARK}
    if kinds and Kind.OWN not in kinds:
        return min(kinds, key=lambda kind: kind.value)
    return Kind.OWN if len(named) >= 3 else Kind.MARK


def compare(segments: Iterable[tuple[str, Segment]], known: set[tuple[str, ...]]) -> Measure:
    """Look every window of our segments up among upstream's.

    Args:
        segments: (file, pieces) of ours. known: upstream's grams.

    Returns:
        The counts; runs are sorted by length, and hold at least one gram that is not set apart.
    """
    measure = Measure()
    for file, pieces in segments:
        hits = []
        for index, gram in enumerate(grams_of(pieces)):
            kind = kind_of(pieces[index : index + GRAM])
            hit = gram in known
            if kind is Kind.OWN:
                measure.grams += 1
                measure.shared += hit
            else:
                name = kind.value
                measure.apart[name] = measure.apart.get(name, 0) + 1
                measure.apart_shared[name] = measure.apart_shared.get(name, 0) + hit
            hits.append((hit, kind))
        measure.runs.extend(_runs(file, pieces, hits))
    measure.runs.sort(key=lambda run: (-run.length, run.file, run.first_line))
    return measure


def _runs(file: str, pieces: list[Piece], hits: list[tuple[bool, Kind]]) -> Iterator[Run]:
    start = None
    for index, (hit, _) in enumerate([*hits, (False, Kind.MARK)]):
        if hit and start is None:
            start = index
        elif not hit and start is not None:
            if any(kind is Kind.OWN for _, kind in hits[start:index]):
                inside = pieces[start : index + GRAM - 1]
                text = " ".join(piece.text for piece in inside)
                yield Run(file, inside[0].line, inside[-1].line, len(inside), text)
            start = None


def python_files(root: Path, folders: Iterable[str] = ("",)) -> list[Path]:
    """Every .py file below the folders of `root`, sorted; a folder that is missing is skipped."""
    return sorted({path for folder in folders for path in (root / folder).rglob("*.py")})


def measure_trees(
    ours: Path,
    upstream: Path,
    folders: Iterable[str] = UPSTREAM_FOLDERS,
    baselines: Iterable[Path] = (),
) -> dict[str, Measure]:
    """Compare source trees.

    Args:
        ours: the package to measure. upstream: checkout, of which `folders` count.
        baselines: packages without a counterpart upstream, to see what coincides by chance.

    Returns:
        "bodies" in tokens, "prose" (comments and docstrings) in words, and the bodies of each
        baseline as "baseline: name".

    Raises:
        SystemExit: one of the trees has no Python file.
    """
    their_files = python_files(upstream, folders)
    sources = {root: _sources(root) for root in (ours, *baselines)}
    for root, files in ((upstream, their_files), *sources.items()):
        if not files:
            raise SystemExit(f"{root}: no Python files; is this the right folder?")
    known_tokens: set[tuple[str, ...]] = set()
    known_words: set[tuple[str, ...]] = set()
    for path in their_files:
        source = path.read_text(encoding="utf-8")
        known_tokens.update(grams_of(whole_file(source)))
        for block in prose_segments(source):
            known_words.update(grams_of(block))

    def measure(root: Path, split: Callable[[str], list[Segment]], known: set) -> Measure:
        parts = ((name, part) for name, text in sources[root].items() for part in split(text))
        return compare(parts, known)

    measures = {
        "bodies": measure(ours, body_segments, known_tokens),
        "prose": measure(ours, prose_segments, known_words),
    }
    for root in baselines:
        measures[f"baseline: {root.name}"] = measure(root, body_segments, known_tokens)
    return measures


def _sources(root: Path) -> dict[str, str]:
    files = python_files(root)
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in files}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, required=True, help="checkout of upstream")
    default = Path(__file__).resolve().parents[1] / "detectron2"
    parser.add_argument("--ours", type=Path, default=default, help="package to measure")
    parser.add_argument("--baseline", type=Path, nargs="*", default=[], help="other packages")
    parser.add_argument("--show", type=int, default=10, help="how many runs to print")
    parser.add_argument("--runs", type=Path, help="write all runs to this file")
    parser.add_argument("--record", action="store_true", help="write docs/conformance.*")
    args = parser.parse_args(arguments)
    measures = measure_trees(args.ours, args.upstream, baselines=args.baseline)
    lines = []
    for name, measure in measures.items():
        lines.append(
            f"{name}: {measure.own_share:.2%} of {measure.grams} 8-grams also stand upstream "
            f"({measure.share:.2%} with the {sum(measure.apart.values())} counted apart)"
        )
        if not name.startswith("baseline"):
            lines.extend(f"  {run}" for run in measure.runs[: args.show])
    sys.stdout.write("\n".join(lines) + "\n")
    if args.runs:
        every = [f"{name} {run}\n" for name, measure in measures.items() for run in measure.runs]
        args.runs.write_text("".join(every), encoding="utf-8")
    if args.record:
        figures = {name: measure.summary() for name, measure in measures.items()}
        record.write_independence(args.upstream.resolve(), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
