"""Training curves from Detectron2's `metrics.json`: one JSON object a line."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pseudolabel.checks import is_integer, is_number
from pseudolabel.errors import DataError
from pseudolabel.report.charts import LINES, Axis, Line, lines
from pseudolabel.report.markup import Html, details, join, paragraph, table

# The smoothed line looks back over so large a part of the curve: short ones stay as they are.
MEMORY = 1 / 20
POINTS = 300
CHARTS = 12
# Of a class or a size bin, say; they would hide the few curves that people ask for.
MOST_KEYS = 60
# An axis takes differences and squares of what it shows, which must be floats too.
LARGEST = 1e100


@dataclass
class Run:
    """The curves of one file.

    Attributes:
        name: folder and file.
        curves: {key: [(iteration, value)]} by iteration; a line written again after a resume wins.
        skipped: values that are not finite, or beyond `LARGEST`.
        cut: whether the last line was broken off, as a kill leaves it.
    """

    name: str
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    skipped: int = 0
    cut: bool = False


def read_run(path: str | Path) -> Run:
    """Reads one `metrics.json`.

    Raises:
        DataError: the file is missing, a line but the last is no JSON object, or there is no line.
    """
    path = Path(path)
    try:
        rows = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error})", "check the path") from error
    run, found = Run("/".join(path.parts[-2:])), {}
    for number, text in enumerate(rows, 1):
        row = _row(text)
        if row is None and number == len(rows) and number > 1:
            run.cut = True
        elif row is None:
            raise DataError(
                path,
                "is no JSON object with an iteration",
                "give Detectron2's metrics.json",
                f"line {number}",
            )
        else:
            _collect(row, found, run)
    if not found:
        raise DataError(path, "has no curve", "give the metrics.json of a training run")
    run.curves = {key: sorted(points.items()) for key, points in found.items()}
    return run


def _row(text: str) -> dict | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(row, dict) and is_integer(row.get("iteration"))
    return row if sound and abs(row["iteration"]) <= LARGEST else None


def _collect(row: dict, found: dict[str, dict[int, float]], run: Run) -> None:
    for key, value in row.items():
        if key == "iteration" or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if is_number(value) and abs(value) <= LARGEST:
            found.setdefault(key, {})[row["iteration"]] = float(value)
        else:
            run.skipped += 1


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential moving average whose memory is a twentieth of the curve.

    The first values are averaged evenly: a plain average would hang on the first one for long.
    A curve of up to 20 values stays as it is.
    """
    weight = min(1.0, 1 / (MEMORY * len(points)))
    result, mean = [], 0.0
    for number, (iteration, value) in enumerate(points, 1):
        mean += (value - mean) * max(weight, 1 / number)
        result.append((iteration, mean))
    return result


def training_section(paths: Sequence[str | Path]) -> Html:
    """Charts of losses and of evaluation results, and a table of where each curve ended."""
    if not paths:
        return Html("")
    runs = [read_run(path) for path in paths]
    keys = list(dict.fromkeys(key for run in runs for key in run.curves))
    losses = sorted((k for k in keys if "loss" in k), key=lambda k: (k != "total_loss", k))
    scores = sorted(k for k in keys if k.endswith(("/mIoU", "segm/AP", "bbox/AP")))
    groups = [([key], True) for key in losses]
    groups += [([k for k in scores if k.endswith(end)], False) for end in ("/mIoU", "/AP")]
    shown = [group for group in groups if group[0]][:CHARTS]
    charts = [_chart(chart_keys, smooth, runs) for chart_keys, smooth in shown]
    rest = len([group for group in groups if group[0]]) - len(shown)
    words = [
        "Losses: pale as logged, strong their moving average over a twentieth of the run. "
        "Iterations on a logarithmic axis, because most of a loss falls early.",
        f" {rest} more losses are in the table." if rest else "",
    ]
    notes = [_note(run) for run in runs]
    ends = details("Where every curve ended", _table(keys, runs))
    return join(
        [
            paragraph(*words, kind="note"),
            *notes,
            Html(f'<div class="charts">{join(charts)}</div>'),
            ends,
        ]
    )


def _note(run: Run) -> Html:
    left_out = f"{run.skipped} values that are not finite, or beyond {LARGEST:g}, were left out"
    facts = [left_out] if run.skipped else []
    facts += ["its last line is cut off, as a kill leaves it"] if run.cut else []
    return paragraph(f"{run.name}: {'; '.join(facts)}.", kind="bad") if facts else Html("")


def _chart(keys: list[str], smooth: bool, runs: list[Run]) -> Html:
    found = [(key, run) for key in keys for run in runs if key in run.curves][: len(LINES)]
    series, values, places = [], [], []
    for style, (key, run) in enumerate(found):
        points = run.curves[key]
        name = _name(key, run, len(keys) > 1, len(runs) > 1)
        strong = smoothed(points) if smooth else points
        if strong != points:
            series.append(Line("", _thin(points), style, faint=True))
        series.append(Line(name, _thin(strong), style))
        values += [value for _, value in points]
        places += [iteration for iteration, _ in points]
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    x = Axis("iteration", max(1, min(places)), max(1, *places) if places else 1, log=True)
    title = keys[0] if len(keys) == 1 else keys[0].rpartition("/")[2]
    y = Axis(title, max(0.0, low - margin) if low >= 0 else low - margin, high + margin)
    ends = "; ".join(f"{run.name} {key} ends at {run.curves[key][-1][1]:.4g}" for key, run in found)
    picture = lines(series, x, y, f"{title} by iteration: {ends}")
    caption = f"{title} ends at {_ends(found, len(keys) > 1, len(runs) > 1)}"
    return Html(f"<figure>{picture}<figcaption>{join([caption])}</figcaption></figure>")


def _name(key: str, run: Run, keys: bool, runs: bool) -> str:
    """What tells a curve from the others of its chart; "" where it is alone."""
    return " ".join([key] * keys + [run.name] * runs)


def _ends(found: list[tuple[str, Run]], keys: bool, runs: bool) -> str:
    named = [(_name(key, run, keys, runs), run.curves[key][-1][1]) for key, run in found]
    return ", ".join(f"{value:.3g} ({name})" if name else f"{value:.3g}" for name, value in named)


def _thin(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` of them, first and last kept; spread evenly over the log of iterations."""
    if len(points) <= POINTS:
        return list(points)
    wanted, last = [], len(points) - 1
    for step in range(POINTS):
        wanted.append(round(math.expm1(math.log1p(last) * step / (POINTS - 1))))
    return [points[place] for place in sorted({*wanted, 0, last})]


def _table(keys: list[str], runs: list[Run]) -> Html:
    rows = []
    for key in keys[:MOST_KEYS]:
        for run in runs:
            if key in run.curves:
                points = run.curves[key]
                values = [value for _, value in points]
                numbers = (values[0], min(values), max(values), values[-1])
                rows.append([key, run.name, points[-1][0], *(f"{v:.4g}" for v in numbers)])
    more = len(keys) - MOST_KEYS
    caption = f"The first {MOST_KEYS} keys; {more} more are in the files." if more > 0 else ""
    return table(["key", "run", "last iteration", "first", "least", "most", "last"], rows, caption)
