"""Labelers that learn nothing: the bars that a trained labeler has to clear.

Their `quality` is a constant, the rounded mean IoU with human masks on COCO train, because they
have no way to tell a good mask from a bad one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pseudolabel.labeler import FILLED_QUALITY, LABELERS, Labeler, MaskRecord, finish_record
from pseudolabel.masks import box_to_centre_slices, box_to_slices, clip_box

ELLIPSE_QUALITY = 0.62
GRABCUT_QUALITY = 0.61

Patch = tuple[np.ndarray, int, int]
"""A mask (h, w) with the image row and column of its first pixel."""


@dataclass(frozen=True)
class Yardstick:
    """A labeler given by one function that draws the mask of one box.

    Attributes:
        draw: (image uint8 (H, W, 3), box (4,) XYXY) -> `Patch`.
        quality: the constant written to every record.
        options: what `describe` reports besides the name.
    """

    name: str
    draw: Callable[[np.ndarray, np.ndarray], Patch]
    quality: float
    options: dict[str, Any] = field(default_factory=dict)

    def label(self, image: np.ndarray, boxes: np.ndarray) -> list[MaskRecord]:
        """One record per box (N, 4) on the uint8 RGB image (H, W, 3), in order."""
        height, width = image.shape[:2]
        return [
            finish_record(*self.draw(image, box), box, height, width, self.quality)
            for box in np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        ]

    def describe(self) -> dict[str, Any]:
        """Name and options, JSON-able."""
        return {"name": self.name, "quality": self.quality, **self.options}


@LABELERS.register()
def filled_box() -> Labeler:
    """The whole box is the mask."""
    return Yardstick("filled_box", _draw_box, FILLED_QUALITY)


@LABELERS.register()
def ellipse() -> Labeler:
    """The inscribed ellipse with sub-pixel centre and axes; a pixel belongs if its centre does."""
    return Yardstick("ellipse", _draw_ellipse, ELLIPSE_QUALITY)


@LABELERS.register()
def grabcut(
    iterations: int = 5, context: float = 2.0, min_fill: float = 0.02, seed: int = 0
) -> Labeler:
    """OpenCV's GrabCut (Rother et al., SIGGRAPH 2004) started from the box, clipped to the box.

    Args:
        iterations: rounds of colour-model fitting and cutting.
        context: side of the window that it sees, in box sides; what lies outside the box is surely
            background.
        min_fill: a mask below this share of the box's pixels counts as empty. A cut that collapses
            often leaves a few pixels; kept, they would make the bar easier to clear.
        seed: of OpenCV's generator, set anew for each box, so that no mask depends on the others.
    """
    options = {"iterations": iterations, "context": context, "min_fill": min_fill, "seed": seed}
    if iterations < 1 or context <= 1.0 or not 0.0 <= min_fill < 1.0:
        raise ValueError(f"grabcut needs iterations >= 1, context > 1, min_fill < 1, got {options}")
    return Yardstick(
        "grabcut",
        lambda image, box: _draw_grabcut(image, box, **options),
        GRABCUT_QUALITY,
        options,
    )


def _draw_box(image: np.ndarray, box: np.ndarray) -> Patch:
    rows, cols = box_to_centre_slices(box, *image.shape[:2])
    shape = rows.stop - rows.start, cols.stop - cols.start
    return np.ones(shape, dtype=bool), rows.start, cols.start


def _draw_ellipse(image: np.ndarray, box: np.ndarray) -> Patch:
    rows, cols = box_to_slices(box, *image.shape[:2])
    x0, y0, x1, y1 = box
    # Axes of the unclipped box: an object cut by the border keeps its shape.
    radius_x, radius_y = max(x1 - x0, 1e-9) / 2, max(y1 - y0, 1e-9) / 2
    dx = (np.arange(cols.start, cols.stop) + 0.5 - (x0 + x1) / 2) / radius_x
    dy = (np.arange(rows.start, rows.stop) + 0.5 - (y0 + y1) / 2) / radius_y
    return dx[None, :] ** 2 + dy[:, None] ** 2 <= 1.0, rows.start, cols.start


def _draw_grabcut(
    image: np.ndarray,
    box: np.ndarray,
    iterations: int,
    context: float,
    min_fill: float,
    seed: int,
) -> Patch:
    import cv2

    height, width = image.shape[:2]
    box = clip_box(box, height, width)
    rows, cols = box_to_centre_slices(box, height, width)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * context
    outer_rows, outer_cols = box_to_slices([*(centre - half), *(centre + half)], height, width)
    window = np.ascontiguousarray(image[outer_rows, outer_cols])
    trimap = np.full(window.shape[:2], cv2.GC_BGD, dtype=np.uint8)
    inner = (
        slice(rows.start - outer_rows.start, rows.stop - outer_rows.start),
        slice(cols.start - outer_cols.start, cols.stop - outer_cols.start),
    )
    trimap[inner] = cv2.GC_PR_FGD
    cv2.setRNGSeed(seed)
    try:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(window, trimap, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        # No background left to learn from (the box fills the image), or too few pixels.
        return np.zeros((0, 0), dtype=bool), rows.start, cols.start
    mask = trimap[inner] == cv2.GC_PR_FGD
    collapsed = np.count_nonzero(mask) < min_fill * mask.size
    return mask & (not collapsed), rows.start, cols.start
