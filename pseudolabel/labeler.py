"""What every labeler is: boxes on an image in, one mask record per box out.

Shape legend: H, W image rows and columns, N boxes. Boxes are XYXY, float, absolute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from fvcore.common.registry import Registry

from pseudolabel.masks import box_to_centre_slices, meets_image, rle_from_patch

LABELERS = Registry("LABELER")
LABELERS.__doc__ = "Name -> callable that takes keyword options and returns a `Labeler`."

TINY_SIDE = 2.0
"""A box of at most this width or height, px, shows no shape: its mask is the box."""

FILLED_QUALITY = 0.58
"""Quality of a box-shaped stand-in: mean IoU of filled boxes with human masks on COCO train."""


@dataclass(frozen=True)
class MaskRecord:
    """One mask with what is known about it (design: "Pseudo-label file").

    Attributes:
        segmentation: compressed run-length code of the whole image.
        area: mask pixels.
        quality: estimate of the mask's IoU with the true one, [0, 1].
        mask_source: "model", "filled_tiny", "filled_empty" or "input".
        agreement: IoU of two predictions of the same object, [0, 1], or None.
    """

    segmentation: dict[str, Any]
    area: int
    quality: float
    mask_source: str
    agreement: float | None = None


@runtime_checkable
class Labeler(Protocol):
    """Turns boxes into masks; deterministic, so that a label job can be cut anywhere."""

    name: str

    def label(self, image: np.ndarray, boxes: np.ndarray) -> list[MaskRecord]:
        """One record per box (N, 4), in order, on the uint8 RGB `image` (H, W, 3)."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able options for the manifest."""
        ...


def finish_record(
    patch_mask: np.ndarray,
    y0: int,
    x0: int,
    box: np.ndarray,
    height: int,
    width: int,
    quality: float,
    agreement: float | None = None,
) -> MaskRecord:
    """Turn a labeler's mask into a record, with the rules that all labelers share.

    A box of at most `TINY_SIDE` px in width or height becomes the filled box (`filled_tiny`), and
    so does one whose mask is empty (`filled_empty`); both then carry `FILLED_QUALITY` and no
    agreement, since the labeler's figures speak of a mask that is not used.

    Args:
        patch_mask: (h, w), non-zero = inside; lies in the image.
        y0, x0: image row and column of its first pixel.
        box: (4,) XYXY, in the frame of the image, unclipped.
        height, width: image size H, W.
        quality, agreement: [0, 1].

    Raises:
        ValueError: the box misses the image (nothing could be its mask), or quality or agreement
            is no number of [0, 1].
    """
    if not meets_image(box, height, width):
        raise ValueError(
            f"box {np.asarray(box).tolist()} misses the {height}x{width} image or is inverted; "
            "correct it or reject the annotation before labelling"
        )
    for name, value in (("quality", quality), ("agreement", agreement)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    if min(box[2] - box[0], box[3] - box[1]) <= TINY_SIDE:
        return _filled_record(box, height, width, "filled_tiny")
    area = int(np.count_nonzero(patch_mask))
    if area == 0:
        return _filled_record(box, height, width, "filled_empty")
    code = rle_from_patch(patch_mask, y0, x0, height, width)
    agreement = None if agreement is None else float(agreement)
    return MaskRecord(code, area, float(quality), "model", agreement)


def _filled_record(box: np.ndarray, height: int, width: int, source: str) -> MaskRecord:
    rows, cols = box_to_centre_slices(box, height, width)
    patch = np.ones((rows.stop - rows.start, cols.stop - cols.start), dtype=bool)
    code = rle_from_patch(patch, rows.start, cols.start, height, width)
    return MaskRecord(code, patch.size, FILLED_QUALITY, source)
