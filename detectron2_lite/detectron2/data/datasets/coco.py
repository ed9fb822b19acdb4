"""COCO's instance JSON to dataset dicts, and back."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, PolygonMasks
from detectron2.utils.env import upstream_only
from detectron2.utils.file_io import PathManager
from fvcore.common.timer import Timer

from .sem_seg import load_sem_seg

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "load_sem_seg"]

logger = logging.getLogger(__name__)

__getattr__ = upstream_only(__name__, ("register_coco_instances_with_points",))

_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a JSON file in COCO's instance format.

    Args:
        image_root: folder that the ``file_name``s are relative to.
        dataset_name: puts ``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` into this
            dataset's metadata, and maps category ids to 0, 1, ... in ascending order. None keeps
            the ids.
        extra_annotation_keys: further keys of an annotation to keep, e.g. ["score"].

    Returns:
        dataset dicts ordered by image id; boxes are XYWH_ABS. Polygons of fewer than three points
        are dropped, as are (counted, in a warning) annotations of which nothing is left.

    Raises:
        ValueError, AssertionError: naming file and annotation, for annotations that are wrong.
    """
    coco = _read(json_file)
    id_map = _publish_categories(coco, dataset_name)
    _check_unique_ids(coco, json_file)
    keys = (*_KEYS, *(extra_annotation_keys or ()))
    lost = 0
    records = []
    for image_id in sorted(coco.imgs):
        image = coco.imgs[image_id]
        converted = [
            _named_object(annotation, image_id, keys, id_map, json_file)
            for annotation in coco.imgToAnns[image_id]
        ]
        objects = [annotation for annotation in converted if annotation is not None]
        lost += len(converted) - len(objects)
        records.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image_id,
                "annotations": objects,
            }
        )
    logger.info("%s: %d images", json_file, len(records))
    if lost:
        logger.warning(
            "%s: left out %d annotations whose segmentation has no polygon of three points or more",
            json_file,
            lost,
        )
    return records


def _read(json_file: str) -> Any:
    """The file as pycocotools indexes it."""
    from pycocotools.coco import COCO

    clock = Timer()
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(PathManager.get_local_path(json_file))
    seconds = clock.seconds()
    if seconds > 1:
        logger.info("Loading %s took %.2f s", json_file, seconds)
    return index


def _publish_categories(coco: Any, dataset_name: str | None) -> dict[int, int] | None:
    """Set the metadata; returns the map from the file's category ids to 0, 1, ..."""
    if dataset_name is None:
        return None
    ids = sorted(coco.getCatIds())
    id_map = {category: index for index, category in enumerate(ids)}
    MetadataCatalog.get(dataset_name).set(
        thing_classes=[category["name"] for category in coco.loadCats(ids)],
        thing_dataset_id_to_contiguous_id=id_map,
    )
    if ids and (ids[0], ids[-1]) != (1, len(ids)) and "coco" not in dataset_name:
        logger.warning(
            "Category ids of %s are not 1..%d; a mapping to 0..%d is applied",
            dataset_name,
            len(ids),
            len(ids) - 1,
        )
    return id_map


def _check_unique_ids(coco: Any, json_file: str) -> None:
    # The 2014 minival files are known to repeat ids, and are used all the same.
    if "minival" in json_file:
        return
    counts = Counter(a["id"] for annotations in coco.imgToAnns.values() for a in annotations)
    repeated = [key for key, count in counts.items() if count > 1]
    assert not repeated, f"{json_file}: annotation ids are not unique, e.g. {repeated[:5]}"


def _named_object(
    annotation: Mapping[str, Any],
    image_id: int,
    keys: Sequence[str],
    id_map: Mapping[int, int] | None,
    json_file: str,
) -> dict[str, Any] | None:
    """:func:`_to_object` whose errors name file and annotation."""
    try:
        return _to_object(annotation, image_id, keys, id_map)
    except (AssertionError, KeyError, ValueError) as error:
        where = f"{json_file}: annotation {annotation.get('id')} of image {image_id}"
        kind = AssertionError if isinstance(error, AssertionError) else ValueError
        raise kind(f"{where}: {error}") from error


def _to_object(
    annotation: Mapping[str, Any],
    image_id: int,
    keys: Sequence[str],
    id_map: Mapping[int, int] | None,
) -> dict[str, Any] | None:
    """One annotation in Detectron2's format; None if no valid polygon is left of it."""
    assert annotation["image_id"] == image_id
    assert not annotation.get("ignore"), '"ignore" is not supported in COCO files'
    result = {key: annotation[key] for key in keys if key in annotation}
    if "bbox" in result and not len(result["bbox"]):
        raise ValueError("the bbox is empty; give x, y, width, height or leave it out")
    segmentation = annotation.get("segmentation")
    if segmentation:
        if isinstance(segmentation, dict):
            if isinstance(segmentation["counts"], list):
                segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        else:
            segmentation = [p for p in segmentation if len(p) % 2 == 0 and len(p) >= 6]
            if not segmentation:
                return None
        result["segmentation"] = segmentation
    if result.get("keypoints"):
        # COCO's keypoints name pixels, ours are coordinates: the pixel's centre. Visibility stays.
        result["keypoints"] = [
            value if index % 3 == 2 else value + 0.5
            for index, value in enumerate(result["keypoints"])
        ]
    result["bbox_mode"] = BoxMode.XYWH_ABS
    if id_map is not None:
        category = result["category_id"]
        if category not in id_map:
            raise ValueError(f"category_id {category} is not in the file's 'categories'")
        result["category_id"] = id_map[category]
    return result


def _area_of(segmentation: Any, box: Sequence[float]) -> float:
    """Area in pixels of polygons, an RLE, or (None) the XYXY box."""
    if segmentation is None:
        return float(Boxes([list(box)]).area()[0])
    if isinstance(segmentation, list):
        return float(PolygonMasks([segmentation]).area()[0])
    if isinstance(segmentation, dict):
        return float(mask_util.area(segmentation))
    raise TypeError(f"a segmentation must be polygons or an RLE, got {type(segmentation).__name__}")


def _json_segmentation(segmentation: Any) -> Any:
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        return {"size": [int(side) for side in segmentation["size"]], "counts": text}
    return [np.asarray(polygon, dtype=float).tolist() for polygon in segmentation]


def _to_coco_annotation(
    annotation: Mapping[str, Any], number: int, image_id: Any, reverse: Mapping[int, int] | None
) -> dict[str, Any]:
    mode = annotation["bbox_mode"]
    to_xyxy = BoxMode.convert(list(map(float, annotation["bbox"])), mode, BoxMode.XYXY_ABS)
    to_xywh = BoxMode.convert(list(to_xyxy), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    segmentation = annotation.get("segmentation")
    category = int(annotation["category_id"])
    out = {
        "id": number,
        "image_id": image_id,
        "bbox": [round(float(value), 3) for value in to_xywh],
        "area": _area_of(segmentation, to_xyxy),
        "iscrowd": int(annotation.get("iscrowd", 0)),
        "category_id": category if reverse is None else reverse[category],
    }
    if "keypoints" in annotation:
        points = list(annotation["keypoints"])
        out["keypoints"] = [v if i % 3 == 2 else v - 0.5 for i, v in enumerate(points)]
        out["num_keypoints"] = sum(v > 0 for v in points[2::3])
    if segmentation is not None:
        out["segmentation"] = _json_segmentation(segmentation)
    return out


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """A registered dataset in COCO's format, with the category ids of its metadata.

    Annotation ids count from 1 (0 means "no match" in the COCO API).
    """
    metadata = MetadataCatalog.get(dataset_name)
    forward = metadata.get("thing_dataset_id_to_contiguous_id")
    reverse = None if forward is None else {index: key for key, index in forward.items()}
    images, annotations = [], []
    for position, record in enumerate(DatasetCatalog.get(dataset_name)):
        image_id = record.get("image_id", position)
        images.append(
            {
                "id": image_id,
                "width": int(record["width"]),
                "height": int(record["height"]),
                "file_name": str(record["file_name"]),
            }
        )
        for annotation in record.get("annotations", []):
            annotations.append(
                _to_coco_annotation(annotation, len(annotations) + 1, image_id, reverse)
            )
    names = metadata.thing_classes
    ids = [index if reverse is None else reverse[index] for index in range(len(names))]
    categories = [{"id": key, "name": name} for key, name in zip(ids, names)]
    logger.info("%s: %d images, %d annotations", dataset_name, len(images), len(annotations))
    return {
        "info": {
            "description": f"Converted from the dataset {dataset_name}",
            "date_created": datetime.datetime.now().isoformat(sep=" "),
        },
        "images": images,
        "categories": categories,
        "licenses": None,
        "annotations": annotations,
    }


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write :func:`convert_to_coco_dict` to a file.

    Args:
        allow_cached: keep a file that is already there (it may be of other data: a warning
            says so).
    """
    folder = os.path.dirname(output_file)
    if folder:
        PathManager.mkdirs(folder)
    if allow_cached and PathManager.exists(output_file):
        logger.warning(
            "Using the COCO file %s as it is; delete it if the dataset has changed", output_file
        )
        return
    content = convert_to_coco_dict(dataset_name)
    partial = f"{output_file}.partial"
    with PathManager.open(partial, "w") as stream:
        json.dump(content, stream)
    os.replace(partial, output_file)
