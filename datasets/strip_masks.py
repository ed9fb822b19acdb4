"""Write a boxes-only copy of a COCO or LVIS JSON, to train and label without any mask.

    python datasets/strip_masks.py INPUT.json OUTPUT.json

`segmentation` goes, `area` becomes the box's, because a mask's area tells of the mask. Everything
else stays as it is, in its order, keys unknown to us included.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any


class StripError(ValueError):
    """The input cannot be stripped; the message names file, annotation and remedy."""


def strip_masks(data: dict[str, Any], source: str) -> dict[str, Any]:
    """Copy a COCO/LVIS dictionary without its masks; the input is left alone.

    Args:
        source: name of the file, for errors.

    Raises:
        StripError: no list of annotations, or an annotation without a usable box.
    """
    records = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(records, list):
        raise StripError(
            f"{source}: no list of annotations; give an instances file of COCO or LVIS"
        )
    return {**data, "annotations": [_boxes_only(record, source) for record in records]}


def _boxes_only(record: dict[str, Any], source: str) -> dict[str, Any]:
    box = record.get("bbox")
    if not _is_box(box):
        raise StripError(
            f"{source}: annotation {record.get('id')} has bbox {box!r}, not four finite numbers "
            "x, y, width, height with width and height >= 0; add its box or remove the annotation"
        )
    kept = {key: value for key, value in record.items() if key != "segmentation"}
    return {**kept, "area": box[2] * box[3]}


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in box):
        return False
    return all(map(math.isfinite, box)) and box[2] >= 0 and box[3] >= 0


def write_atomically(data: dict[str, Any], target: Path) -> None:
    """Write JSON so that `target` is the old file or the whole new one, never a part."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(data, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    try:
        data = json.loads(options.input.read_text(encoding="utf-8"))
        stripped = strip_masks(data, str(options.input))
    except json.JSONDecodeError as error:
        parser.exit(1, f"{options.input}: not JSON ({error}); fetch or export the file anew\n")
    except (OSError, StripError) as error:
        parser.exit(1, f"{error}\n")
    write_atomically(stripped, options.output)
    masks = sum("segmentation" in record for record in data["annotations"])
    print(
        f"{options.output}: {len(stripped['annotations'])} boxes on {len(data.get('images', []))} "
        f"images; {masks} masks removed"
    )


if __name__ == "__main__":
    main()
