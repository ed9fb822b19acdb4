"""Evaluation of detections by COCO's or LVIS's rules, with either build of Detectron2."""

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from pseudolabel.ap import MAX_DETS, GroundTruth, average_precision, require_backend
from pseudolabel.errors import DataError
from pseudolabel.files import write_json
from pseudolabel.masks import encode_rle
from pseudolabel.validation import check_images, refuse_first

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"
# Defects of an image that can be evaluated on nevertheless.
READABLE = frozenset({"image_one_pixel"})
TABLE_COLUMNS = 3


class InstanceEvaluator(DatasetEvaluator):
    """AP of `output["instances"]`: pred_boxes, scores, pred_classes and, for "segm", pred_masks.

    Masks are (N, H, W) in the size of the original image; bool, or float with the threshold .5.
    The metadata of the data set must name its `json_file`; its `evaluator_type` is "coco" or
    "lvis".

    Args:
        dataset_name: as registered.
        tasks: of "bbox" and "segm".
        output_dir: gets the predictions in COCO's result format; None writes nothing.
        backend, max_dets, per_class: as of `average_precision`.

    Raises:
        DataError: the data set cannot be evaluated so; see `read_ground_truth`.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] = ("bbox", "segm"),
        output_dir: str | Path | None = None,
        *,
        backend: str = "faster_coco_eval",
        max_dets: int = 0,
        per_class: bool = True,
    ):
        require_backend(backend)
        self.truth = read_ground_truth(dataset_name, tasks)
        self.tasks = tuple(tasks)
        self.output_dir = output_dir
        self.options = {"backend": backend, "max_dets": max_dets, "per_class": per_class}
        mapping = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            mapping = {c["id"]: index for index, c in enumerate(self.truth.categories)}
        self.category_ids = {index: category for category, index in mapping.items()}
        self.reset()

    def reset(self) -> None:
        self._rows: dict[Any, list[dict]] = {}

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Takes in a batch; masks are compressed at once.

        Raises:
            ValueError: a score or box is not finite, or a class is none of the data set's.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            rows = result_rows(output["instances"], sample["image_id"], "segm" in self.tasks)
            for row in rows:
                if row["category_id"] not in self.category_ids:
                    raise ValueError(
                        f"image {sample['image_id']}: the model predicts class "
                        f"{row['category_id']}, the data set has {len(self.category_ids)} classes; "
                        "check MODEL.ROI_HEADS.NUM_CLASSES and MODEL.WEIGHTS"
                    )
                row["category_id"] = self.category_ids[row["category_id"]]
            self._rows[sample["image_id"]] = rows

    def evaluate(self) -> OrderedDict | None:
        """{task: {metric: percent}}, with NaN where there is no ground truth.

        Empty where the list of annotations is, for a test set whose labels are not public: the
        predictions are written all the same. None but on the main process.
        """
        parts = comm.gather(self._rows)
        if not comm.is_main_process():
            return None
        # By image, so that one that two ranks have seen (a sampler may pad) counts once.
        images = {image: rows for part in reversed(parts) for image, rows in part.items()}
        rows = [row for image in sorted(images) for row in images[image]]
        if self.output_dir:
            write_json(Path(self.output_dir, RESULTS_FILE), rows)
        results = OrderedDict()
        if not self.truth.annotations:
            logger.info("%s: no annotations to evaluate against", self.truth.source)
            return results
        missed = len(self.truth.sizes.keys() - images.keys())
        if missed:
            logger.warning(
                "%d of %d images of %s were not given to the model: their instances are missed",
                *(missed, len(self.truth.sizes), self.truth.source),
            )
        for task in self.tasks:
            results[task] = average_precision(self.truth, rows, task, **self.options)
            logger.info("%s, %d detections:\n%s", task, len(rows), _tables(results[task]))
        return results


def evaluator_from_config(cfg: CfgNode, dataset_name: str, output_dir: str) -> InstanceEvaluator:
    """The evaluator that `TEST.EVALUATOR` and `MODEL.MASK_ON` ask for."""
    options = cfg.TEST.EVALUATOR
    evaluator = InstanceEvaluator(
        dataset_name,
        _tasks(cfg),
        output_dir,
        backend=options.BACKEND,
        max_dets=options.MAX_DETS,
        per_class=options.PER_CLASS,
    )
    counted = options.MAX_DETS or MAX_DETS[evaluator.truth.style]
    if counted > cfg.TEST.DETECTIONS_PER_IMAGE:
        logger.warning(
            "%s: %d detections per image would count, but the model gives %d at most; raise "
            "TEST.DETECTIONS_PER_IMAGE to use them",
            *(dataset_name, counted, cfg.TEST.DETECTIONS_PER_IMAGE),
        )
    return evaluator


def check_instance_evaluation(cfg: CfgNode) -> None:
    """Refuses what could be found wrong only after the training otherwise.

    Raises:
        DataError: an unknown or missing backend, a negative limit, or a test set that cannot be
            evaluated, as of `read_ground_truth` and `check_test_images`.
    """
    require_backend(cfg.TEST.EVALUATOR.BACKEND)
    if cfg.TEST.EVALUATOR.MAX_DETS < 0:
        raise DataError(
            "TEST.EVALUATOR.MAX_DETS",
            f"is {cfg.TEST.EVALUATOR.MAX_DETS}",
            "give the number of detections that count, or 0 for the format's own",
        )
    for name in cfg.DATASETS.TEST:
        check_test_images(name, read_ground_truth(name, _tasks(cfg)).images)


def check_test_images(dataset_name: str, images: Sequence[Mapping]) -> None:
    """Loads a test set as the evaluation will, and opens its images up to their headers.

    The headers of COCO's 5,000 validation images take a second or two on a local disk.

    Args:
        dataset_name: as registered; images are looked at where its metadata names `image_root`.
        images: the entries of its JSON, but for rejected ones.

    Raises:
        DataError: the data set cannot be loaded, or an image is missing, empty, unreadable, of 16
            bit, or of another size than stated; with the number of further ones.
    """
    DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    root = metadata.get("image_root")
    if root is not None:
        links = metadata.get("allow_links", False)
        defects = check_images({"images": list(images)}, root, pixels=False, allow_links=links)
        refuse_first(metadata.json_file, defects, READABLE)


def read_ground_truth(dataset_name: str, tasks: Sequence[str]) -> GroundTruth:
    """The annotations of a registered data set, fit for the tasks.

    Raises:
        DataError: the data set has no JSON, is of another kind than COCO and LVIS, or has
            annotations without masks while "segm" is asked for.
    """
    metadata = MetadataCatalog.get(dataset_name)
    json_file, style = metadata.get("json_file"), metadata.get("evaluator_type", "coco")
    if json_file is None or style not in MAX_DETS:
        raise DataError(
            dataset_name,
            f"has no COCO or LVIS annotation file (file {json_file}, evaluator type {style!r})",
            "list it in DATASETS.REGISTER",
        )
    truth = GroundTruth.read(json_file, style)
    if "segm" in tasks:
        truth.require_masks()
    return truth


def result_rows(instances: Any, image_id: Any, masks: bool) -> list[dict]:
    """Predictions of one image in COCO's result format, but with the model's class numbers.

    Args:
        instances: Detectron2's `Instances`, on any device.
        masks: add the run-length codes of `pred_masks`; without any instance they may be absent.

    Raises:
        ValueError: a score or a box is not finite.
    """
    if len(instances) == 0:
        return []
    instances = instances.to("cpu")
    boxes = instances.pred_boxes.tensor.detach().float().numpy().copy()
    scores = instances.scores.detach().float().numpy()
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"image {image_id}: a predicted box or score is not finite")
    boxes[:, 2:] -= boxes[:, :2]
    rows = [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(
            instances.pred_classes.tolist(), boxes.tolist(), scores.tolist()
        )
    ]
    if masks:
        for row, mask in zip(rows, instances.pred_masks, strict=True):
            inside = mask if mask.dtype == torch.bool else mask >= 0.5
            row["segmentation"] = encode_rle(inside.numpy())
    return rows


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)


def _tables(numbers: Mapping[str, float]) -> str:
    """The summary in one line, then in columns the classes that have instances."""
    summary = [name for name in numbers if not name.startswith("AP-")]
    lines = ["  ".join(f"{name} {numbers[name]:.2f}" for name in summary)]
    every = [(name[3:], numbers[name]) for name in numbers if name.startswith("AP-")]
    classes = [(name, ap) for name, ap in every if not math.isnan(ap)]
    width = max((len(name) for name, _ in classes), default=0)
    cells = [f"{name:<{width}} {ap:6.2f}" for name, ap in classes]
    for start in range(0, len(cells), TABLE_COLUMNS):
        lines.append(" | ".join(cells[start : start + TABLE_COLUMNS]))
    if len(classes) < len(every):
        lines.append(f"({len(every) - len(classes)} classes without instances are left out)")
    return "\n".join(lines)
