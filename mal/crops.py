"""Geometry of one MAL sample: a window around a box, the crop, the box mask.

Legend: H, W image size in pixels; S side of the square crop after resizing.
Boxes are XYXY, absolute, float, in the coordinate frame of the image array. Every function that
takes a box expects it clipped to the image first (`pseudolabel.masks.clip_box`): a box that reaches
outside would otherwise widen its window with pixels which say nothing about the object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

Box = Sequence[float] | np.ndarray

# What stands beyond the edge of the image (MODEL.MAL.BORDER).
BORDERS = ("wrap", "reflect", "replicate")


class Window(NamedTuple):
    """Integer pixel rectangle, rows [y0, y1) and columns [x0, x1); it may exceed the image."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        """Rows covered, in pixels."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns covered, in pixels."""
        return self.x1 - self.x0


def train_window(
    box: Box, rng: np.random.Generator, margin: float = 1.2, gated: bool = True
) -> Window:
    """Random window around a box for training.

    Each side moves outwards by a share of its half extent, drawn from U(0, margin). With `gated`
    a fresh gate per axis splits that budget between the two opposite sides, so the window grows by
    a quarter of `margin` on average and always by less than half of it. Without, the four sides
    are independent; margin = theta - 1 then scales each half extent by U(1, theta).

    Args:
        box: XYXY, pixels, clipped to the image.
        rng: the only source of randomness; six draws, whatever the mode.
        margin: largest share of the half extent.
        gated: see above.

    Returns:
        The window, at least one pixel in each direction.
    """
    left, right, top, bottom = rng.uniform(0.0, margin, size=4)
    gate_x, gate_y = rng.uniform(size=2)
    if gated:
        left, right = left * gate_x, right * (1.0 - gate_x)
        top, bottom = top * gate_y, bottom * (1.0 - gate_y)
    return _expand(box, left, right, top, bottom)


def test_window(box: Box, margin: float = 0.6) -> Window:  # noqa: PT028
    """Centred window for labelling: half of `margin` on every side, so 1.3 x the box by default.

    The default equals the mean of the training windows, which keeps both scales alike.
    """
    half = margin / 2.0
    return _expand(box, half, half, half, half)


# The name is part of the interface; this keeps pytest from collecting it as a test.
test_window.__test__ = False


def border_index(start: int, stop: int, length: int, border: str = "wrap") -> np.ndarray:
    """The image row (or column) shown at each place of a window, however far outside it lies.

    "wrap" goes on with the opposite side of the image, as the published code does. "reflect" turns
    back at the edge without showing the edge pixel twice, and "replicate" repeats it.

    Args:
        start, stop: of the window along this axis.
        length: of the image along it.
        border: one of `BORDERS`.

    Returns:
        int64 (stop - start,), values in [0, length).

    Raises:
        ValueError: an unknown border.
    """
    places = np.arange(start, stop)
    if border == "wrap":
        return places % length
    if border == "replicate":
        return places.clip(0, length - 1)
    if border == "reflect":
        # Distance from the nearest even multiple of the last index: a triangle wave.
        period = max(2 * (length - 1), 1)
        phase = places % period
        return np.minimum(phase, period - phase) if length > 1 else phase
    raise ValueError(f"MODEL.MAL.BORDER {border!r}: use one of {', '.join(BORDERS)}")


def wrap_crop(array: np.ndarray, window: Window, border: str = "wrap") -> np.ndarray:
    """Cut a window out; what lies outside the image is made of its own pixels.

    Constant padding would create a strong false edge for the colour-based mean field, whereas
    such content keeps natural texture.

    Args:
        array: (H, W) or (H, W, C).
        window: any position, however far outside.
        border: what stands outside, see `border_index`.

    Returns:
        (window.height, window.width[, C]), C-contiguous copy.
    """
    height, width = array.shape[:2]
    if _inside(window, height, width):
        return array[window.y0 : window.y1, window.x0 : window.x1].copy()
    rows = border_index(window.y0, window.y1, height, border)
    columns = border_index(window.x0, window.x1, width, border)
    return array[np.ix_(rows, columns)]


def box_mask(box: Box, height: int, width: int, inclusive: bool = True) -> np.ndarray:
    """Filled box as an image mask, at least one pixel wide.

    Coordinates are truncated to integers and, with `inclusive`, the pixel at the far coordinate
    belongs to the box: x0 = 2.9, x1 = 4.1 covers columns 2, 3, 4, but so does x0 = 2, x1 = 4. That
    is the published rule, a pixel too much for whole-numbered COCO boxes, which an object of 20
    pixels feels. Without, exactly the pixels touched by [x0, x1) x [y0, y1) are covered.

    Args:
        box: XYXY, pixels.
        height, width: image size, pixels.
        inclusive: see above.

    Returns:
        uint8 (H, W), values 0 and 1; all zero only for a box outside the image.
    """
    x0, y0, x1, y1 = _corners(box)
    top, left = int(y0), int(x0)
    if inclusive:
        bottom, right = int(y1) + 1, int(x1) + 1
    else:
        bottom, right = max(math.ceil(y1), top + 1), max(math.ceil(x1), left + 1)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    return mask


def resize_image(crop: np.ndarray, size: int) -> np.ndarray:
    """Resize a crop to a square with Pillow's bicubic filter, which always antialiases.

    Args:
        crop: uint8 (h, w, 3) or (h, w).
        size: S; the aspect ratio is not kept.

    Returns:
        uint8 (S, S[, 3]).
    """
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask to a square by the pixel under each target centre; values are never mixed.

    Args:
        mask: (h, w) or (h, w, K), any dtype.
        size: S.

    Returns:
        (S, S[, K]), same dtype.
    """
    centres = np.arange(size) + 0.5
    rows, columns = ((centres * (extent / size)).astype(np.int64) for extent in mask.shape[:2])
    return mask[np.ix_(rows, columns)]


def _corners(box: Box) -> tuple[float, float, float, float]:
    values = np.asarray(box, dtype=np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(f"box must be four finite numbers x0, y0, x1, y1; got {box!r}")
    x0, y0, x1, y1 = values.tolist()
    if x1 < x0 or y1 < y0:
        raise ValueError(f"box must have x0 <= x1 and y0 <= y1 (XYXY, not XYWH); got {box!r}")
    return x0, y0, x1, y1


def _expand(box: Box, left: float, right: float, top: float, bottom: float) -> Window:
    """Scale the four half extents by (1 + share) and round outwards.

    The one extra pixel at the far ends makes the window cover the inclusive box mask.
    """
    x0, y0, x1, y1 = _corners(box)
    half_w, half_h = (x1 - x0) / 2.0, (y1 - y0) / 2.0
    return Window(
        y0=math.floor(y0 - half_h * top),
        x0=math.floor(x0 - half_w * left),
        y1=math.ceil(y1 + half_h * bottom + 1.0),
        x1=math.ceil(x1 + half_w * right + 1.0),
    )


def _inside(window: Window, height: int, width: int) -> bool:
    return window.y0 >= 0 and window.x0 >= 0 and window.y1 <= height and window.x1 <= width
