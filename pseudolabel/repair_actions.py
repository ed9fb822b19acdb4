"""What a repair does about one defect of one record: a new record and what changed, or None.

None means that nothing in the file says what the record should be; the repair then drops it.
"""

import json
from collections.abc import Callable
from typing import Any

from pseudolabel.checks import is_box, is_integer, is_number, quote
from pseudolabel.defects import Defect
from pseudolabel.masks import (
    SegmentationError,
    clip_box,
    parse_segmentation,
    whole_rle,
    xywh_to_xyxy,
)
from pseudolabel.validation_masks import measure

# Characters of a number in quotes that is read as one.
LONGEST_NUMBER = 32

# The new record with an account of the change.
Outcome = tuple[dict[str, Any], str] | None
Action = Callable[[dict[str, Any], Defect, dict[str, Any]], Outcome]


def mend(entry: Any, defect: Defect, around: dict[str, Any]) -> Outcome:
    """Mends one defect of a record.

    Args:
        entry: the record; left alone.
        around: what the record alone does not tell: "fresh_id", an annotation id that is free;
            "size", (H, W) of the image; "categories", the known ids.
    """
    action = _ACTIONS.get(defect.kind)
    return action(entry, defect, around) if action and isinstance(entry, dict) else None


def _without(entry: dict, key: str, why: str) -> Outcome:
    return {k: v for k, v in entry.items() if k != key}, why


def _remove_key(entry: dict, defect: Defect, around: dict) -> Outcome:
    return _without(entry, defect.key, f"{defect.problem}; removed {quote(defect.key)}")


def _new_id(entry: dict, defect: Defect, around: dict) -> Outcome:
    """Nothing in the file refers to the id of an annotation, so that any free one will do."""
    if defect.key != "id" or not defect.place or defect.place[0] != "annotations":
        return None
    fresh = around["fresh_id"]()
    return {**entry, "id": fresh}, f"{defect.problem}; given the id {fresh}"


def _crowd_flag(entry: dict, defect: Defect, around: dict) -> Outcome:
    value = entry["iscrowd"]
    if value is None:
        return {**entry, "iscrowd": 0}, "iscrowd null -> 0"
    if value in (0, 1, "0", "1"):
        return {**entry, "iscrowd": int(value)}, f"iscrowd {quote(value)} -> {int(value)}"
    return None


def _weight(entry: dict, defect: Defect, around: dict) -> Outcome:
    """A number in quotes is one; any other is left to the reader's default, which is said."""
    value = entry["weight"]
    number = None
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        try:
            number = json.loads(value)
        except ValueError:
            number = None
    if is_number(number) and number >= 0:
        return {**entry, "weight": number}, f"weight {quote(value)} -> {number}"
    return _without(entry, "weight", f"{defect.problem}; removed, so that it weighs 1")


def _drop_points(entry: dict, defect: Defect, around: dict) -> Outcome:
    """Rings of one or two points enclose nothing; the mask is the same without them."""
    rings = entry["segmentation"]
    kept = [ring for ring in rings if not isinstance(ring, list | tuple) or len(ring) >= 6]
    if not kept:
        return None
    why = f"removed {len(rings) - len(kept)} of {len(rings)} rings, with less than three points"
    return {**entry, "segmentation": kept}, why


def _whole_runs(entry: dict, defect: Defect, around: dict) -> Outcome:
    code = whole_rle(entry["segmentation"])
    return {**entry, "segmentation": code}, "numbers of the run-length code written as whole ones"


def _clip(entry: dict, defect: Defect, around: dict) -> Outcome:
    if around["size"] is None:
        return None
    x0, y0, x1, y1 = clip_box(xywh_to_xyxy(entry["bbox"]), *around["size"]).tolist()
    box = [x0, y0, x1 - x0, y1 - y0]
    return {**entry, "bbox": box}, f"clipped bbox {entry['bbox']} -> {box}"


def _area(entry: dict, defect: Defect, around: dict) -> Outcome:
    """The area of the mask; without any that of the box, as boxes-only files have it."""
    area, source = None, "box"
    if entry.get("segmentation"):
        try:
            area, source = measure(parse_segmentation(entry["segmentation"]))[0], "mask"
        except SegmentationError:
            return None
    elif is_box(entry.get("bbox")):
        area = entry["bbox"][2] * entry["bbox"][3]
    if area is None:
        return None
    return {**entry, "area": area}, f"{defect.problem}; set to {area:g}, that of its {source}"


def _listed_categories(entry: dict, defect: Defect, around: dict) -> Outcome:
    value = entry[defect.key]
    if not isinstance(value, list):
        return _remove_key(entry, defect, around)
    kept = [key for key in value if is_integer(key) and key in around["categories"]]
    why = f"{defect.problem}; removed {len(value) - len(kept)} ids from it"
    return {**entry, defect.key: kept}, why


_ACTIONS: dict[str, Action] = {
    "missing_key": _new_id,
    "id_malformed": _new_id,
    "string_id": _new_id,
    "duplicate_annotation_id": _new_id,
    "not_finite": _remove_key,
    "score_range": _remove_key,
    "segmentation_empty": _remove_key,
    "iscrowd": _crowd_flag,
    "iscrowd_null": _crowd_flag,
    "rle_float": _whole_runs,
    "polygon_short": _drop_points,
    "box_partly_outside": _clip,
    "area_malformed": _area,
    "area_differs": _area,
    "area_missing": _area,
    "weight_malformed": _weight,
    "unknown_listed_category": _listed_categories,
}
MENDED = frozenset(_ACTIONS)
