"""Mask IoU against human masks at many thresholds on probability, for one forward pass.

Shape legend: T thresholds, N instances.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from mal.categories import category_classes
from mal.labeler import MALLabeler
from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.label_job import read_job_image
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.masks import SIZE_BINS, size_bin_index, xywh_to_xyxy
from pseudolabel.quality import MEASURES
from pseudolabel.store import BoxFile, ImageJob, box_problem

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 19))


def threshold_sweep(
    labeler: MALLabeler,
    truth_file: str | Path,
    images: str | Path,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    limit: int = 0,
    seed: int = 0,
    allow_links: bool = False,
) -> dict[str, Any]:
    """Labels human-masked boxes at every threshold and compares.

    Records are those of a label job at that threshold, filled boxes included; the network runs
    once. Crowds, boxes without a human mask, boxes that a label job would reject and, where the
    labeler has to be told categories, those of categories that it does not know are left out.

    Args:
        labeler: whose masks are cut.
        truth_file: COCO or LVIS JSON with human masks of all or some of its boxes.
        images: folder of the images.
        thresholds: T values in [0, 1].
        limit: images at most, drawn at random; 0 takes all.
        seed: of that draw.
        allow_links: whether links in `images` may lead out of it.

    Returns:
        What `tools/report.py --sweep` reads: `thresholds`, `mIoU` (mean over instances at each),
        `chosen` (the labeler's threshold; None where it has different ones by size), `instances`,
        `images`, `by_size` (the same for small, medium and large boxes), and the hashes of truth
        and weights.

    Raises:
        DataError: the file is malformed or holds no human mask, or an image cannot be read.
    """
    truth, jobs = TrueMasks(truth_file), []
    for job in BoxFile(truth_file).jobs:
        size = job.image["height"], job.image["width"]
        usable = [
            a
            for a in job.boxes
            if _has_mask(truth, a) and _is_known(labeler, a) and not box_problem(a, *size)
        ]
        jobs += [ImageJob(job.image, usable)] if usable else []
    if not jobs:
        known = " of a category that the labeler knows" if labeler.needs_categories else ""
        raise DataError(truth_file, f"holds no human mask{known}", "give a JSON with human masks")
    order = np.random.default_rng(seed).permutation(len(jobs))[: limit or None]
    chosen, areas, ious = labeler.predictor.thresholds, [], []
    with _replaying(labeler) as cut:
        for place in np.sort(order):
            job = jobs[place]
            image = read_job_image(job, truth_file, images, allow_links)
            boxes = xywh_to_xyxy(np.array([a["bbox"] for a in job.boxes], dtype=np.float64))
            classes = [a["category_id"] for a in job.boxes]
            cuts = [cut(image, boxes, classes, value) for value in thresholds]
            for annotation, masks in zip(job.boxes, zip(*cuts), strict=True):
                found = [truth.compare(annotation["id"], mask) for mask in masks]
                ious.append([iou for iou, *_ in found])
                areas.append(found[0][1])
    return {
        **_summary(np.array(areas), np.array(ious), thresholds, chosen),
        "images": len(order),
        "truth": Path(truth_file).name,
        "truth_sha256": file_hash(truth_file),
        "weights_sha256": labeler.describe().get("weights_sha256"),
        "network": labeler.model.label_with,
    }


def _has_mask(truth: TrueMasks, annotation: dict) -> bool:
    return bool(truth.annotations.get(annotation["id"], {}).get("segmentation"))


def _is_known(labeler: MALLabeler, annotation: dict) -> bool:
    return not labeler.needs_categories or annotation["category_id"] in labeler.category_ids


def _summary(
    areas: np.ndarray, ious: np.ndarray, thresholds: Sequence[float], chosen: Sequence[float]
) -> dict[str, Any]:
    """Means of (N, T) IoUs, over all instances and by size of the box; areas (N,)."""
    sizes = size_bin_index(areas)
    by_size = {
        name: {
            "mIoU": ious[sizes == index].mean(axis=0).tolist(),
            "chosen": float(chosen[index]),
            "instances": int((sizes == index).sum()),
        }
        for index, name in enumerate(SIZE_BINS)
        if (sizes == index).any()
    }
    return {
        "thresholds": [float(value) for value in thresholds],
        "mIoU": ious.mean(axis=0).tolist(),
        "chosen": float(chosen[0]) if len(set(chosen)) == 1 else None,
        "instances": len(ious),
        "by_size": by_size,
    }


class _Remembered(nn.Module):
    """A network that runs once for each batch of an image, and then repeats what it said."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.said: list[Tensor] = []
        self.place = 0

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        if self.place == len(self.said):
            self.said.append(self.network(*inputs, **options))
        self.place += 1
        return self.said[self.place - 1]


@contextmanager
def _replaying(labeler: MALLabeler) -> Iterator[Any]:
    """Gives cut(image, boxes, categories, threshold) -> segmentations.

    The labeler is afterwards as before. Successive calls with the same array are of the same image.
    """
    predictor, name = labeler.predictor, labeler.model.label_with
    before = predictor.networks, predictor.thresholds, predictor.measure
    network = _Remembered(before[0][name])
    last = None

    def cut(
        image: np.ndarray, boxes: np.ndarray, categories: list[int], threshold: float
    ) -> list[dict]:
        nonlocal last
        if image is not last:
            last, network.said = image, []
        network.place = 0
        predictor.thresholds = (threshold,) * len(SIZE_BINS)
        told = {}
        if labeler.needs_categories:
            told["classes"] = category_classes(labeler.category_ids, categories, boxes)
        records = predictor.predict(image, boxes, [name], **told)[name]
        return [record.segmentation for record in records]

    # The quality of these masks is not asked for, so the cheapest will do.
    predictor.networks, predictor.measure = {name: network}, MEASURES["expected_iou"]
    try:
        yield cut
    finally:
        predictor.networks, predictor.thresholds, predictor.measure = before
