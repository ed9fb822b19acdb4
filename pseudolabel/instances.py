"""COCO and LVIS JSON as Detectron2 dataset dicts, human files and pseudo-labels alike.

Detectron2's own LVIS loader wants polygons everywhere and knows the official class lists only. This
one takes polygons, RLE and boxes without a mask, and any categories.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as rle_tools

from pseudolabel.checks import is_integer, is_number, quote
from pseudolabel.errors import DataError
from pseudolabel.image_paths import ImageFolder
from pseudolabel.validation_records import LVIS_LISTS


def load_instances(
    data: Mapping[str, Any],
    source: str | os.PathLike,
    image_root: str | os.PathLike,
    class_of: Mapping[int, int],
    extra_keys: Sequence[str] = (),
    image_keys: Sequence[str] = (),
    *,
    federated: bool = False,
    allow_links: bool = False,
) -> list[dict]:
    """Dataset dicts in Detectron2's format, one per image, in the order of the image ids.

    Args:
        data: the JSON, checked and settled (`pseudolabel.validation`).
        source: its path, for messages.
        image_root: the folder of the images.
        class_of: category id -> contiguous class.
        extra_keys: of an annotation, copied where it has them.
        image_keys: of an image, the same.
        federated: LVIS: with the federated keys of each image.
        allow_links: whether links in `image_root` may lead out of it.

    Returns:
        Dicts with file_name (the first of `image_candidates` at which a file stands), height,
        width, image_id and annotations, which hold bbox (XYWH, absolute), bbox_mode, category_id
        (contiguous), iscrowd where stated, and segmentation (polygons or compressed RLE) where
        there is one.

    Raises:
        DataError: an annotation refers to no image or category of the file, its segmentation is
            neither polygons nor an RLE, an image lies outside of `image_root`, or a `weight` that
            is copied is no finite number >= 0.
    """
    annotations = defaultdict(list)
    folder = ImageFolder(image_root, source, allow_links=allow_links)
    for annotation in data.get("annotations", []):
        annotations[annotation["image_id"]].append(
            _annotation(annotation, source, class_of, extra_keys)
        )
    records = []
    for image in sorted(data["images"], key=lambda image: image["id"]):
        record = {
            "file_name": str(folder.path(image)),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": annotations.pop(image["id"], []),
            **_copied(image, image_keys, source, "image"),
        }
        if federated:
            record.update({key: image.get(key, []) for key in LVIS_LISTS})
        records.append(record)
    if annotations:
        orphan = next(iter(annotations))
        raise DataError(
            source,
            f"annotations refer to image {orphan}, which the file does not have",
            "add the image, or drop them",
            f"image_id {orphan}",
        )
    return records


def states_counts(categories: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all categories state an `image_count`, as those of LVIS do."""
    counts = [category.get("image_count") for category in categories]
    return all(is_integer(count) and count >= 0 for count in counts)


def class_image_counts(
    categories: Iterable[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]
) -> list[dict]:
    """Images per class, as Detectron2's metadata key `class_image_count` holds them.

    Args:
        categories: of the file, in the order of the classes. Where all state an `image_count`,
            it is taken; else the images are counted.
        annotations: of the file, checked (`pseudolabel.validation`) where they are counted.

    Returns:
        {"id": category id, "image_count": images with at least one instance} per class.
    """
    categories = list(categories)
    if states_counts(categories):
        return [{"id": c["id"], "image_count": c["image_count"]} for c in categories]
    seen = defaultdict(set)
    for annotation in annotations:
        seen[annotation.get("category_id")].add(annotation.get("image_id"))
    return [{"id": c["id"], "image_count": len(seen[c["id"]])} for c in categories]


def _annotation(
    annotation: Mapping[str, Any],
    source: str | os.PathLike,
    class_of: Mapping[int, int],
    extra_keys: Sequence[str],
) -> dict[str, Any]:
    category = annotation["category_id"]
    if category not in class_of:
        raise DataError(
            source,
            f"unknown category_id {category!r}",
            "add the category, or drop the record",
            f"annotation {annotation.get('id')}",
        )
    result = {
        "bbox": list(annotation["bbox"]),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": class_of[category],
        **_copied(annotation, ("iscrowd", *extra_keys), source, "annotation"),
    }
    if annotation.get("segmentation"):
        result["segmentation"] = _segmentation(annotation, source)
    return result


def _copied(
    entry: Mapping[str, Any], keys: Iterable[str], source: str | os.PathLike, kind: str
) -> dict[str, Any]:
    """What a record has of these keys; a weight scales losses, so it is looked at here."""
    found = {key: entry[key] for key in keys if key in entry}
    weight = found.get("weight", 1)
    if not (is_number(weight) and weight >= 0):
        raise DataError(
            source,
            f"its weight is {quote(weight)}, no number >= 0",
            "correct it, or drop the key, which is a weight of 1",
            f"{kind} {entry.get('id')}",
        )
    return found


def _segmentation(annotation: Mapping[str, Any], source: str | os.PathLike) -> list | dict:
    """Polygons as they are; RLE with a compressed string, the only kind that Detectron2 decodes."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list) and all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        for polygon in segmentation
    ):
        return segmentation
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if isinstance(segmentation["counts"], list):
            return rle_tools.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    raise DataError(
        source,
        f"the segmentation is neither polygons nor an RLE: {segmentation!r:.80}",
        "correct it, or drop it to keep the box alone",
        f"annotation {annotation.get('id')}",
    )
