"""Validation of label files: what is wrong with a COCO or LVIS JSON, record by record.

Nothing here draws a mask, imports Detectron2 or allocates memory by a number that a file states.
"""

import codecs
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pseudolabel.checks import is_integer, not_finite_key, quote
from pseudolabel.defects import ERROR, FILE, Defect, make_defect
from pseudolabel.files import read_json
from pseudolabel.validation_images import check_images
from pseudolabel.validation_masks import check_mask
from pseudolabel.validation_records import (
    Known,
    check_annotation,
    check_categories,
    subjects,
)
from pseudolabel.validation_records import (
    check_images as check_image_entries,
)

__all__ = [
    "TOLERATED",
    "Defect",
    "check_images",
    "check_labels",
    "iterate_defects",
    "load_labels",
    "read_checked",
    "refuse_first",
]

LISTS = ("images", "categories", "annotations")
# COCO's own files hold a few boxes without area; Detectron2 leaves those out by itself.
TOLERATED = frozenset({"box_zero"})


def check_labels(data: object, *, need_size: bool = True) -> list[Defect]:
    """Everything that is wrong with a parsed label file, the images apart.

    Args:
        data: what `json` has read, whatever it is.
        need_size: whether an image without `height` and `width` is a defect.

    Returns:
        Defects in the order categories, images, annotations; empty for a sound file.
    """
    return list(iterate_defects(data, need_size=need_size))


def iterate_defects(
    data: object, *, need_size: bool = True, masks: bool = True, plausibility: bool = True
) -> Iterator[Defect]:
    """`check_labels`, one by one.

    Args:
        masks: whether to look at `segmentation`.
        plausibility: whether to compare box and area with the mask.
    """
    if not isinstance(data, dict):
        problem = f"holds a {type(data).__name__}, not a JSON object"
        yield make_defect("not_an_object", FILE, problem)
        return
    for key in LISTS:
        if not isinstance(data.get(key), list):
            yield make_defect("missing_list", FILE, f"has no list {key!r}", key=key)
    key = not_finite_key(data, LISTS)
    if key is not None:
        yield make_defect("not_finite", FILE, f"{quote(key)} holds NaN or infinity", key=key)
    lists = {key: data[key] if isinstance(data.get(key), list) else [] for key in LISTS}
    known = Known()
    yield from check_categories(lists["categories"], known)
    yield from check_image_entries(lists["images"], known, need_size)
    seen: set[Any] = set()
    for subject, wrong in subjects("annotations", lists["annotations"]):
        yield from wrong
        if wrong:
            continue
        yield from check_annotation(subject, known, seen)
        if masks:
            yield from check_mask(subject, known, plausibility)
        if is_integer(subject.entry.get("id")):
            seen.add(subject.entry["id"])


def load_labels(path: str | Path) -> tuple[object, list[Defect]]:
    """Reads a JSON whatever its state.

    Returns:
        What it holds, None if it cannot be read, and the defects of the file itself.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        return None, [make_defect("file_unreadable", FILE, f"cannot be read ({error.strerror})")]
    defects = []
    if raw.startswith(codecs.BOM_UTF8):
        defects.append(make_defect("byte_order_mark", FILE, "begins with a byte order mark"))
    try:
        text = raw.decode("utf-8-sig")
        # A file may be large, and the parsed one is larger.
        del raw
        return json.loads(text), defects
    except (ValueError, RecursionError) as error:
        defects.append(make_defect("json_malformed", FILE, f"not valid JSON ({error})"))
        return None, defects


def read_checked(
    path: str | Path, *, need_size: bool = True, tolerated: Collection[str] = TOLERATED
) -> dict:
    """Reads a label file for training or evaluation.

    Args:
        need_size: whether an image without `height` and `width` is an error.
        tolerated: kinds of errors that the caller handles itself, keys of `defects.KINDS`.

    Raises:
        DataError: the first error of the file, and how many more there are.
    """
    data = read_json(path)
    refuse_first(path, iterate_defects(data, need_size=need_size, plausibility=False), tolerated)
    return data


def refuse_first(path: object, defects: Iterable[Defect], tolerated: Collection[str] = ()) -> None:
    """Raises the first error as a DataError that counts the others; warnings pass."""
    first, more = None, 0
    for defect in defects:
        if defect.severity == ERROR and defect.kind not in tolerated:
            if first is None:
                first = defect
            else:
                more += 1
    if first is not None:
        raise first.as_error(path, more)
