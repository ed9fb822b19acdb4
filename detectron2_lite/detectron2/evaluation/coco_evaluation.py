"""Average precision by COCO's rules, for boxes and masks."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.env import not_in_lite
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from .evaluator import DatasetEvaluator, gather_on_main, write_into

__all__ = ["COCOEvaluator", "instances_to_coco_json", "predictions_of", "rle_for_json"]

logger = logging.getLogger(__name__)

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class COCOEvaluator(DatasetEvaluator):
    """AP of ``output["instances"]`` (pred_boxes, scores, pred_classes and maybe pred_masks).

    Inputs need "image_id". Masks are (N, H, W) at the size of the original image, for which
    "height" and "width" of the input are to be given to the model.

    Args:
        dataset_name: registered, with ``json_file`` in its metadata; otherwise it is converted to
            COCO's format, in ``output_dir``.
        tasks: of "bbox" and "segm"; None takes what the predictions contain.
        distributed: gather predictions from all ranks and score them on rank 0.
        output_dir: None writes no files; else ``coco_instances_results.json`` (COCO's result
            format) and ``instances_predictions.pth``.
        max_dets_per_image: None is COCO's 100. COCO counts at 1, 10 and this number, and AP is that
            at the largest of the three, so fewer than 10 cannot be asked for; with three numbers
            they can.
        use_fast_impl: accepted for compatibility; pycocotools is used in any case.
        allow_cached_coco: reuse a converted JSON that is already in ``output_dir``.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | Sequence[int] | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ) -> None:
        if kpt_oks_sigmas or (tasks is not None and "keypoints" in tasks):
            not_in_lite("COCOEvaluator for keypoints")
        if tasks is not None and not set(tasks) <= {"bbox", "segm"}:
            raise ValueError(f'tasks must be of "bbox" and "segm", got {tasks}')
        self._tasks = None if tasks is None else tuple(tasks)
        self._distributed = distributed
        self._output_dir = output_dir
        if max_dets_per_image is None:
            self._max_dets = (1, 10, 100)
        elif isinstance(max_dets_per_image, int):
            self._max_dets = (1, 10, max_dets_per_image)
        else:
            self._max_dets = tuple(max_dets_per_image)
        self._predictions: list[dict[str, Any]] = []
        self._results: OrderedDict[str, Any] = OrderedDict()
        self._metadata = MetadataCatalog.get(dataset_name)
        truth = self._load_ground_truth(dataset_name, allow_cached_coco)
        self._coco_api = truth
        # Test sets come without annotations: predictions are then only written.
        self._do_evaluation = "annotations" in truth.dataset

    def _load_ground_truth(self, dataset_name: str, allow_cached: bool) -> COCO:
        if self._metadata.get("json_file") is None:
            if self._output_dir is None:
                raise ValueError(
                    f"{dataset_name} has no json_file in its metadata, and must be converted to "
                    "COCO's format: give the evaluator an output_dir for that"
                )
            path = os.path.join(self._output_dir, f"{dataset_name}_coco_format.json")
            if comm.is_main_process():
                convert_to_coco_json(dataset_name, path, allow_cached=allow_cached)
            comm.synchronize()
            self._metadata.json_file = path
        source = self._metadata.json_file
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(PathManager.get_local_path(source))
        _complete(coco)
        return coco

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping]) -> None:
        """Take in a batch; masks are compressed at once."""
        self._predictions += predictions_of(inputs, outputs)

    def evaluate(self, img_ids: Sequence[int] | None = None) -> OrderedDict | dict:
        """Score the predictions.

        Args:
            img_ids: score these images only; None: all.

        Returns:
            {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>"}, "segm": ...} in
            percent, NaN where there is no ground truth. {} on other ranks than 0.

        Raises:
            AssertionError: for a predicted class that the dataset does not have.
        """
        predictions = gather_on_main(self._predictions, self._distributed)
        if predictions is None:
            return {}
        self._results = OrderedDict()
        if not predictions:
            logger.warning("COCOEvaluator was given no predictions at all: nothing to score")
            return {}
        if self._output_dir:
            write_into(self._output_dir, "instances_predictions.pth", predictions)
        self._evaluate_detections(predictions, img_ids)
        return copy.deepcopy(self._results)

    def _evaluate_detections(
        self, predictions: Sequence[Mapping[str, Any]], img_ids: Sequence[int] | None
    ) -> None:
        rows = self._with_category_ids([row for one in predictions for row in one["instances"]])
        if self._output_dir:
            write_into(self._output_dir, "coco_instances_results.json", rows)
        if not self._do_evaluation:
            logger.info("The ground truth has no annotations: nothing is scored")
            return
        for task in sorted(self._tasks or _tasks_of(rows)):
            scores = self._score(task, rows, img_ids)
            self._results[task] = scores

    def _with_category_ids(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Copies of the rows, with the ids of the JSON file in place of contiguous classes."""
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            return rows
        reverse = {index: category for category, index in mapping.items()}
        assert sorted(reverse) == list(range(len(reverse))), "contiguous ids are not contiguous"
        for predicted in {row["category_id"] for row in rows}:
            assert predicted < len(reverse), (
                f"the model predicted class {predicted}; the dataset has classes "
                f"0..{len(reverse) - 1} only: check NUM_CLASSES and the weights"
            )
        return [{**row, "category_id": reverse[row["category_id"]]} for row in rows]

    def _score(
        self, task: str, rows: Sequence[Mapping[str, Any]], img_ids: Sequence[int] | None
    ) -> dict[str, float]:
        """All metrics of one task, logged and returned."""
        if not rows:
            logger.warning("No predictions from the model: every AP of %s is NaN", task)
            return dict.fromkeys(_METRICS, float("nan"))
        run = _run_cocoeval(self._coco_api, rows, task, self._max_dets, img_ids)
        precision = run.eval["precision"]
        expected = {k: float(v) * 100 if v >= 0 else float("nan") for k, v in _summary(run).items()}
        logger.info("%s:\n%s", task, create_small_table(expected))
        names = self._metadata.get("thing_classes")
        if names is None or len(names) <= 1:
            return expected
        assert len(names) == precision.shape[2], (
            f"{len(names)} class names, but {precision.shape[2]} categories in the ground truth"
        )
        per_class = {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)}
        logger.info("Per-category %s AP:\n%s", task, _table(per_class))
        expected.update({f"AP-{name}": value * 100 for name, value in per_class.items()})
        return expected


def _complete(ground_truth: COCO) -> None:
    """Fill in what COCOeval reads but many files leave out: "iscrowd" and "area" (pixels)."""
    for annotation in ground_truth.anns.values():
        annotation.setdefault("iscrowd", 0)
        if "area" in annotation:
            continue
        if annotation.get("segmentation"):
            annotation["area"] = float(mask_util.area(ground_truth.annToRLE(annotation)))
        else:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]


def _tasks_of(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    found = {"bbox"}
    if any("segmentation" in row for row in rows):
        found.add("segm")
    if any("keypoints" in row for row in rows):
        not_in_lite("COCOEvaluator for keypoints")
    return found


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined (COCO marks the rest by -1); NaN if nothing is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")


def _table(per_class: Mapping[str, float]) -> str:
    cells = [(name, value * 100) for name, value in per_class.items()]
    columns = min(3, len(cells))
    rows = [
        list(itertools.chain(*cells[start : start + columns]))
        for start in range(0, len(cells), columns)
    ]
    return tabulate(rows, headers=["category", "AP"] * columns, tablefmt="pipe", floatfmt=".3f")


def _summary(run: COCOeval) -> dict[str, float]:
    """The six APs at the largest number of detections; -1 where there is no ground truth.

    pycocotools' own summary has AP50 and AP75 at that limit but AP always at 100.
    """
    precision, p = run.eval["precision"], run.params
    # precision is (T IoU thresholds, R recalls, K categories, A areas, M limits)
    largest = precision[..., -1]

    def value(thresholds: slice | int, area: str) -> float:
        mean = _mean(largest[thresholds][..., p.areaRngLbl.index(area)])
        return -1.0 if np.isnan(mean) else mean

    at50, at75 = (int(np.argmin(np.abs(p.iouThrs - t))) for t in (0.5, 0.75))
    every = slice(None)
    values = [
        value(every, "all"),
        value(at50, "all"),
        value(at75, "all"),
        *(value(every, size) for size in ("small", "medium", "large")),
    ]
    return dict(zip(_METRICS, values))


def _run_cocoeval(
    ground_truth: COCO,
    rows: Sequence[Mapping[str, Any]],
    task: str,
    max_dets: Sequence[int],
    img_ids: Sequence[int] | None,
) -> COCOeval:
    if task == "segm":
        # Without its box a result gets the area of its mask, which the size classes need.
        rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(ground_truth, ground_truth.loadRes(copy.deepcopy(list(rows))), task)
        run.params.maxDets = list(max_dets)
        if img_ids is not None:
            run.params.imgIds = list(img_ids)
        run.evaluate()
        run.accumulate()
    return run


def predictions_of(
    inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping]
) -> Iterator[dict[str, Any]]:
    """What evaluators keep of a batch: {"image_id", "instances": rows in COCO's result format}."""
    for given, output in zip(inputs, outputs):
        if "instances" in output:
            number = given["image_id"]
            rows = instances_to_coco_json(output["instances"].to("cpu"), number)
            yield {"image_id": number, "instances": rows}


def rle_for_json(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed RLE of an (H, W) mask; its counts are text, since JSON has no bytes."""
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict[str, Any]]:
    """Predictions of one image (on the CPU) in COCO's result format.

    Args:
        instances: pred_boxes, scores, pred_classes; pred_masks (N, H, W) become RLE.
    """
    count = len(instances)
    if count == 0:
        return []
    boxes = BoxMode.convert(
        instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
    ).tolist()
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    rows = [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score}
        for category, box, score in zip(classes, boxes, scores)
    ]
    if instances.has("pred_masks"):
        for row, mask in zip(rows, instances.pred_masks):
            row["segmentation"] = rle_for_json(mask.numpy())
    if instances.has("pred_keypoints"):
        not_in_lite("COCOEvaluator for keypoints")
    return rows
