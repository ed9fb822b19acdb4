"""Mask IoU against human masks, box by box: the measure of a labeler.

Crowds are left out. Sizes are those of the box, in square pixels, in half-open bins.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.masks import SIZE_BINS, decode_segmentation, mask_iou, size_bin
from pseudolabel.store import read_labels, refuse_bare
from pseudolabel.validation import LEFT_OUT_LATER, read_checked


def summarize_ious(rows: Iterable[tuple[float, float, int]]) -> dict[str, float]:
    """Means over instances, over classes and over the size bins of the box.

    Args:
        rows: (IoU, box area in square pixels, category id) of each instance.

    Returns:
        `mIoU` (instance mean), `class_mIoU` (mean over the classes present), `small`, `medium`,
        `large` and the counts `n`, `n_small`, ...; NaN where there is no instance.
    """
    rows = list(rows)
    ious = np.array([row[0] for row in rows])
    bins = np.array([size_bin(row[1]) for row in rows])
    classes = np.array([row[2] for row in rows])
    result = {
        "mIoU": _mean(ious),
        "class_mIoU": _mean(np.array([ious[classes == c].mean() for c in np.unique(classes)])),
    }
    for name in SIZE_BINS:
        result[name] = _mean(ious[bins == name])
    result["n"] = len(rows)
    for name in SIZE_BINS:
        result[f"n_{name}"] = int((bins == name).sum())
    return result


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


class TrueMasks:
    """The human masks of a COCO JSON, by annotation id; decoded on demand.

    Args:
        json_file: COCO JSON with a segmentation in every annotation that is no crowd.

    Raises:
        DataError: the file has an error that `read_checked` names.
    """

    def __init__(self, json_file: str | Path):
        data = read_checked(json_file, tolerated=LEFT_OUT_LATER)
        self.json_file, self.images = json_file, data["images"]
        self.sizes = {i["id"]: (i["height"], i["width"]) for i in self.images}
        self.annotations = {a["id"]: a for a in data["annotations"] if not a.get("iscrowd", 0)}

    def require_masks(self) -> None:
        """Refuses a file in which an annotation, other than a crowd, has no mask.

        Raises:
            DataError: naming the first such annotation.
        """
        bare = [key for key, a in self.annotations.items() if not a.get("segmentation")]
        if bare:
            raise DataError(
                self.json_file,
                f"{len(bare)} of {len(self.annotations)} annotations have no mask to compare with",
                "give human masks for DATASETS.TEST or set it to ()",
                f"annotation {bare[0]}",
            )

    def compare(
        self, annotation_id: int, segmentation: dict, image_id: int | None = None
    ) -> tuple[float, float, int]:
        """(IoU, box area, category id) of one predicted mask.

        Args:
            image_id: of the predicted mask, where its file states one: two data sets may have the
                same annotation ids.

        Raises:
            DataError: the annotation is unknown or on another image, or either mask is missing or
                malformed.
        """
        record = f"annotation {annotation_id}"
        truth = self.annotations.get(annotation_id)
        if truth is None:
            raise DataError(self.json_file, "unknown annotation", "use its own labels", record)
        if image_id not in (None, truth["image_id"]):
            problem = f"is on image {truth['image_id']}, the label is on image {image_id}"
            remedy = "give the human masks of the same data set"
            raise DataError(self.json_file, problem, remedy, record)
        if not truth.get("segmentation"):
            raise DataError(
                self.json_file, "has no mask to compare with", "evaluate on human masks", record
            )
        height, width = self.sizes[truth["image_id"]]
        try:
            masks = [
                decode_segmentation(s, height, width) for s in (truth["segmentation"], segmentation)
            ]
        except ValueError as error:
            raise DataError(self.json_file, str(error), "correct the mask", record) from error
        box_area = truth["bbox"][2] * truth["bbox"][3]
        return mask_iou(*masks), box_area, truth["category_id"]


def score_label_file(label_file: str | Path, truth_file: str | Path) -> dict[str, float]:
    """Mask IoU of a pseudo-label file against human masks, matched by annotation id.

    Returns:
        As `summarize_ious`.

    Raises:
        DataError: a file is malformed, a human-masked instance has no label or the other way
            round, or the files are of different images.
    """
    truth, found = TrueMasks(truth_file), read_labels(label_file)["annotations"]
    refuse_bare(label_file, found)
    labels = {a["id"]: a for a in found if not a.get("iscrowd", 0)}
    missing = truth.annotations.keys() - labels.keys()
    if missing:
        raise DataError(
            label_file,
            f"{len(missing)} instances of {truth_file} have no label, first id {min(missing)}",
            "label the whole file; look for rejects beside it",
        )
    return summarize_ious(
        truth.compare(key, label["segmentation"], label["image_id"])
        for key, label in sorted(labels.items())
    )
