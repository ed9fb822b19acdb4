"""Average precision of detections against the ground truth of a COCO or LVIS JSON; plain numbers.

Three backends do the matching (`ap_backends`); what they are given and the means that are taken of
their precision are the same for all, and stand here.

Shape legend: T IoU thresholds .5:.05:.95, R 101 recalls, K categories by id, A areas (all, small,
medium, large).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.ap_backends import BACKENDS
from pseudolabel.errors import DataError
from pseudolabel.files import read_json
from pseudolabel.masks import decode_segmentation

logger = logging.getLogger(__name__)

# Detections that count at most: in COCO per image and category, in LVIS per image.
MAX_DETS = {"coco": 100, "lvis": 300}
SIZES = ("APs", "APm", "APl")
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}


class GroundTruth:
    """The annotations to evaluate against, complete and in memory; the file stays as it is.

    `iscrowd` and `area` are filled in where they are missing (0; the area of the mask, or of the
    box where there is none). Annotations are numbered anew, since an id 0 reads as "unmatched" in
    COCO's evaluation, and images of status "rejected", which no loader yields, are left out. For
    LVIS, as in its own package, `iscrowd` has no effect and instances without area do not count.

    Args:
        data: content of the JSON.
        source: its path, for messages.
        style: "coco" or "lvis".

    Raises:
        DataError: a record lacks a key that cannot be filled in, or a mask is malformed.
    """

    def __init__(self, data: Mapping[str, Any], source: str | Path, style: str = "coco"):
        if style not in MAX_DETS:
            raise DataError(source, f"unknown evaluation style {style!r}", "use 'coco' or 'lvis'")
        self.source, self.style = source, style
        for part in ("images", "categories"):
            if not data.get(part):
                raise DataError(source, f"has no {part}", "give an instances file")
        self.images = [self._image(i) for i in data["images"] if i.get("status") != "rejected"]
        self.sizes = {i["id"]: (i["height"], i["width"]) for i in self.images}
        self.categories = sorted(data["categories"], key=lambda category: category["id"])
        # A test set without annotations has predictions, but no numbers.
        self.has_annotations = data.get("annotations") is not None
        self.annotations = self._annotations(data.get("annotations") or [])

    @classmethod
    def read(cls, json_file: str | Path, style: str = "coco") -> "GroundTruth":
        """The ground truth of a file; errors as of the class and of `read_json`."""
        return cls(read_json(json_file), json_file, style)

    def _image(self, image: dict) -> dict:
        missing = [key for key in ("id", "height", "width") if image.get(key) is None]
        if missing:
            record = f"image {image.get('id', image.get('file_name'))}"
            raise DataError(self.source, f"has no {', '.join(missing)}", "add it", record)
        if self.style == "lvis":
            absent = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
            return {**absent, **image}
        return image

    def _annotations(self, given: Sequence[dict]) -> list[dict]:
        rows, filled = [], {"iscrowd": 0, "area": 0}
        for annotation in given:
            missing = [k for k in ("image_id", "category_id", "bbox") if annotation.get(k) is None]
            if missing:
                raise DataError(
                    self.source,
                    f"has no {', '.join(missing)}",
                    "add it, or drop the record",
                    f"annotation {annotation.get('id')}",
                )
            if annotation["image_id"] not in self.sizes:
                continue
            row = {**annotation, "id": len(rows) + 1}
            if annotation.get("iscrowd") is None:
                row["iscrowd"] = 0
                filled["iscrowd"] += 1
            if not _is_number(annotation.get("area")):
                row["area"] = self._area(annotation)
                filled["area"] += 1
            if self.style == "lvis":
                row.update(iscrowd=0, ignore=0)
                if not row["area"] > 0:
                    continue
            rows.append(row)
        if self.style == "lvis":
            filled["iscrowd"] = 0
        if any(filled.values()):
            logger.info(
                "%s: of %d annotations, %d have no iscrowd (taken as 0) and %d no area (taken from "
                "the mask, or the box without one)",
                *(self.source, len(rows), filled["iscrowd"], filled["area"]),
            )
        return rows

    def _area(self, annotation: dict) -> float:
        if not annotation.get("segmentation"):
            return float(annotation["bbox"][2] * annotation["bbox"][3])
        try:
            mask = decode_segmentation(
                annotation["segmentation"], *self.sizes[annotation["image_id"]]
            )
        except ValueError as error:
            record = f"annotation {annotation.get('id')}"
            raise DataError(self.source, str(error), "correct the mask", record) from error
        return float(mask.sum())

    def require_masks(self) -> None:
        """Refuses a file in which an annotation has no mask to compare masks with.

        Raises:
            DataError: with the number of such annotations and the image of the first.
        """
        bare = [a for a in self.annotations if not a.get("segmentation")]
        if bare:
            raise DataError(
                self.source,
                f"{len(bare)} of {len(self.annotations)} annotations have no segmentation, and "
                "masks are to be evaluated",
                "give human masks for DATASETS.TEST, set it to (), or MODEL.MASK_ON to False",
                f"first in image {bare[0]['image_id']}",
            )

    def dataset(self) -> dict[str, Any]:
        """What a backend's own ground-truth class reads. Its records may be changed freely."""
        # lvis refuses other frequencies; the means by frequency are taken here, not there.
        categories = [{**c, "frequency": "f"} for c in self.categories]
        return {
            "info": {},
            "images": self.images,
            "categories": categories,
            "annotations": [dict(a) for a in self.annotations],
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def average_precision(
    truth: GroundTruth,
    results: Sequence[Mapping[str, Any]],
    task: str,
    *,
    backend: str = "faster_coco_eval",
    max_dets: int = 0,
    per_class: bool = True,
) -> dict[str, float]:
    """AP of results in COCO's format, in percent; NaN where the ground truth has no instance.

    Args:
        results: image_id, category_id (of the JSON), score and, by task, bbox (XYWH) or
            segmentation (RLE); neither changed nor kept. May be empty: AP is then 0.
        task: "bbox" or "segm". Size classes of detections go by the area of the box or mask.
        backend: "faster_coco_eval", "hotcoco", or "reference", which is pycocotools for COCO and
            the lvis package for LVIS.
        max_dets: detections that count per image (in COCO: and category); 0 is the format's own.
        per_class: add `AP-<class name>` for every class, if there is more than one.

    Returns:
        AP, AP50, AP75, APs, APm, APl; for LVIS also APr, APc, APf; then the classes.

    Raises:
        DataError: unknown or missing backend, or a result is of an unknown image.
        ValueError: unknown task.
    """
    if task not in ("bbox", "segm"):
        raise ValueError(f"task {task!r}: use 'bbox' or 'segm'")
    if task == "segm":
        truth.require_masks()
    match = require_backend(backend)
    limit = max_dets or MAX_DETS[truth.style]
    precision = match(truth, _rows(truth, results, task), task, limit)
    table = _summary(precision, truth)
    if per_class and len(truth.categories) > 1:
        for k, category in enumerate(truth.categories):
            table[f"AP-{category['name']}"] = _percent(precision[:, :, k, 0])
    return table


def require_backend(name: str) -> Any:
    """The matching function of a backend.

    Raises:
        DataError: it is unknown, or its package is not installed.
    """
    if name not in BACKENDS:
        raise DataError(
            "TEST.EVALUATOR.BACKEND", f"unknown backend {name!r}", f"use one of {list(BACKENDS)}"
        )
    package, match = BACKENDS[name]
    try:
        __import__(package)
    except ImportError as error:
        raise DataError(
            "TEST.EVALUATOR.BACKEND",
            f"the package {package} cannot be imported ({error})",
            "pip install 'masksmith[fast-eval]', or use 'faster_coco_eval'",
        ) from error
    return match


def _rows(truth: GroundTruth, results: Sequence[Mapping], task: str) -> list[dict]:
    """Fresh result records with what the task needs; with the box left in, the libraries would
    take the area of masks from it."""
    shape = "segmentation" if task == "segm" else "bbox"
    keys = ("image_id", "category_id", "score", shape)
    rows = [{key: result[key] for key in keys} for result in results]
    unknown = {row["image_id"] for row in rows} - truth.sizes.keys()
    if unknown:
        raise DataError(
            truth.source,
            f"{len(unknown)} images with results are not in it",
            "evaluate on the images of this file",
            f"first: image {min(unknown)}",
        )
    return rows


def _summary(precision: np.ndarray, truth: GroundTruth) -> dict[str, float]:
    table = {
        "AP": _percent(precision[..., 0]),
        "AP50": _percent(precision[0, ..., 0]),
        "AP75": _percent(precision[5, ..., 0]),
    }
    table.update({name: _percent(precision[..., 1 + i]) for i, name in enumerate(SIZES)})
    if truth.style == "lvis":
        labels = np.array([category.get("frequency") for category in truth.categories])
        for name, label in FREQUENCIES.items():
            table[name] = _percent(precision[:, :, labels == label, 0])
    return table


def _percent(precision: np.ndarray) -> float:
    """Mean in percent over what is defined; -1 marks a category without ground truth."""
    defined = precision[precision > -1]
    return 100 * float(defined.mean()) if defined.size else float("nan")
