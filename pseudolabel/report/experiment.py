"""The tables of `docs/results/*.json`: masks against yardsticks, detectors and their retention."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pseudolabel.errors import DataError
from pseudolabel.files import read_json
from pseudolabel.masks import SIZE_BINS
from pseudolabel.report.markup import Html, code, join, paragraph, table

KIND = "boxes_to_masks"
_AP = ("segm/AP", "segm/AP50", "segm/AP75", "bbox/AP")
_HEADER = ("trained on", "mask AP", "AP50", "AP75", "box AP (control)", "retention")


def results_section(paths: Sequence[str | Path]) -> Html:
    """AP, retention and label quality of recorded experiments.

    Raises:
        DataError: a file is no recorded experiment.
    """
    return join(_experiment(path) for path in paths)


def _experiment(path: str | Path) -> Html:
    result = read_json(path)
    if result.get("kind") != KIND:
        raise DataError(
            path, f"is of kind {result.get('kind')!r:.40}, not {KIND!r}", "give docs/results/*.json"
        )
    try:
        return _tables(result)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(
            path, f"lacks or garbles {error!s:.80}", "record it again with benchmarks/"
        ) from error


def _tables(result: dict[str, Any]) -> Html:
    arms = sorted(result["arms"].items(), key=lambda item: item[0] != "human")
    retention = result["retention"] or {}
    rows = [
        [name, *(_cell(arm.get(key), 1) for key in _AP), _share(name, retention)]
        for name, arm in arms
    ]
    quality = [
        [name, *(_cell(values.get(key), 3) for key in ("mIoU", *SIZE_BINS)), values["n"]]
        for name, values in result["labels"].items()
    ]
    parts = [
        Html(f"<h3>{join([result['name']])}</h3>"),
        table(_HEADER, rows, "Stock Mask R-CNN on human masks of val, in points of AP")
        if rows
        else "",
        paragraph(str(retention["note"]), kind="note") if retention.get("note") else "",
        table(
            ("labels", "mIoU", *SIZE_BINS, "instances"),
            quality,
            "Masks drawn from true boxes, IoU with human masks, by size of the box",
        ),
        paragraph(
            f"Seed {result['seed']}, {result['date']}. Retention is mask AP with pseudo-labels "
            "over mask AP with human masks.",
            kind="note",
        ),
        code(result["command"]),
    ]
    return join(part for part in parts if part)


def _cell(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _share(arm: str, retention: dict[str, Any]) -> str:
    if arm == "human":
        return "100 %"
    percent = retention.get("percent")
    return "–" if arm != "mal" or percent is None else f"{percent:.1f} %"
