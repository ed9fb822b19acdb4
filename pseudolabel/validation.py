"""Validation of label files: what is wrong with a COCO or LVIS JSON, record by record.

Nothing here draws a mask, imports Detectron2 or allocates memory by a number that a file states.
"""

import codecs
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pseudolabel.checks import is_integer, not_finite_key, quote
from pseudolabel.defects import ERROR, FILE, Defect, make_defect
from pseudolabel.files import read_json
from pseudolabel.masks import whole_rle
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
    "LEFT_OUT_LATER",
    "TOLERATED",
    "UNREAD",
    "Defect",
    "check_images",
    "check_labels",
    "iterate_defects",
    "load_labels",
    "read_checked",
    "refuse_first",
    "settle",
]

LISTS = ("images", "categories", "annotations")
# Defects of a file in whose place `load_labels` returns None.
UNREAD = frozenset({"file_unreadable", "json_malformed"})
# COCO's own files hold a few boxes without area; Detectron2 leaves those out by itself.
TOLERATED = frozenset({"box_zero"})
# Boxes without area in their image: mappers leave them out, COCO's own evaluation counts them.
LEFT_OUT_LATER = TOLERATED | {"box_outside"}


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
        What it holds, None if it cannot be read (a kind in `UNREAD`), and the defects of the file
        itself.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        return None, [make_defect("file_unreadable", FILE, f"cannot be read ({error.strerror})")]
    defects = []
    if raw.startswith(codecs.BOM_UTF8):
        defects.append(make_defect("byte_order_mark", FILE, "begins with a byte order mark"))
    doubles: list[str] = []
    try:
        text = raw.decode("utf-8-sig")
        # A file may be large, and the parsed one is larger.
        del raw
        data = json.loads(text, object_pairs_hook=partial(_object, doubles))
    except (ValueError, RecursionError) as error:
        defects.append(make_defect("json_malformed", FILE, f"not valid JSON ({error})"))
        return None, defects
    return data, defects + [make_defect("duplicate_key", FILE, problem) for problem in doubles]


def _object(doubles: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; describes in `doubles` keys that stand in it twice, of which `json` would
    silently take the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        where = f"the object with the id {quote(value['id'])}" if "id" in value else "an object"
        doubles.append(f"{where} has the key {quote(twice[0])} twice")
    return value


def read_checked(
    path: str | Path, *, need_size: bool = True, tolerated: Collection[str] = TOLERATED
) -> dict:
    """Reads a label file for training or evaluation, and settles it (`settle`).

    Args:
        need_size: whether an image without `height` and `width` is an error.
        tolerated: kinds of errors that the caller handles itself, keys of `defects.KINDS`.

    Raises:
        DataError: the first error of the file, and how many more there are.
    """
    data = read_json(path)
    refuse_first(path, iterate_defects(data, need_size=need_size, plausibility=False), tolerated)
    settle(data["annotations"])
    return data


def settle(annotations: Iterable[dict]) -> None:
    """Writes into checked annotations what a warning stands for, for readers that do not know:
    an `iscrowd` of null is 0, and the numbers of a run-length code are whole.
    """
    for annotation in annotations:
        if annotation.get("iscrowd", 0) is None:
            annotation["iscrowd"] = 0
        if isinstance(annotation.get("segmentation"), dict):
            annotation["segmentation"] = whole_rle(annotation["segmentation"])


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
