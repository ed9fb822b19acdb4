"""Checks of the records of a COCO or LVIS JSON: categories, images, annotations.

Each check yields defects, the gravest first, and never raises, whatever the JSON holds.
"""

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pseudolabel.checks import (
    box_fault,
    image_name,
    is_integer,
    is_number,
    is_safe_name,
    not_finite_key,
    quote,
)
from pseudolabel.defects import Defect, make_defect
from pseudolabel.masks import MAX_PIXELS

SINGULAR = {"images": "image", "annotations": "annotation", "categories": "category"}
UNIT_KEYS = ("score", "quality", "agreement", "hardness")
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")
# Keys whose numbers have a check of their own: of an image, of an annotation.
_OF_IMAGE = ("weight",)
_OF_ANNOTATION = ("bbox", "segmentation", "weight")


@dataclass
class Known:
    """What the annotations may refer to.

    Attributes:
        categories: ids.
        sizes: image id to (height, width), None where the image states no sound size.
    """

    categories: set[int | str] = field(default_factory=set)
    sizes: dict[int | str, tuple[int, int] | None] = field(default_factory=dict)


def record_name(kind: str, entry: Any, position: int) -> str:
    """ "annotation 12"; where the id is no whole number, "annotation at position 7"."""
    key = entry.get("id") if isinstance(entry, dict) else None
    return (
        f"{SINGULAR[kind]} {key}" if is_integer(key) else f"{SINGULAR[kind]} at position {position}"
    )


class Subject:
    """One record under examination; makes the defects of it."""

    def __init__(self, kind: str, position: int, entry: Any):
        self.kind, self.position, self.entry = kind, position, entry

    def defect(self, kind: str, problem: str, key: str = "") -> Defect:
        """A defect of this record."""
        name = record_name(self.kind, self.entry, self.position)
        return make_defect(kind, name, problem, (self.kind, self.position), key)

    def missing(self, keys: Iterable[str]) -> Iterator[Defect]:
        """One defect for all keys that are absent or null."""
        absent = [key for key in keys if self.entry.get(key) is None]
        if absent:
            yield self.defect("missing_key", f"has no {', '.join(absent)}", absent[0])

    def identity(self, seen: Container) -> Iterator[Defect]:
        """A defect where the id is no whole number, or is in `seen`."""
        key = self.entry.get("id")
        if isinstance(key, str):
            yield self.defect("string_id", f"id is {quote(key)}, text", "id")
        elif not is_integer(key):
            yield self.defect("id_malformed", f"id is {quote(key)}, no whole number", "id")
        elif key in seen:
            yield self.defect(f"duplicate_{SINGULAR[self.kind]}_id", f"id {key} occurs twice", "id")

    def reference(self, key: str, known: Container, kind: str) -> Iterator[Defect]:
        """A defect where the value of `key` is no id in `known`."""
        value = self.entry.get(key)
        if isinstance(value, str):
            yield self.defect("string_id", f"{key} is {quote(value)}, text", key)
        elif not is_integer(value) or value not in known:
            yield self.defect(kind, f"unknown {key} {quote(value)}", key)

    def unit_numbers(self) -> Iterator[Defect]:
        """Defects of what belongs into [0, 1]; NaN and infinity have their own, an error."""
        for key in UNIT_KEYS:
            value = self.entry.get(key)
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                continue
            if not (is_number(value) and 0 <= value <= 1):
                yield self.defect("score_range", f"{key} is {quote(value)}, not in [0, 1]", key)

    def weight(self) -> Iterator[Defect]:
        """A defect where a weight of losses is stated that is none; null is none, either."""
        value = self.entry.get("weight", 1)
        if not (is_number(value) and value >= 0):
            problem = f"its weight is {quote(value)}, no number >= 0"
            yield self.defect("weight_malformed", problem, "weight")

    def finite(self, skip: Iterable[str] = ()) -> Iterator[Defect]:
        """A defect where NaN or infinity stand in the record."""
        key = not_finite_key(self.entry, skip)
        if key is not None:
            problem = f"{quote(key)} holds NaN or infinity, which no JSON may"
            yield self.defect("not_finite", problem, key)


def subjects(kind: str, entries: list) -> Iterator[tuple[Subject, list[Defect]]]:
    """The records of a list, each with the defect of one that is no JSON object."""
    for position, entry in enumerate(entries):
        subject = Subject(kind, position, entry)
        wrong = []
        if not isinstance(entry, dict):
            wrong.append(subject.defect("not_a_record", f"is {quote(entry)}, no JSON object"))
        yield subject, wrong


def check_categories(entries: list, known: Known) -> Iterator[Defect]:
    """Checks the categories and enters their ids in `known`."""
    names: dict[str, Any] = {}
    for subject, wrong in subjects("categories", entries):
        yield from wrong
        if wrong:
            continue
        key, name = subject.entry.get("id"), subject.entry.get("name")
        absent = list(subject.missing(["id"]))
        yield from absent or subject.identity(known.categories)
        if isinstance(key, str) or is_integer(key):
            known.categories.add(key)
        if not isinstance(name, str) or not name.strip():
            yield subject.defect("category_name", f"its name is {quote(name)}", "name")
        elif name in names:
            problem = f"has the name {quote(name)}, as category {names[name]} has"
            yield subject.defect("duplicate_category_name", problem, "name")
        else:
            names[name] = key
        yield from subject.finite()


def check_images(entries: list, known: Known, need_size: bool) -> Iterator[Defect]:
    """Checks the entries of the images, not the files, and enters ids and sizes in `known`."""
    files: dict[str, Any] = {}
    for subject, wrong in subjects("images", entries):
        yield from wrong
        if wrong:
            continue
        image = subject.entry
        yield from _image_keys(subject, need_size)
        if image.get("id") is not None:
            yield from subject.identity(known.sizes)
        size = list(_image_size(subject))
        yield from size
        yield from _image_file(subject, files)
        yield from subject.unit_numbers()
        for key in LVIS_LISTS:
            yield from _category_list(subject, key, known)
        yield from subject.finite(_OF_IMAGE)
        yield from subject.weight()
        if isinstance(image.get("id"), str) or is_integer(image.get("id")):
            stated = (image.get("height"), image.get("width"))
            known.sizes[image["id"]] = None if size or None in stated else stated


def _image_keys(subject: Subject, need_size: bool) -> Iterator[Defect]:
    yield from subject.missing(["id"] + ["height", "width"] * need_size)
    if subject.entry.get("file_name") is None and image_name(subject.entry) is None:
        problem = "has neither a file_name nor a coco_url that ends in one"
        yield subject.defect("missing_key", problem, "file_name")


def _image_size(subject: Subject) -> Iterator[Defect]:
    sides = {key: subject.entry.get(key) for key in ("height", "width")}
    for key, value in sides.items():
        if value is not None and not (is_integer(value) and value > 0):
            problem = f"{key} is {quote(value)}, not a whole number of pixels"
            yield subject.defect("image_size_malformed", problem, key)
            return
    if None not in sides.values() and sides["height"] * sides["width"] > MAX_PIXELS:
        problem = f"is {quote(sides['width'])}x{quote(sides['height'])}, more than any reader takes"
        yield subject.defect("image_size_huge", problem, "height")


def _image_file(subject: Subject, files: dict[str, Any]) -> Iterator[Defect]:
    stated, name = subject.entry.get("file_name"), image_name(subject.entry)
    if stated is not None and name is None:
        problem = f"file_name is {quote(stated)}, no name of a file"
        yield subject.defect("file_name_malformed", problem, "file_name")
    elif name is not None and not is_safe_name(name):
        problem = f"file_name {quote(name)} is not a path below the image folder"
        yield subject.defect("file_name_unsafe", problem, "file_name")
    elif name is not None and stated is not None:
        if name in files:
            problem = f"has the file_name {quote(name)}, as image {files[name]} has"
            yield subject.defect("duplicate_file_name", problem, "file_name")
        files.setdefault(name, subject.entry.get("id"))


def _category_list(subject: Subject, key: str, known: Known) -> Iterator[Defect]:
    value = subject.entry.get(key)
    if value is None:
        return
    if not isinstance(value, list):
        yield subject.defect("unknown_listed_category", f"{key} is {quote(value)}, no list", key)
        return
    unknown = [i for i in value if not is_integer(i) or i not in known.categories]
    if unknown:
        problem = f"{key} names unknown categories {quote(unknown)}"
        yield subject.defect("unknown_listed_category", problem, key)


def check_annotation(subject: Subject, known: Known, seen: Container) -> Iterator[Defect]:
    """Checks one annotation, all but its mask; `seen` holds the ids before it."""
    entry = subject.entry
    yield from subject.missing(("id", "image_id", "category_id"))
    if entry.get("bbox") is None:
        yield subject.defect("box_missing", "has no bbox", "bbox")
    if entry.get("id") is not None:
        yield from subject.identity(seen)
    if entry.get("id") == 0 and is_integer(entry["id"]):
        yield subject.defect("annotation_id_zero", "has the id 0", "id")
    if entry.get("image_id") is not None:
        yield from subject.reference("image_id", known.sizes, "unknown_image")
    if entry.get("category_id") is not None:
        yield from subject.reference("category_id", known.categories, "unknown_category")
    yield from _annotation_box(subject, size_of(entry, known))
    crowd = entry.get("iscrowd", 0)
    if crowd is None:
        yield subject.defect("iscrowd_null", "iscrowd is null", "iscrowd")
    elif not is_integer(crowd) or crowd not in (0, 1):
        yield subject.defect("iscrowd", f"iscrowd is {quote(crowd)}, neither 0 nor 1", "iscrowd")
    yield from subject.finite(_OF_ANNOTATION)
    area = entry.get("area")
    if area is None:
        yield subject.defect("area_missing", "has no area", "area")
    elif not is_number(area) or area < 0:
        yield subject.defect("area_malformed", f"area is {quote(area)}", "area")
    yield from subject.weight()
    yield from subject.unit_numbers()


def size_of(annotation: dict, known: Known) -> tuple[int, int] | None:
    """(H, W) of the image of an annotation, None where it is unknown."""
    key = annotation.get("image_id")
    return known.sizes.get(key) if isinstance(key, str | int) else None


def _annotation_box(subject: Subject, size: tuple[int, int] | None) -> Iterator[Defect]:
    box = subject.entry.get("bbox")
    if box is None:
        return
    fault = box_fault(box, *(size or (None, None)))
    if fault is not None:
        where = f" on a {size[1]}x{size[0]} image" if size else ""
        yield subject.defect(fault, f"bbox is {quote(box)}{where}", "bbox")
