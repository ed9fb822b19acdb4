"""Average precision by LVIS's rules: only verified categories of an image count."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .coco_evaluation import predictions_of
from .evaluator import DatasetEvaluator, gather_on_main, write_into

__all__ = ["LVISEvaluator"]

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
_MAX_DETS = 300


class LVISEvaluator(DatasetEvaluator):
    """AP of ``output["instances"]`` (pred_boxes, scores, pred_classes and maybe pred_masks).

    Needs the ``lvis`` package, which is imported here and nowhere else. Its version 0.5.3 asks
    numpy for a name that numpy 1.24 dropped; while it evaluates it is given that name, and nobody
    else is.

    Args:
        dataset_name: registered, with ``json_file`` (LVIS's format) in its metadata. A predicted
            class is looked up in ``thing_dataset_id_to_contiguous_id``; without such a map the
            category id is the class plus 1.
        tasks: of "bbox" and "segm"; None takes what the predictions contain.
        distributed: gather predictions from all ranks and score them on rank 0.
        output_dir: None writes no files; else ``lvis_instances_results.json`` (COCO's result
            format) and ``instances_predictions.pth``.
        max_dets_per_image: detections of an image that count, best scores first; None is 300.

    Raises:
        ImportError: without the ``lvis`` package. ValueError: for other tasks.
        AttributeError: when the dataset has no ``json_file``.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ) -> None:
        if tasks is not None and not set(tasks) <= {"bbox", "segm"}:
            raise ValueError(f'tasks must be of "bbox" and "segm", got {tasks}')
        self._tasks = None if tasks is None else tuple(tasks)
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = _MAX_DETS if max_dets_per_image is None else max_dets_per_image
        self._predictions: list[dict[str, Any]] = []
        self._metadata = MetadataCatalog.get(dataset_name)
        truth = self._metadata.json_file
        self._lvis_api = _lvis().LVIS(PathManager.get_local_path(truth))
        # Test sets come without annotations: predictions are then only written.
        self._do_evaluation = bool(self._lvis_api.get_ann_ids())

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping]) -> None:
        """Take in a batch; inputs need "image_id". Masks are compressed at once."""
        self._predictions += predictions_of(inputs, outputs)

    def evaluate(self) -> OrderedDict | dict:
        """Score the predictions.

        Returns:
            {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}, "segm": ...}
            in percent; r, c and f are rare, common and frequent categories. -100 where there is no
            ground truth, NaN without any detection. {} on other ranks than 0.

        Raises:
            AssertionError: for a predicted class that the dataset does not have.
        """
        predictions = gather_on_main(self._predictions, self._distributed)
        if not predictions:
            if predictions is not None:
                logger.warning("LVISEvaluator was given no predictions at all: nothing to score")
            return {}
        rows = self._with_category_ids([row for one in predictions for row in one["instances"]])
        if self._output_dir:
            write_into(self._output_dir, "instances_predictions.pth", predictions)
            write_into(self._output_dir, "lvis_instances_results.json", rows)
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        if not self._do_evaluation:
            logger.info("The ground truth has no annotations: nothing is scored")
            return results
        for task in sorted(self._tasks or _tasks_of(rows)):
            results[task] = self._score(task, rows)
            logger.info("%s by LVIS's rules:\n%s", task, create_small_table(results[task]))
        return results

    def _with_category_ids(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Copies of the rows, with the ids of the JSON file in place of contiguous classes."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            return [{**row, "category_id": row["category_id"] + 1} for row in rows]
        category_of = {index: category for category, index in mapping.items()}
        unknown = {row["category_id"] for row in rows} - category_of.keys()
        assert not unknown, (
            f"the model predicted class {min(unknown)}, which is none of the dataset's "
            f"{len(category_of)}: check NUM_CLASSES and the weights"
        )
        return [{**row, "category_id": category_of[row["category_id"]]} for row in rows]

    def _score(self, task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        if not rows:
            logger.warning("No predictions from the model: every AP of %s is NaN", task)
            return dict.fromkeys(_METRICS, float("nan"))
        if task == "segm":
            # Without its box a result gets the area of its mask, which the size classes need.
            rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
        package = _lvis()
        found = package.LVISResults(
            self._lvis_api, copy.deepcopy(list(rows)), max_dets=self._max_dets
        )
        run = package.LVISEval(self._lvis_api, found, task)
        with _numpy_with_float(package.eval):
            run.run()
        values = run.get_results()
        return {metric: 100 * float(values[metric]) for metric in _METRICS}


def _tasks_of(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    return {"bbox", "segm"} if any("segmentation" in row for row in rows) else {"bbox"}


def _lvis() -> ModuleType:
    try:
        import lvis
        import lvis.eval
    except ImportError as error:
        raise ImportError("LVISEvaluator needs the LVIS API: pip install lvis") from error
    return lvis


class _NumpyWithFloat:
    """numpy, and ``float`` as numpy had it before 1.24."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextmanager
def _numpy_with_float(module: ModuleType) -> Iterator[None]:
    """Inside, ``np`` of that one module has ``float``; numpy itself is left alone."""
    before = module.np
    module.np = _NumpyWithFloat()
    try:
        yield
    finally:
        module.np = before
