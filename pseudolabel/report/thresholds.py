"""Sweeps of thresholds against human masks: which records to keep, where to cut a mask."""

from pathlib import Path

from pseudolabel.checks import is_integer, is_number
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
    steps, chosen = data.get("thresholds"), data.get("chosen")
    sizes = data.get("by_size", {})
    if not isinstance(sizes, dict) or not _is_curve(data, steps, chosen is None):
        raise _no_sweep(path)
    for name, part in sizes.items():
        if not isinstance(part, dict) or not _is_curve(part, steps):
            raise _no_sweep(path, f"by_size {name}")
    ious = data["mIoU"]
    low, high = min(ious), max(ious)
    margin = 0.1 * (high - low) or 0.05
    caption = _choice("All", data, steps)
    picture = lines(
        [Line("mIoU", sorted(zip(steps, ious)))],
        Axis("threshold on the mask's probability", min(steps), max(steps)),
        Axis("mIoU", low - margin, high + margin),
        caption,
        mark=-1 if chosen is None else chosen,
    )
    parts = [
        Html("<h3>Where to cut the mask</h3>"),
        Html(f'<div class="charts">{figure(picture, caption)}</div>'),
    ]
    if sizes:
        parts.append(paragraph(" ".join(_choice(name, row, steps) for name, row in sizes.items())))
        columns = [data, *sizes.values()]
        rows = [[f"{steps[k]:g}", *(number(c["mIoU"][k]) for c in columns)] for k in _order(steps)]
        header = ["probability above", "all", *sizes]
        parts.append(details("mIoU by size of the box", table(header, rows)))
    return join(parts)


def _is_curve(part: dict, steps: object, no_choice: bool = False) -> bool:
    """Whether an entry has one mIoU per threshold, all of them in [0, 1], and states the choice."""
    ious = part.get("mIoU")
    return (
        isinstance(steps, list)
        and isinstance(ious, list)
        and 0 < len(steps) == len(ious)
        and all(map(_is_share, [*steps, *ious]))
        and (no_choice or _is_share(part.get("chosen")))
    )


def _is_share(value: object) -> bool:
    return is_number(value) and 0 <= value <= 1


def _no_sweep(path: str | Path, record: str | None = None) -> DataError:
    return DataError(
        path,
        "is no sweep",
        'write {"thresholds": [...], "mIoU": [...], "chosen": x} with lists of equal length '
        "and numbers in [0, 1], or give --config-file and --weights to make it",
        record,
    )


def _order(steps: list[float]) -> list[int]:
    return sorted(range(len(steps)), key=steps.__getitem__)


def _choice(name: str, part: dict, steps: list[float]) -> str:
    best = max(_order(steps), key=part["mIoU"].__getitem__)
    count = f" ({part['instances']:,} boxes)" if is_integer(part.get("instances")) else ""
    chosen = "one for each size" if part.get("chosen") is None else f"{part['chosen']:g}"
    found = f"the best mIoU is {part['mIoU'][best]:.3f}, at {steps[best]:g}"
    return f"{name}{count}: chosen {chosen}; {found}."
