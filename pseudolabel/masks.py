"""Masks and boxes as plain numpy arrays and COCO run-length codes.

Shape legend: H, W image rows and columns. A box is XYXY, float, absolute, in the frame of the image
array: pixel (row y, column x) covers the square [x, x+1) x [y, y+1) and has its centre at +0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_rle

SMALL_AREA = 32**2
LARGE_AREA = 96**2
SIZE_BINS = ("small", "medium", "large")


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Compress a mask (H, W), non-zero = inside, to ``{"size": [H, W], "counts": str}``."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions (H, W), got shape {mask.shape}")
    code = coco_rle.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return {"size": [int(n) for n in mask.shape], "counts": code["counts"].decode("ascii")}


def rle_from_patch(patch: np.ndarray, y0: int, x0: int, height: int, width: int) -> dict[str, Any]:
    """Compress a mask that is known on a patch and empty elsewhere, without a full canvas.

    Args:
        patch: (h, w), non-zero = inside; lies wholly in the image.
        y0, x0: image row and column of ``patch[0, 0]``, pixels.
        height, width: image size H, W.

    Returns:
        the same code as `encode_rle` of the full-size mask. Codes run down the columns, so only the
        columns of the patch are laid out; what lies left and right of them is one longer run each.

    Raises:
        ValueError: the patch sticks out of the image.
    """
    patch = np.asarray(patch) != 0
    rows, cols = patch.shape
    if y0 < 0 or x0 < 0 or y0 + rows > height or x0 + cols > width:
        raise ValueError(
            f"patch of {rows}x{cols} at row {y0}, column {x0} leaves the {height}x{width} image; "
            "crop it first"
        )
    strip = np.zeros((cols, height), dtype=bool)
    strip[:, y0 : y0 + rows] = patch.T
    flat = strip.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=False)) + x0 * height
    runs = np.diff(edges, prepend=0, append=height * width).tolist()
    if runs[-1] == 0 and len(runs) > 1:
        runs.pop()
    code = coco_rle.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": code["counts"].decode("ascii")}


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Rasterise any COCO segmentation: polygons, run list or compressed run-length code.

    Returns:
        bool (H, W).

    Raises:
        ValueError: malformed, or made for another image size. The caller adds file and id.
    """
    if isinstance(segmentation, dict):
        code = _checked_rle(segmentation, height, width)
    elif isinstance(segmentation, Sequence) and not isinstance(segmentation, str | bytes):
        code = _polygons_to_rle(segmentation, height, width)
    else:
        raise ValueError(
            "segmentation must be a list of polygons or a run-length dict, got "
            f"{type(segmentation).__name__}"
        )
    return coco_rle.decode(code).astype(bool)


def _polygons_to_rle(polygons: Sequence, height: int, width: int) -> dict[str, Any]:
    if len(polygons) == 0:
        raise ValueError("segmentation has no polygon")
    rings = []
    for ring in polygons:
        flat = np.asarray(ring, dtype=np.float64).ravel()
        # Four numbers would be read as a box by the library, silently.
        if flat.size < 6 or flat.size % 2 or not np.isfinite(flat).all():
            raise ValueError(
                "a polygon needs at least three finite x, y pairs, got "
                f"{flat.size} numbers: {flat[:6].tolist()}"
            )
        rings.append(flat.tolist())
    return coco_rle.merge(coco_rle.frPyObjects(rings, height, width))


def _checked_rle(segmentation: dict, height: int, width: int) -> dict[str, Any]:
    missing = {"size", "counts"} - segmentation.keys()
    if missing:
        raise ValueError(f"run-length code lacks {sorted(missing)}")
    size, counts = [int(n) for n in segmentation["size"]], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"run-length code is for a {size} image, the image is {[height, width]}")
    if isinstance(counts, str | bytes):
        counts = counts.encode("ascii") if isinstance(counts, str) else counts
        total = sum(_runs_of(counts))
        code: dict[str, Any] = {"size": size, "counts": counts}
    else:
        counts = [int(n) for n in counts]
        if min(counts, default=0) < 0:
            raise ValueError("run-length code has a negative run")
        total = sum(counts)
        code = coco_rle.frPyObjects({"size": size, "counts": counts}, height, width)
    # The library would leave the missing tail uninitialised.
    if total != height * width:
        raise ValueError(f"run-length code covers {total} pixels, the image has {height * width}")
    return code


def _runs_of(counts: bytes) -> list[int]:
    """Run lengths of a compressed code: base-32 digits from "0", low digit first, where bit 5 says
    "more follows", bit 4 of the last digit is the sign, and from the fourth run on the number is
    the difference to the run two places before.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts:
        digit = byte - 48
        if not 0 <= digit < 64:
            raise ValueError(f"run-length code holds the byte {byte}, which is no digit of it")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            raise ValueError("run-length code has a negative run")
        value = shift = 0
    if shift:
        raise ValueError("run-length code breaks off inside a number")
    return runs


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks (H, W) of equal shape; 0 where both are empty."""
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"masks differ in shape: {a.shape} and {b.shape}")
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def size_bin_index(area: Any) -> Any:
    """0 below 32², 1 in [32², 96²), 2 from 96² on; a number, array or tensor of areas in px²."""
    return (area >= SMALL_AREA) * 1 + (area >= LARGE_AREA) * 1


def size_bin(area: float) -> str:
    """Name of the half-open COCO size bin of one area in px²: "small", "medium" or "large"."""
    return SIZE_BINS[int(size_bin_index(area))]


def xywh_to_xyxy(box: Any) -> np.ndarray:
    """(..., 4) boxes as x, y, width, height to float64 (..., 4) as x0, y0, x1, y1."""
    box = np.asarray(box, dtype=np.float64)
    return np.concatenate([box[..., :2], box[..., :2] + box[..., 2:]], axis=-1)


def clip_box(box: Any, height: int, width: int) -> np.ndarray:
    """Move the edges of one XYXY box (4,) into the image; float64 (4,). May end without area."""
    return np.clip(
        np.asarray(box, dtype=np.float64), 0.0, np.array([width, height, width, height], float)
    )


def meets_image(box: Any, height: int, width: int) -> bool:
    """Whether the closed XYXY box has a point in common with the image; False for NaN."""
    x0, y0, x1, y1 = (float(v) for v in box)
    return x0 <= x1 and y0 <= y1 and x1 >= 0 and y1 >= 0 and x0 <= width and y0 <= height


def box_to_slices(box: Any, height: int, width: int) -> tuple[slice, slice]:
    """Row and column slices of the pixels that the XYXY box touches.

    At least one pixel each where the box meets the image (a line on the far border takes the last
    row or column), and two empty slices where it does not.
    """
    if not meets_image(box, height, width):
        return slice(0, 0), slice(0, 0)
    x0, y0, x1, y1 = clip_box(box, height, width)
    return _touched(y0, y1, height), _touched(x0, x1, width)


def _touched(low: float, high: float, size: int) -> slice:
    start = min(int(np.floor(low)), size - 1)
    return slice(start, max(int(np.ceil(high)), start + 1))


def box_to_centre_slices(box: Any, height: int, width: int) -> tuple[slice, slice]:
    """Row and column slices of the pixels whose centre lies in the XYXY box, half-open.

    A box too thin to hold a centre takes the row or column that its middle falls in, so that only
    a box that misses the image gives empty slices.
    """
    if not meets_image(box, height, width):
        return slice(0, 0), slice(0, 0)
    x0, y0, x1, y1 = clip_box(box, height, width)
    return _centred(y0, y1, height), _centred(x0, x1, width)


def _centred(low: float, high: float, size: int) -> slice:
    start, stop = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
    if start >= stop:
        start = min(int((low + high) / 2), size - 1)
        stop = start + 1
    return slice(start, stop)


def filled_box_mask(box: Any, height: int, width: int) -> np.ndarray:
    """The box as a mask, bool (H, W), drawn by `box_to_centre_slices`."""
    mask = np.zeros((height, width), dtype=bool)
    mask[box_to_centre_slices(box, height, width)] = True
    return mask
