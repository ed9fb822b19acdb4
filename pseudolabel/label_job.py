"""The labelling job, one process: every image once, every annotation accounted for."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.files import check_image_size, read_image
from pseudolabel.image_paths import image_path
from pseudolabel.labeler import Labeler
from pseudolabel.masks import xywh_to_xyxy
from pseudolabel.store import (
    BoxFile,
    ImageJob,
    LabelResult,
    box_problem,
    crowd_annotation,
    describe_box,
    labelled_annotation,
    reject_row,
)

logger = logging.getLogger(__name__)


def label_images(
    source: BoxFile,
    image_root: str | Path,
    labeler: Labeler,
    on_image: Callable[[int], None] = lambda boxes: None,
) -> LabelResult:
    """Labels every box of a file.

    An image that cannot be read rejects its annotations by name; a box that cannot be labelled and
    a crowd that cannot be drawn are rejected alone. Nothing else is left out.

    Args:
        source: the boxes.
        image_root: folder of the images.
        labeler: what makes the masks.
        on_image: called after each image with its number of boxes (progress).
    """
    result = LabelResult()
    for job in source.jobs:
        label_image(job, source.path, image_root, labeler, result)
        on_image(len(job.boxes) + len(job.crowds))
    return result


def label_image(
    job: ImageJob, source: Path, image_root: str | Path, labeler: Labeler, result: LabelResult
) -> None:
    """Labels one image and appends its records to `result`.

    The image's `status` is "empty" only where the input has no annotation: one whose annotations
    were all rejected is "rejected", since it shows objects and must not count as background.
    """
    height, width = job.image["height"], job.image["width"]
    before = len(result.annotations)
    try:
        image = _read_checked(job, source, image_root)
    except DataError as error:
        logger.warning("%s", error)
        result.images.append({**job.image, "status": "rejected"})
        for annotation in (*job.boxes, *job.crowds):
            result.rejects.append(reject_row(annotation, "image_unreadable", str(error)))
        return
    good = []
    for annotation in job.boxes:
        problem = box_problem(annotation, height, width)
        if problem is None:
            good.append(annotation)
        else:
            detail = describe_box(annotation, height, width)
            result.rejects.append(reject_row(annotation, problem, detail))
    boxes = xywh_to_xyxy(np.array([a["bbox"] for a in good], dtype=np.float64).reshape(-1, 4))
    records = labeler.label(image, boxes) if good else []
    for annotation, record in zip(good, records, strict=True):
        result.annotations.append(labelled_annotation(annotation, record))
    for annotation in job.crowds:
        try:
            result.annotations.append(crowd_annotation(annotation, height, width))
        except ValueError as error:
            result.rejects.append(reject_row(annotation, "crowd_malformed", str(error)))
    if len(result.annotations) > before:
        status = "labelled"
    else:
        status = "rejected" if job.boxes or job.crowds else "empty"
    result.images.append({**job.image, "status": status})


def _read_checked(job: ImageJob, source: Path, image_root: str | Path) -> np.ndarray:
    name, height, width = (job.image[key] for key in ("file_name", "height", "width"))
    image = read_image(image_path(job.image, image_root, source))
    check_image_size(image, name, height, width)
    return image
