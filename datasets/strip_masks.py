"""Write a boxes-only copy of a COCO or LVIS JSON, to train and label without any mask.

    python datasets/strip_masks.py INPUT.json OUTPUT.json

`segmentation` goes, `area` becomes the box's, because a mask's area tells of the mask. Everything
else stays as it is, in its order, keys unknown to us included.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pseudolabel.errors import DataError
from pseudolabel.files import failure_line, read_json, refuse_overwrite, write_json
from pseudolabel.store import is_box


def strip_masks(data: dict[str, Any], source: str) -> dict[str, Any]:
    """Copy a COCO/LVIS dictionary without its masks; the input is left alone.

    Args:
        source: name of the file, for errors.

    Raises:
        DataError: no list of annotations, or an annotation without a usable box.
    """
    records = data.get("annotations")
    if not isinstance(records, list):
        raise DataError(source, "no list of annotations", "give an instances file of COCO or LVIS")
    return {**data, "annotations": [_boxes_only(record, source) for record in records]}


def _boxes_only(record: dict[str, Any], source: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        problem = f"an annotation is {record!r:.80}, no JSON object"
        raise DataError(source, problem, "remove it")
    box = record.get("bbox")
    if not is_box(box) or min(box[2:]) < 0:
        raise DataError(
            source,
            f"bbox is {box!r:.200}, not four finite numbers x, y, width, height with width and "
            "height >= 0",
            "add its box or remove the annotation",
            f"annotation {record.get('id')}",
        )
    kept = {key: value for key, value in record.items() if key != "segmentation"}
    return {**kept, "area": box[2] * box[3]}


def main() -> int:
    """Writes the copy. Returns 0; 1 with one clear error line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    try:
        refuse_overwrite(options.input, options.output)
        data = read_json(options.input)
        stripped = strip_masks(data, str(options.input))
        write_json(options.output, stripped)
    except (DataError, OSError) as error:
        print(failure_line(error, options.output), file=sys.stderr)
        return 1
    except ValueError:
        print(
            f"{options.input}: NaN or infinity outside the boxes is no JSON. Remedy: replace it.",
            file=sys.stderr,
        )
        return 1
    masks = sum("segmentation" in record for record in data["annotations"])
    print(
        f"{options.output}: {len(stripped['annotations'])} boxes on {len(data.get('images', []))} "
        f"images; {masks} masks removed"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
