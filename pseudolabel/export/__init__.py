"""Writers of other formats from the pseudo-label file, by name; see `docs/formats.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pseudolabel.errors import DataError
from pseudolabel.export.coco import export_label_tool, export_polygons
from pseudolabel.export.source import ExportReport, Labels
from pseudolabel.export.voc import export_voc
from pseudolabel.export.yolo import export_yolo
from pseudolabel.files import refuse_overwrite

FORMATS: dict[str, Callable[[Labels, str | Path], ExportReport]] = {
    "coco-polygons": export_polygons,
    "yolo-seg": export_yolo,
    "voc-png": export_voc,
    "label-tool": export_label_tool,
}


def export_labels(path: str | Path, name: str, output: str | Path) -> ExportReport:
    """Writes a label file in another format.

    Args:
        path: the labels.
        name: a key of `FORMATS`.
        output: file (`coco-polygons`, `label-tool`) or folder to write; must not exist, or be an
            empty folder.

    Raises:
        DataError: bad labels, an unknown format, or an output that exists; nothing is written.
        OSError: the output cannot be written; nothing of it stays.
    """
    if name not in FORMATS:
        raise DataError(name, "is no known format", f"choose one of {', '.join(FORMATS)}")
    if not Path(output).is_dir():
        refuse_overwrite(path, output)
    return FORMATS[name](Labels(path), output)
