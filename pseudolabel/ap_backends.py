"""Libraries that match detections with ground truth, behind one call.

Each backend is a function (ground truth, result records, task, most detections) -> precision. The
records are the backend's to change. Precision is a float array (T, R, K, A) of 10 IoU thresholds,
101 recalls, the categories by id and four areas (all, small, medium, large); -1 where a category
has no instance of that area.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_rle

if TYPE_CHECKING:
    from pseudolabel.ap import GroundTruth

THRESHOLDS, RECALLS, AREAS = 10, 101, 4

Backend = Callable[["GroundTruth", list[dict], str, int], np.ndarray]


@contextlib.contextmanager
def numpy_float_alias() -> Iterator[None]:
    """Inside, `numpy.float` is `float`, as it was before numpy 1.24.

    The `lvis` package 0.5.3 asks for it while it evaluates, and with it Detectron2's stock
    `LVISEvaluator`. Outside, numpy is as it was, also after an exception.
    """
    if "float" in vars(np):
        yield
        return
    np.float = float
    try:
        yield
    finally:
        del np.float


def lvis_rows(rows: list[dict], task: str, most: int) -> list[dict]:
    """The result records that LVIS looks at.

    Of each image the `most` best-scored, of whatever category, with ties going to the earlier one;
    and of these the ones that have an area.
    """
    images = defaultdict(list)
    for row in rows:
        images[row["image_id"]].append(row)
    kept = []
    for group in images.values():
        if len(group) > most:
            group = sorted(group, key=lambda row: -row["score"])[:most]
        kept.extend(group)
    return [row for row in kept if _area(row, task) > 0]


def match_faster(truth: GroundTruth, rows: list[dict], task: str, max_dets: int) -> np.ndarray:
    """faster-coco-eval, COCO and LVIS.

    One category at a time and on its own images alone: categories do not influence each other, and
    a table of all images times all categories is mostly empty (LVIS: 20 million pairs). Overlaps
    are pycocotools', which reads run-length codes as they are.
    """
    if truth.style == "lvis":
        rows = lvis_rows(rows, task, max_dets)
    data = truth.dataset()
    images = {image["id"]: image for image in data["images"]}
    known, found = _by_category(data["annotations"]), _by_category(rows)
    precision = np.full((THRESHOLDS, RECALLS, len(data["categories"]), AREAS), -1.0)
    for k, category in enumerate(data["categories"]):
        instances, detections = known[category["id"]], found[category["id"]]
        if not instances:
            continue
        if task == "segm":
            for instance in instances:
                instance["segmentation"] = _run_length(instance, images[instance["image_id"]])
        for index, row in enumerate(detections):
            row.update(id=index + 1, iscrowd=0, area=_area(row, task))
        seen = {record["image_id"] for record in (*instances, *detections)}
        part = {"images": [images[key] for key in seen], "categories": [category]}
        sides = [{**part, "annotations": records} for records in (instances, detections)]
        precision[:, :, k] = _match_category(*sides, task, max_dets, truth.style == "lvis")
    return precision


def _match_category(
    truth: dict, detections: dict, task: str, max_dets: int, lvis: bool
) -> np.ndarray:
    """Precision (T, R, A) of one category from its data sets in COCO's format."""
    from faster_coco_eval import COCO, COCOeval_faster

    sides = COCO(truth), COCO(detections)
    shape = "segmentation" if task == "segm" else "bbox"

    def overlaps(image_id: int, _category_id: int) -> np.ndarray | list:
        """IoU (detections by falling score, instances) in one image."""
        true, made = (side.imgToAnns[image_id] for side in sides)
        order = np.argsort([-row["score"] for row in made], kind="stable")[:max_dets]
        return coco_rle.iou(
            [made[i][shape] for i in order],
            [row[shape] for row in true],
            [row["iscrowd"] for row in true],
        )

    run = COCOeval_faster(*sides, task, print_function=_quiet, lvis_style=lvis)
    run.params.maxDets = [max_dets]
    run.params.compute_rle = False
    run.computeIoU = overlaps
    run.evaluate()
    run.accumulate()
    return np.asarray(run.eval["precision"])[:, :, 0, :, -1]


def _by_category(records: list[dict]) -> defaultdict[int, list[dict]]:
    groups = defaultdict(list)
    for record in records:
        groups[record["category_id"]].append(record)
    return groups


def _run_length(annotation: dict, image: dict) -> dict:
    segmentation, size = annotation["segmentation"], (image["height"], image["width"])
    if isinstance(segmentation, list):
        return coco_rle.merge(coco_rle.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return coco_rle.frPyObjects(segmentation, *size)
    return segmentation


def _area(row: dict, task: str) -> float:
    if task == "segm":
        # One by one: pycocotools 2.0.11 fails on a list of more than 255 with numpy 2.
        return float(coco_rle.area(row["segmentation"]))
    return row["bbox"][2] * row["bbox"][3]


def match_hotcoco(truth: GroundTruth, rows: list[dict], task: str, max_dets: int) -> np.ndarray:
    """hotcoco (optional), COCO and LVIS."""
    import hotcoco

    lvis = truth.style == "lvis"
    known = hotcoco.COCO(truth.dataset())
    if lvis:
        # None: they are cut already, and the library is not to cut them at its own 300.
        found = known.load_res(lvis_rows(rows, task, max_dets)).cap_detections_per_image(None)
    else:
        found = known.load_res(rows)
    run = hotcoco.COCOeval(known, found, task, lvis_style=lvis)
    run.params.max_dets = [max_dets]
    run.evaluate()
    run.accumulate()
    return np.asarray(run.eval["precision"])[..., -1]


def match_reference(truth: GroundTruth, rows: list[dict], task: str, max_dets: int) -> np.ndarray:
    """pycocotools for COCO, the lvis package for LVIS."""
    if truth.style == "lvis":
        return _match_lvis(truth, rows, task, max_dets)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        known, found = COCO(), COCO()
        known.dataset = truth.dataset()
        known.createIndex()
        if rows:
            found = known.loadRes(rows)
        else:
            # pycocotools looks at the first result to learn the task.
            found.dataset = {**known.dataset, "annotations": []}
            found.createIndex()
        run = COCOeval(known, found, task)
        run.params.maxDets = [max_dets]
        run.evaluate()
        run.accumulate()
    return run.eval["precision"][..., -1]


def _match_lvis(truth: GroundTruth, rows: list[dict], task: str, max_dets: int) -> np.ndarray:
    from lvis import LVIS, LVISEval, LVISResults

    class InMemory(LVIS):
        """The package reads a file name; this one is given what the file holds."""

        def _load_json(self, path: dict) -> dict:
            return path

    known = InMemory(truth.dataset())
    if rows:
        found = LVISResults(known, rows, max_dets)
    else:
        # As of pycocotools above. `LVISEval` accepts no other class.
        found = LVISResults.__new__(LVISResults)
        found.logger, found.dataset = known.logger, {**known.dataset, "annotations": []}
        found._create_index()
    run = LVISEval(known, found, task)
    with numpy_float_alias():
        run.evaluate()
        run.accumulate()
    return run.eval["precision"]


def _quiet(*_: Any) -> None:
    """In place of a library's printing."""


# Name in the config -> (package that must be there, matching function).
BACKENDS: dict[str, tuple[str, Backend]] = {
    "faster_coco_eval": ("faster_coco_eval", match_faster),
    "hotcoco": ("hotcoco", match_hotcoco),
    "reference": ("pycocotools", match_reference),
}
