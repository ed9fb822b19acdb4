"""What a sound id, number, box and file name is: the one place that every reader asks."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

_STRICT = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
# The longest quote of a broken value in a message, characters.
QUOTED = 80
# A box may stick out by rounding.
BORDER = 1.0
DRIVE = re.compile("[A-Za-z]:")
# What `box_fault` finds, as the label job counts it; it labels the part of a box in the image.
_REJECTS = {
    "box_malformed": "box_malformed",
    "box_not_finite": "box_malformed",
    "box_negative": "box_degenerate",
    "box_zero": "box_degenerate",
    "box_outside": "box_outside",
    "box_huge": "box_huge",
}


def is_integer(value: object) -> bool:
    """Whether a value is a whole number; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a finite number that fits a float; a boolean is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def strict_json(value: object) -> str:
    """Compact JSON.

    Raises:
        ValueError: NaN or infinity in it, which are not JSON.
    """
    return _STRICT.encode(value)


def is_finite(value: object) -> bool:
    """Whether a value is free of NaN and infinity, however deep."""
    if isinstance(value, str | int | None):
        return True
    if isinstance(value, float):
        return math.isfinite(value)
    try:
        strict_json(value)
    except (ValueError, RecursionError):
        # What is nested too deep cannot be written, either.
        return False
    return True


def not_finite_key(entry: Mapping[str, Any], skip: Iterable[str] = ()) -> str | None:
    """The first key of a record, but those in `skip`, whose value holds NaN or infinity."""
    for key, value in entry.items():
        if key not in skip and not is_finite(value):
            return key
    return None


def is_box(value: object) -> bool:
    """Whether a value is a COCO box: a list x, y, width, height whose far corner and area are
    finite numbers too. Booleans are no numbers here; negative sides are for the caller to judge.
    """
    return _box_form(value) is None


def _box_form(value: object) -> str | None:
    if not isinstance(value, list) or len(value) != 4:
        return "box_malformed"
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in value):
        return "box_malformed"
    try:
        x, y, w, h = map(float, value)
    except OverflowError:
        return "box_not_finite"
    finite = all(map(math.isfinite, (x, y, x + w, y + h, w * h)))
    return None if finite else "box_not_finite"


def box_fault(box: object, height: int | None = None, width: int | None = None) -> str | None:
    """What is wrong with a COCO box, the gravest first; None where it is sound.

    Args:
        box: what stands at `bbox`: x, y, width, height in pixels.
        height, width: of the image; None leaves the place of the box unjudged.

    Returns:
        "box_malformed", "box_not_finite", "box_negative", "box_zero", "box_outside" (shares no
        area with the image), "box_huge" (leaves the image by more than the image's own size), or
        "box_partly_outside" (by more than a pixel).
    """
    form = _box_form(box)
    if form is not None:
        return form
    x, y, w, h = box
    if w < 0 or h < 0:
        return "box_negative"
    if w == 0 or h == 0:
        return "box_zero"
    if height is None or width is None:
        return None
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box_outside"
    left, top, right, bottom = -x, -y, x + w - width, y + h - height
    if max(left, right) > width or max(top, bottom) > height:
        return "box_huge"
    return "box_partly_outside" if max(left, top, right, bottom) > BORDER else None


def box_problem(annotation: dict, height: int, width: int) -> str | None:
    """Why a box is not labelled: "box_malformed", "box_degenerate", "box_outside", "box_huge" (no
    loader would take it), or None.
    """
    return _REJECTS.get(box_fault(annotation.get("bbox"), height, width))


def image_name(image: Mapping[str, Any]) -> str | None:
    """`file_name` of an image entry; where it has none (LVIS v1), the last part of its `coco_url`.

    Returns:
        None where the entry names no file at all.
    """
    name, url = image.get("file_name"), image.get("coco_url")
    if name is None and isinstance(url, str):
        try:
            name = PurePosixPath(urlsplit(url).path).name
        except ValueError:
            # No address, such as "http://[".
            return None
    return name if isinstance(name, str) and name else None


def is_safe_name(file_name: str) -> bool:
    """Whether a `file_name` stays below its image folder: relative, without `..` or a drive."""
    path = PurePosixPath(file_name.replace("\\", "/"))
    unsafe = not path.parts or path.is_absolute() or ".." in path.parts
    # A drive is one letter; "12:30:00.png" is a name like any other.
    return not unsafe and "\0" not in file_name and not DRIVE.match(path.parts[0])


def quote(value: object) -> str:
    """A broken value as it stands, shortened."""
    if isinstance(value, list | dict | str) and len(value) > QUOTED:
        # The text of all of it may be as long as the file.
        value = value[:QUOTED] if not isinstance(value, dict) else {"": f"{len(value)} keys"}
    try:
        return f"{value!r:.{QUOTED}}"
    except (ValueError, RecursionError):
        return "a value too large to print"
