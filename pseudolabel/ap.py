"""Average precision of detections against the ground truth of a COCO or LVIS JSON; plain numbers.

Three backends do the matching (`ap_backends`); what they are given and the means that are taken of
their precision are the same for all, and stand here.

Shape legend: T IoU thresholds .5:.05:.95, R 101 recalls, K categories by id, A areas (all, small,
medium, large).
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.ap_backends import BACKENDS
from pseudolabel.errors import DataError
from pseudolabel.files import read_json
from pseudolabel.masks import decode_segmentation, whole_rle
from pseudolabel.rejected import without_rejected
from pseudolabel.validation import LEFT_OUT_LATER, iterate_defects, refuse_first
from pseudolabel.validation_records import LVIS_LISTS

logger = logging.getLogger(__name__)

# Detections that count at most: in COCO per image and category, in LVIS per image.
MAX_DETS = {"coco": 100, "lvis": 300}
SIZES = ("APs", "APm", "APl")
FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}
# An area in px² beyond all ranges, so that an instance is ignored in each. The fast backends know
# no other way: they overwrite `ignore` by `iscrowd`, which would change the overlaps, too.
NO_RANGE = 1e20


class GroundTruth:
    """The annotations to evaluate against, complete and in memory; the file stays as it is.

    The file must pass the checks of training (`pseudolabel.validation`), but for the names of its
    images. `iscrowd` and `area` are filled in where they are missing (0; the area of the mask, or
    of the box where there is none), and images of status "rejected", which no loader yields, are
    left out. For LVIS, as in its own package, `iscrowd` has no effect, a stated `ignore` has, and
    instances without area do not count.

    Args:
        data: content of the JSON.
        source: its path, for messages.
        style: "coco" or "lvis".

    Attributes:
        images, annotations, categories: records of the file, categories by id.
        sizes: image id -> (height, width).
        image_numbers, category_numbers: id of the file -> its place in the order of the ids, from
            1; what the backends are given, since not all of them take every whole number.

    Raises:
        DataError: the first error of the file, or an unknown style.
    """

    def __init__(self, data: Mapping[str, Any], source: str | Path, style: str = "coco"):
        if style not in MAX_DETS:
            raise DataError(source, f"unknown evaluation style {style!r}", "use 'coco' or 'lvis'")
        self.source, self.style = source, style
        for part in ("images", "categories"):
            if not data.get(part):
                raise DataError(source, f"has no {part}", "give an instances file")
        if data.get("annotations") is None:
            remedy = "give an instances file; an empty list where only predictions are wanted"
            raise DataError(source, "has no list 'annotations'", remedy)
        data, _ = without_rejected(data)
        # Images are not opened here: results name them by id.
        defects = (d for d in iterate_defects(data, plausibility=False) if d.key != "file_name")
        refuse_first(source, defects, LEFT_OUT_LATER)
        self.images: list[dict] = data["images"]
        self.sizes = {i["id"]: (i["height"], i["width"]) for i in self.images}
        self.categories = sorted(data["categories"], key=lambda category: category["id"])
        self.image_numbers = {key: n for n, key in enumerate(sorted(self.sizes), 1)}
        self.category_numbers = {c["id"]: n for n, c in enumerate(self.categories, 1)}
        self.annotations = self._annotations(data["annotations"])

    @classmethod
    def read(cls, json_file: str | Path, style: str = "coco") -> "GroundTruth":
        """The ground truth of a file; errors as of the class and of `read_json`."""
        return cls(read_json(json_file), json_file, style)

    def _annotations(self, given: Sequence[dict]) -> list[dict]:
        rows, filled = [], {"iscrowd": 0, "area": 0}
        for annotation in given:
            row = dict(annotation)
            if isinstance(row.get("segmentation"), dict):
                row["segmentation"] = whole_rle(row["segmentation"])
            if row.get("iscrowd") is None:
                row["iscrowd"] = 0
                filled["iscrowd"] += 1
            if row.get("area") is None:
                row["area"] = self._area(row)
                filled["area"] += 1
            if self.style == "lvis":
                row["iscrowd"] = 0
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
        size = self.sizes[annotation["image_id"]]
        return float(decode_segmentation(annotation["segmentation"], *size).sum())

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

    def class_names(self) -> list[str]:
        """Names of the categories by id; classes of one name have their id added to tell them
        apart, "a (id 2)"."""
        names = [category["name"] for category in self.categories]
        while len(counts := Counter(names)) < len(names):
            names = [
                f"{name} (id {category['id']})" if counts[name] > 1 else name
                for name, category in zip(names, self.categories)
            ]
        return names

    def dataset(self) -> dict[str, Any]:
        """What a backend's own ground-truth class reads: images, categories and annotations by
        number, with what evaluation needs and nothing else. Its records may be changed freely."""
        categories = [
            # lvis refuses other frequencies; the means by frequency are taken here, not there.
            {"id": number, "name": name, "frequency": "f"}
            for number, name in enumerate(self.class_names(), 1)
        ]
        return {
            "info": {},
            "images": [self._image(image) for image in self.images],
            "categories": categories,
            "annotations": [self._instance(n, a) for n, a in enumerate(self.annotations, 1)],
        }

    def _image(self, image: dict) -> dict:
        result = {"id": self.image_numbers[image["id"]]}
        result["height"], result["width"] = self.sizes[image["id"]]
        if self.style == "lvis":
            for key in LVIS_LISTS:
                result[key] = [self.category_numbers[c] for c in image.get(key) or ()]
        return result

    def _instance(self, number: int, annotation: dict) -> dict:
        # Numbered anew: an id 0 reads as "unmatched" in COCO's evaluation.
        result = {"id": number, "image_id": self.image_numbers[annotation["image_id"]]}
        result["category_id"] = self.category_numbers[annotation["category_id"]]
        result.update({key: annotation[key] for key in ("bbox", "area", "iscrowd")})
        if self.style == "lvis" and annotation.get("ignore"):
            result["area"] = NO_RANGE
        if annotation.get("segmentation"):
            result["segmentation"] = annotation["segmentation"]
        return result


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
            segmentation (RLE); neither changed nor kept. May be empty: AP is then 0. Categories
            that the file does not have count for none of its classes.
        task: "bbox" or "segm". Size classes of detections go by the area of the box or mask.
        backend: "faster_coco_eval", "hotcoco", or "reference", which is pycocotools for COCO and
            the lvis package for LVIS.
        max_dets: detections that count per image (in COCO: and category); 0 is the format's own.
        per_class: add `AP-<class name>` for every class, if there is more than one; names as of
            `GroundTruth.class_names`.

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
        for k, name in enumerate(truth.class_names()):
            table[f"AP-{name}"] = _percent(precision[:, :, k, 0])
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
    """Fresh result records with what the task needs, by number; with the box left in, the libraries
    would take the area of masks from it."""
    shape = "segmentation" if task == "segm" else "bbox"
    unknown = {row["image_id"] for row in results} - truth.sizes.keys()
    if unknown:
        raise DataError(
            truth.source,
            f"{len(unknown)} images with results are not in it",
            "evaluate on the images of this file",
            f"first: image {min(unknown)}",
        )
    return [
        {
            "image_id": truth.image_numbers[row["image_id"]],
            # 0 is no category: such a result still takes its place among LVIS's 300 of an image.
            "category_id": truth.category_numbers.get(row["category_id"], 0),
            "score": row["score"],
            shape: row[shape],
        }
        for row in results
    ]


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
