"""Labelers whose masks depend on the class of a box.

Such a labeler has the attribute `needs_categories = True`, and its `label` takes the keyword
`categories`: one category id per box. It may have `category_ids`, those that it knows.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.checks import box_problem
from pseudolabel.label_job import label_image
from pseudolabel.labeler import MaskRecord
from pseudolabel.store import ImageJob, LabelResult, reject_row


def label_with_categories(
    job: ImageJob,
    source: object,
    image_root: str | Path,
    labeler: Any,
    result: LabelResult,
    *,
    allow_links: bool = False,
) -> None:
    """`label_image`, with the categories of the boxes.

    A box of a category that the labeler does not know is a reject ("category_unknown"): it has no
    mask of that class. The image shows an object all the same, so it is not "empty".
    """
    known = getattr(labeler, "category_ids", None)
    strange = [a for a in job.boxes if known is not None and a["category_id"] not in known]
    gone = {annotation["id"] for annotation in strange}
    rest = ImageJob(job.image, [a for a in job.boxes if a["id"] not in gone], job.crowds)
    with_categories = _WithCategories(rest, labeler)
    label_image(rest, source, image_root, with_categories, result, allow_links=allow_links)
    for annotation in strange:
        detail = f"the labeler does not know category {annotation['category_id']}"
        result.rejects.append(reject_row(annotation, "category_unknown", detail))
    if strange and result.images[-1]["status"] == "empty":
        result.images[-1]["status"] = "rejected"


class _WithCategories:
    """The labeler, for the boxes of one image."""

    def __init__(self, job: ImageJob, labeler: Any):
        self._job, self._labeler, self.name = job, labeler, labeler.name

    def label(self, image: np.ndarray, boxes: np.ndarray) -> list[MaskRecord]:
        size = self._job.image["height"], self._job.image["width"]
        # `label_image` leaves out the boxes that cannot be labelled.
        good = [a for a in self._job.boxes if box_problem(a, *size) is None]
        return self._labeler.label(image, boxes, categories=[a["category_id"] for a in good])

    def describe(self) -> dict[str, Any]:
        return self._labeler.describe()
