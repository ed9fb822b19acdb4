"""Checks of the masks of annotations: sound codes, and whether box and area fit them."""

from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_rle

from pseudolabel.checks import is_box, is_number
from pseudolabel.defects import Defect
from pseudolabel.masks import SegmentationError, parse_segmentation, whole_rle
from pseudolabel.validation_records import Known, Subject, size_of

# An area is implausible where it differs from the mask's by more than this share and, for masks of
# few pixels, by more than this many. Outlines and pixels of one shape differ by less.
AREA_SHARE, AREA_PIXELS = 0.3, 16.0
# A box is implausible where its IoU with the tight box of the mask is below this and an edge is off
# by more than these pixels. The mask of a labeler need not fill its box.
BOX_IOU, BOX_PIXELS = 0.5, 3.0


def check_mask(subject: Subject, known: Known, plausibility: bool = True) -> Iterator[Defect]:
    """Checks the `segmentation` of one annotation, if it has any, without drawing it.

    Args:
        plausibility: whether to compare box and area with the mask, too.
    """
    segmentation = subject.entry.get("segmentation")
    if segmentation is None:
        return
    try:
        parsed = parse_segmentation(segmentation, *(size_of(subject.entry, known) or (None, None)))
    except SegmentationError as error:
        yield subject.defect(error.kind, str(error), "segmentation")
        return
    if isinstance(segmentation, dict) and whole_rle(segmentation) is not segmentation:
        problem = "run-length code has numbers with a decimal point"
        yield subject.defect("rle_float", problem, "segmentation")
    if plausibility:
        yield from _plausibility(subject, *measure(parsed))


def measure(parsed: list[np.ndarray] | dict) -> tuple[float, np.ndarray]:
    """Area in px² and tight box XYWH (4,) of what `parse_segmentation` returns, without drawing.

    Rings of one mask count as apart from each other: where they overlap, the area is too large.
    """
    if isinstance(parsed, dict):
        return float(coco_rle.area(parsed)), np.asarray(coco_rle.toBbox(parsed), dtype=np.float64)
    area = 0.0
    lows, highs = [], []
    for ring in parsed:
        x, y = ring[0::2], ring[1::2]
        # Relative to the first point: far from the origin the products would cancel badly.
        x, y = x - x[0], y - y[0]
        area += abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2
        lows.append((ring[0::2].min(), ring[1::2].min()))
        highs.append((ring[0::2].max(), ring[1::2].max()))
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    return area, np.concatenate([low, high - low])


def _plausibility(subject: Subject, area: float, tight: np.ndarray) -> Iterator[Defect]:
    stated, box = subject.entry.get("area"), subject.entry.get("bbox")
    if is_number(stated):
        difference = abs(stated - area)
        if difference > AREA_PIXELS and difference > AREA_SHARE * max(stated, area):
            problem = f"area is {stated:g}, the mask has about {area:g}"
            yield subject.defect("area_differs", problem, "area")
    if is_box(box) and min(box[2:]) > 0 and _boxes_differ(np.array(box, dtype=float), tight):
        problem = f"bbox is {box}, the box of the mask {np.round(tight, 2).tolist()}"
        yield subject.defect("box_differs", problem, "bbox")


def _boxes_differ(box: np.ndarray, tight: np.ndarray) -> bool:
    far, tight_far = box[:2] + box[2:], tight[:2] + tight[2:]
    if max(np.abs(box[:2] - tight[:2]).max(), np.abs(far - tight_far).max()) <= BOX_PIXELS:
        return False
    sides = np.minimum(far, tight_far) - np.maximum(box[:2], tight[:2])
    overlap = sides[0] * sides[1] if (sides > 0).all() else 0.0
    return overlap < BOX_IOU * (box[2] * box[3] + tight[2] * tight[3] - overlap)
