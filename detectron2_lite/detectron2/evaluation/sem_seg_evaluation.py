"""Intersection over union and accuracy of semantic segmentation."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from .coco_evaluation import rle_for_json
from .evaluator import DatasetEvaluator, gather_on_main, write_into

__all__ = ["SemSegEvaluator", "load_image_into_numpy_array"]

logger = logging.getLogger(__name__)


def load_image_into_numpy_array(filename: str, dtype: Any = None) -> np.ndarray:
    """Read an image file as it is: (H, W) for label maps."""
    with PathManager.open(filename, "rb") as stream:
        return np.array(Image.open(stream), dtype=dtype)


class SemSegEvaluator(DatasetEvaluator):
    """mIoU of ``output["sem_seg"]``: (K, H, W) scores at the size of the label map.

    Inputs need "file_name", by which the label map of the dataset is found. Upstream adds
    boundary IoU where OpenCV is installed; here it is never computed.

    Args:
        dataset_name: registered, with ``sem_seg_file_name`` in its dicts and ``stuff_classes`` and
            ``ignore_label`` in its metadata. Predictions are written with category ids if there is
            ``stuff_dataset_id_to_contiguous_id``, else with class indices.
        distributed: gather counts from all ranks and score them on rank 0.
        output_dir: None writes no files; else ``sem_seg_predictions.json`` (an RLE for each class
            of each image) and ``sem_seg_evaluation.pth``.
        sem_seg_loading_fn: ``f(file name, dtype=int)`` gives a label map (H, W).
        num_classes, ignore_label: deprecated; the metadata has them.

    Raises:
        KeyError: for an unknown dataset. AttributeError: for missing metadata.
        AssertionError: when num_classes is not the number of ``stuff_classes``.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_image_into_numpy_array,
        num_classes: int | None = None,
        ignore_label: int | None = None,
    ) -> None:
        if num_classes is not None or ignore_label is not None:
            logger.warning("num_classes and ignore_label of SemSegEvaluator are deprecated")
        self._output_dir, self._distributed = output_dir, distributed
        self.sem_seg_loading_fn = sem_seg_loading_fn
        self.input_file_to_gt_file = {
            record["file_name"]: record["sem_seg_file_name"]
            for record in DatasetCatalog.get(dataset_name)
        }
        metadata = MetadataCatalog.get(dataset_name)
        names: list[str] = metadata.stuff_classes
        self._class_names, self._num_classes = names, len(names)
        assert num_classes in (None, self._num_classes), (
            f"num_classes is {num_classes}, but {dataset_name} has {self._num_classes} classes"
        )
        self._ignore_label = metadata.ignore_label if ignore_label is None else ignore_label
        category_to_class = metadata.get("stuff_dataset_id_to_contiguous_id")
        self._category_of = (
            None if category_to_class is None else {i: c for c, i in category_to_class.items()}
        )
        self.reset()

    def reset(self) -> None:
        """Forget all counts and predictions."""
        self._predictions: list[dict[str, Any]] = []
        # Rows are predictions, columns the truth; the last of each is "no class".
        side = self._num_classes + 1
        self._conf_matrix = np.zeros((side, side), dtype=np.int64)

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping]) -> None:
        """Count a batch.

        Raises:
            ValueError: naming the label map, when it has labels that are neither a class nor
                ``ignore_label``, or another size than the prediction.
        """
        for given, output in zip(inputs, outputs):
            predicted = output["sem_seg"].argmax(0).numpy(force=True)
            path = self.input_file_to_gt_file[given["file_name"]]
            truth = np.array(self.sem_seg_loading_fn(path, dtype=int))
            self._count(predicted, truth, path)
            if self._output_dir:
                self._predictions += self.encode_json_sem_seg(predicted, given["file_name"])

    def _count(self, predicted: np.ndarray, truth: np.ndarray, path: str) -> None:
        if truth.shape != predicted.shape:
            raise ValueError(
                f"{path}: the label map is {truth.shape}, the prediction {predicted.shape}: give "
                "the model the height and width of the original image"
            )
        truth[truth == self._ignore_label] = self._num_classes
        if truth.min(initial=0) < 0 or truth.max(initial=0) > self._num_classes:
            raise ValueError(
                f"{path}: labels reach from {truth.min()} to {truth.max()}, but there are "
                f"{self._num_classes} classes and ignore_label is {self._ignore_label}"
            )
        side = self._num_classes + 1
        cells = side * predicted.astype(np.int64) + truth
        self._conf_matrix += np.bincount(cells.ravel(), minlength=side**2).reshape(side, side)

    def encode_json_sem_seg(
        self, sem_seg: np.ndarray, input_file_name: str
    ) -> list[dict[str, Any]]:
        """A label map (H, W) as one {"file_name", "category_id", "segmentation"} per class."""

        def row(label: int) -> dict[str, Any]:
            category = label if self._category_of is None else self._category_of[label]
            rle = rle_for_json(sem_seg == label)
            return {"file_name": input_file_name, "category_id": category, "segmentation": rle}

        return [row(label) for label in np.unique(sem_seg).tolist()]

    def evaluate(self) -> OrderedDict | dict:
        """Score what was counted.

        Returns:
            {"sem_seg": {"mIoU", "fwIoU", "IoU-<class>", "mACC", "pACC", "ACC-<class>"}} in percent;
            fwIoU weighs classes by their share of the pixels, pACC is the share of correct pixels.
            Classes without ground truth are NaN and in no mean. {} on other ranks than 0.
        """
        gathered = gather_on_main([(self._conf_matrix, self._predictions)], self._distributed)
        if gathered is None:
            return {}
        matrix = np.sum([counts for counts, _ in gathered], axis=0)
        scores = _scores(matrix[:-1, :-1], self._class_names)
        results = OrderedDict(sem_seg=scores)
        if self._output_dir:
            rows = [row for _, predictions in gathered for row in predictions]
            write_into(self._output_dir, "sem_seg_predictions.json", rows)
            write_into(self._output_dir, "sem_seg_evaluation.pth", scores)
        logger.info("%s", results)
        return results


def _scores(matrix: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Metrics in percent of a confusion matrix (predicted class, true class) of pixel counts."""
    hits, true, predicted = np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1)
    known = true > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = np.where(known, hits / true, np.nan)
        # A class that is predicted but never true has no IoU; its pixels count against the others.
        iou = np.where(known, hits / (true + predicted - hits), np.nan)
        share = true / true.sum()
        total = float(hits.sum() / true.sum())
    scores = {"mIoU": _mean_of(iou[known]), "fwIoU": float((share * iou)[known].sum())}
    scores.update({f"IoU-{name}": float(value) for name, value in zip(names, iou)})
    scores.update(mACC=_mean_of(accuracy[known]), pACC=total)
    scores.update({f"ACC-{name}": float(value) for name, value in zip(names, accuracy)})
    return {key: 100 * value for key, value in scores.items()}


def _mean_of(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
