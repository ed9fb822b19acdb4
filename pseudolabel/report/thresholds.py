"""Sweeps of thresholds against human masks: which records to keep, where to cut a mask."""

from pathlib import Path

from pseudolabel.checks import is_number
from pseudolabel.errors import DataError
from pseudolabel.files import read_json
from pseudolabel.report.charts import Axis, Line, lines
from pseudolabel.report.markup import Html, details, join, paragraph, table
from pseudolabel.report.sections import Report, figure, number
from pseudolabel.report.statistics import GOOD_IOU, quality_sweep


def thresholds(report: Report, sweep_file: str | Path | None) -> Html:
    """Sweeps of the threshold on quality and, from a file, of that on the mask's probability."""
    parts = []
    if report.ious is not None and report.both.any():
        parts += _quality_sweep(report)
    if sweep_file is not None:
        parts.append(_mask_sweep(sweep_file))
    return join(parts)


def _quality_sweep(report: Report) -> list[Html]:
    chosen_from, ious = report.labels.quality[report.both], report.ious[report.both]
    rows, best = quality_sweep(chosen_from, ious)
    cells = [
        [
            f"{row.threshold:.2f}",
            f"{row.kept:,}",
            f"{100 * row.share:.1f} %",
            number(row.iou),
            number(row.agreement),
        ]
        for row in rows
    ]
    chosen = rows[best]
    kept = Line("share kept", [(row.threshold, row.share) for row in rows])
    gained = Line(
        "mIoU of the kept", [(r.threshold, r.iou) for r in rows if r.iou == r.iou], style=1
    )
    caption = (
        f"Chosen: quality of at least {chosen.threshold:.2f} keeps {100 * chosen.share:.1f} % with "
        f"mIoU {number(chosen.iou)}."
    )
    picture = lines(
        [kept, gained],
        Axis("threshold on quality", 0, 1),
        Axis("share, IoU", 0, 1),
        caption,
        mark=chosen.threshold,
    )
    header = ["keep quality ≥", "kept", "share", "mIoU of the kept", "F1"]
    note = (
        f"The chosen row has the best F1 between “kept” and “IoU with the human mask of at least "
        f"{GOOD_IOU}”. Choose on training images: a threshold that was chosen on the images of a "
        "table flatters the table."
    )
    return [
        Html("<h3>Which records to keep</h3>"),
        Html(f'<div class="charts">{figure(picture, caption)}</div>'),
        paragraph(note, kind="note"),
        details("All thresholds", table(header, cells, chosen=best)),
    ]


def _mask_sweep(path: str | Path) -> Html:
    data = read_json(path)
    steps, ious, chosen = (data.get(key) for key in ("thresholds", "mIoU", "chosen"))
    sound = isinstance(steps, list) and isinstance(ious, list) and is_number(chosen)
    if (
        not sound
        or not steps
        or len(steps) != len(ious)
        or not all(map(is_number, [*steps, *ious]))
    ):
        raise DataError(
            path,
            "is no sweep",
            'write {"thresholds": [...], "mIoU": [...], "chosen": x} with lists of equal length',
        )
    points = sorted(zip(steps, ious))
    low, high = min(ious), max(ious)
    margin = 0.1 * (high - low) or 0.05
    best = max(points, key=lambda point: point[1])[0]
    caption = f"Chosen: {chosen:g}. The best mIoU is {high:.3f}, at {best:g}."
    picture = lines(
        [Line("mIoU", points)],
        Axis("threshold on the mask's probability", points[0][0], points[-1][0]),
        Axis("mIoU", low - margin, high + margin),
        caption,
        mark=chosen,
    )
    return Html(
        '<h3>Where to cut the mask</h3><div class="charts">' + figure(picture, caption) + "</div>"
    )
