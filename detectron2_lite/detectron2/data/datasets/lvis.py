"""LVIS's instance JSON to dataset dicts.

LVIS (Gupta et al. 2019) annotates each image for some categories only: ``neg_category_ids`` are
known to be absent, ``not_exhaustive_category_ids`` may have further, unmarked objects, and nothing
is known of the rest. Both lists stay in the dataset dicts, with the ids of the file.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["get_lvis_instances_meta", "load_lvis_json", "register_lvis_instances"]

logger = logging.getLogger(__name__)

# "COCO_val2014_000000001234.jpg" of LVIS v0.5 is "000000001234.jpg" in the folders of 2017.
_LENGTH_OF_2017_NAMES = 16


def register_lvis_instances(
    name: str, metadata: Mapping[str, Any], json_file: str, image_root: str
) -> None:
    """Make an LVIS JSON file known under a name; it is read when the dataset is first used.

    Args:
        name: any; other than upstream, it need not contain a version of LVIS.
        metadata: further metadata, may be empty; what it says of the classes goes before what is
            read from the file.
        image_root: see :func:`load_lvis_json`, and mind the slash at its end.

    Raises:
        AssertionError: when the name is taken.
    """
    files = {"json_file": json_file, "image_root": image_root}
    # Read when the data set is used, not now.
    DatasetCatalog.register(name, lambda: load_lvis_json(**files, dataset_name=name))
    MetadataCatalog.get(name).set(**files, **metadata, evaluator_type="lvis")


def get_lvis_instances_meta(dataset_name: str) -> dict[str, Any]:
    """Class metadata of a registered dataset, read from its JSON file.

    Upstream ships the category tables of LVIS v0.5 and v1; this build has no tables, and finds the
    same names in the files of those versions.

    Returns:
        ``thing_classes``, ordered by category id; ``thing_dataset_id_to_contiguous_id`` unless
        the ids are 1..n; ``class_image_count`` if the file has it for all categories.

    Raises:
        ValueError: when no dataset of that name is registered with a JSON file.
    """
    path = MetadataCatalog.get(dataset_name).get("json_file") if dataset_name else None
    if path is None:
        raise ValueError(
            f"No built-in metadata for dataset {dataset_name!r}: register it first "
            "(register_lvis_instances), and its classes are read from its JSON file"
        )
    return _classes_of(_read(path).get("categories", []))


def load_lvis_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a JSON file in the format of LVIS v0.5 or v1.

    Args:
        image_root: put in front of the last two parts of ``coco_url``
            ("val2017/000000001234.jpg") *as a string*, so it should end in a slash. An image
            without ``coco_url`` is looked for as ``<image_root>/<file_name>``, where the long names
            of v0.5 are cut to those of COCO 2017.
        dataset_name: puts the classes of the file into this dataset's metadata, where it has none
            (:func:`get_lvis_instances_meta`). None touches no metadata.
        extra_annotation_keys: further keys of an annotation to keep, e.g. ["score"].

    Returns:
        dataset dicts ordered by image id; boxes are XYWH_ABS. Classes are
        ``thing_dataset_id_to_contiguous_id`` of the category id, or it minus 1 without such a map.

    Raises:
        AssertionError: for annotation ids that repeat, and segmentations that are no polygons.
        KeyError, ValueError: for what else is missing or wrong; all name file and annotation.
    """
    content = _read(json_file)
    id_map = _publish_classes(content.get("categories", []), dataset_name)
    of_image = _by_image(content.get("annotations", []), json_file)
    records = []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        image_id = image["id"]
        try:
            record = {
                "file_name": _path_of(image, image_root),
                "height": image["height"],
                "width": image["width"],
                "not_exhaustive_category_ids": image.get("not_exhaustive_category_ids", []),
                "neg_category_ids": image.get("neg_category_ids", []),
                "image_id": image_id,
            }
        except KeyError as error:
            raise KeyError(f"{json_file}: image {image_id} has no {error}") from error
        record["annotations"] = [
            _named_object(annotation, extra_annotation_keys or (), id_map, json_file)
            for annotation in of_image[image_id]
        ]
        records.append(record)
    logger.info("%s: %d images in LVIS's format", json_file, len(records))
    return records


def _read(json_file: str) -> dict[str, Any]:
    with PathManager.open(json_file, "r") as stream:
        return json.load(stream)


def _classes_of(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ordered = sorted(categories, key=lambda category: category["id"])
    ids = [category["id"] for category in ordered]
    meta: dict[str, Any] = {"thing_classes": [category["name"] for category in ordered]}
    if ids != list(range(1, len(ids) + 1)):
        meta["thing_dataset_id_to_contiguous_id"] = {key: i for i, key in enumerate(ids)}
    if ordered and all("image_count" in category for category in ordered):
        # The federated loss draws its negative classes by these.
        meta["class_image_count"] = [
            {"id": category["id"], "image_count": category["image_count"]} for category in ordered
        ]
    return meta


def _publish_classes(
    categories: Sequence[Mapping[str, Any]], dataset_name: str | None
) -> dict[int, int] | None:
    """Fill gaps of the metadata; returns the map from category ids to classes, None for id - 1."""
    if dataset_name is None:
        return None
    metadata = MetadataCatalog.get(dataset_name)
    found = _classes_of(categories)
    if metadata.get("thing_classes") is not None:
        # Classes that the user named go with the user's map, or with LVIS's rule.
        found.pop("thing_dataset_id_to_contiguous_id", None)
    metadata.set(**{key: value for key, value in found.items() if metadata.get(key) is None})
    return metadata.get("thing_dataset_id_to_contiguous_id")


def _by_image(
    annotations: Sequence[Mapping[str, Any]], json_file: str
) -> defaultdict[int, list[Mapping[str, Any]]]:
    uses = Counter(annotation["id"] for annotation in annotations)
    repeated = [key for key, count in uses.items() if count > 1]
    assert not repeated, f"{json_file}: annotation ids are not unique, e.g. {repeated[:5]}"
    grouped: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        grouped[annotation["image_id"]].append(annotation)
    return grouped


def _path_of(image: Mapping[str, Any], image_root: str) -> str:
    url = image.get("coco_url")
    if url:
        folder, slash, name = url.rpartition("/")
        if not slash:
            raise ValueError(f"image {image['id']}: coco_url {url!r} has no folder")
        return os.path.join(f"{image_root}{folder.rpartition('/')[2]}", name)
    name = image["file_name"]
    if name.startswith("COCO"):
        name = name[-_LENGTH_OF_2017_NAMES:]
    return os.path.join(image_root, name)


def _named_object(
    annotation: Mapping[str, Any],
    extra_keys: Sequence[str],
    id_map: Mapping[int, int] | None,
    json_file: str,
) -> dict[str, Any]:
    """One annotation in Detectron2's format; errors name file and annotation."""
    where = f"{json_file}: annotation {annotation['id']} of image {annotation['image_id']}"
    polygons = annotation.get("segmentation")
    assert isinstance(polygons, list), (
        f"{where}: the segmentation must be a list of polygons, as in LVIS's own files, not "
        f"{type(polygons).__name__}; load_coco_json reads RLE and files without masks"
    )
    assert polygons, f"{where}: the segmentation is empty"
    assert all(len(points) >= 6 and len(points) % 2 == 0 for points in polygons), (
        f"{where}: a polygon has fewer than three points, or an odd number of coordinates"
    )
    try:
        category = annotation["category_id"]
        return {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": category - 1 if id_map is None else id_map[category],
            "segmentation": polygons,
            **{key: annotation[key] for key in extra_keys},
        }
    except KeyError as error:
        raise KeyError(f"{where}: {error} is missing, or no category of the file") from error
