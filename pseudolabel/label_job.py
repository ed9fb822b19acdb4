"""Labelling of one image: every annotation becomes a record or a reject with its reason."""

from pathlib import Path

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.files import check_image_size, file_hash, read_image
from pseudolabel.image_paths import image_path
from pseudolabel.labeler import Labeler
from pseudolabel.masks import xywh_to_xyxy
from pseudolabel.store import (
    ImageJob,
    LabelResult,
    box_problem,
    crowd_annotation,
    describe_box,
    labelled_annotation,
    reject_row,
)


def label_image(
    job: ImageJob,
    source: object,
    image_root: str | Path,
    labeler: Labeler,
    result: LabelResult,
    *,
    allow_links: bool = False,
) -> None:
    """Labels one image and appends its records to `result`.

    An image that cannot be read rejects its annotations by name; a box that cannot be labelled and
    a crowd that cannot be drawn are rejected alone. The image's `status` is "empty" only where the
    input has no annotation: one whose annotations were all rejected is "rejected", since it shows
    objects and must not count as background.

    Args:
        job: the image with its boxes and crowds.
        source: the JSON, for error messages.
        image_root: folder of the images.
        labeler: what makes the masks.
        result: where the records go.
        allow_links: whether links below the folder may lead out of it.
    """
    height, width = job.image["height"], job.image["width"]
    before = len(result.annotations)
    try:
        image = read_job_image(job, source, image_root, allow_links)
    except DataError as error:
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


def read_job_image(
    job: ImageJob, source: object, image_root: str | Path, allow_links: bool = False
) -> np.ndarray:
    """The image of a record, uint8 (H, W, 3), if it is the one that its JSON describes.

    Where the record states a `sha256` (hex, of the file), the file must have it.

    Raises:
        DataError: it is missing, unreadable, of another size, or another file.
    """
    name, stated = job.image["file_name"], job.image.get("sha256")
    path = image_path(job.image, image_root, source, allow_links=allow_links)
    image = read_image(path)
    if "height" in job.image:
        check_image_size(image, name, job.image["height"], job.image["width"])
    if stated is not None and file_hash(path) != str(stated).lower():
        raise DataError(name, "is not the file of the JSON's sha256", "restore that file")
    return image
