"""Masks and boxes as plain numpy arrays and COCO run-length codes.

Shape legend: H, W image rows and columns. A box is XYXY, float, absolute, in the frame of the image
array: pixel (row y, column x) covers the square [x, x+1) x [y, y+1) and has its centre at +0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_rle

from pseudolabel.checks import quote

# Pillow refuses larger images, so that a mask of more pixels belongs to none.
MAX_PIXELS = 2 * 89_478_485
# Bits of a run in a compressed code: enough for a mask of MAX_PIXELS, few enough for the C library.
_LONGEST_RUN = 30
# Pixels; bounds the points of a polygon whose image is unknown.
_LONGEST_SIDE = 100_000
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


class SegmentationError(ValueError):
    """A malformed segmentation.

    Attributes:
        kind: "segmentation_malformed", "segmentation_empty", "polygon_malformed", "polygon_odd",
            "polygon_short", "polygon_far", "rle_malformed", "rle_counts", "rle_size" or "rle_huge".
    """

    def __init__(self, kind: str, message: str):
        super().__init__(kind, message)
        self.kind = kind

    def __str__(self) -> str:
        return self.args[1]


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Rasterise any COCO segmentation: polygons, run list or compressed run-length code.

    Returns:
        bool (H, W).

    Raises:
        SegmentationError: malformed, or made for another image size. A ValueError; the caller adds
            file and id.
    """
    parsed = parse_segmentation(segmentation, height, width)
    if isinstance(parsed, list):
        rings = [ring.tolist() for ring in parsed]
        parsed = coco_rle.merge(coco_rle.frPyObjects(rings, height, width))
    return coco_rle.decode(parsed).astype(bool)


def parse_segmentation(
    segmentation: Any, height: int | None = None, width: int | None = None
) -> list[np.ndarray] | dict[str, Any]:
    """Check a COCO segmentation without drawing it: nothing of the mask's size is allocated.

    Args:
        segmentation: polygons, run list or compressed run-length code.
        height, width: of the image, pixels; None where unknown.

    Returns:
        rings, float64 (2N,) each as x1, y1, x2, ...; or a compressed code that fills its size.

    Raises:
        SegmentationError: malformed, or made for another image size.
    """
    if height is not None and width is not None and height * width > MAX_PIXELS:
        raise SegmentationError("rle_huge", f"an image of {width}x{height} is too large for a mask")
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str | bytes):
        raise SegmentationError(
            "segmentation_malformed",
            "segmentation must be a list of polygons or a run-length dict, got "
            f"{type(segmentation).__name__}",
        )
    if len(segmentation) == 0:
        raise SegmentationError("segmentation_empty", "segmentation has no polygon")
    return [_checked_ring(ring, height, width) for ring in segmentation]


def whole_rle(segmentation: dict[str, Any]) -> dict[str, Any]:
    """A sound run-length code with its numbers as `int`; the same object where they are.

    JavaScript and some writers of JSON know no whole numbers, and pycocotools takes no others.
    """
    size, counts = segmentation["size"], segmentation["counts"]
    changed = {}
    if float in map(type, size):
        changed["size"] = [int(n) for n in size]
    if not isinstance(counts, str | bytes) and float in map(type, counts):
        changed["counts"] = [int(n) for n in counts]
    return {**segmentation, **changed} if changed else segmentation


def _checked_ring(ring: Any, height: int | None, width: int | None) -> np.ndarray:
    wanted = "a polygon needs at least three finite x, y pairs"
    numbers = isinstance(ring, np.ndarray) or (
        isinstance(ring, list | tuple) and {int, float}.issuperset(map(type, ring))
    )
    try:
        flat = np.asarray(ring, dtype=np.float64) if numbers else None
    except OverflowError:
        flat = None
    if flat is None or flat.ndim != 1 or not np.isfinite(flat).all():
        raise SegmentationError("polygon_malformed", f"{wanted}, got {quote(ring)}")
    # Four numbers would be read as a box by the library, silently.
    if flat.size < 6 or flat.size % 2:
        kind = "polygon_short" if flat.size < 6 else "polygon_odd"
        got = f"{flat.size} numbers: {flat[:6].tolist()}"
        raise SegmentationError(kind, f"{wanted}, got {got}")
    # The library's memory grows with the length of the outline.
    reach = (
        (MAX_PIXELS**0.5, MAX_PIXELS**0.5) if height is None or width is None else (width, height)
    )
    points = flat.reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    if low[0] < -reach[0] or low[1] < -reach[1] or high[0] > 2 * reach[0] or high[1] > 2 * reach[1]:
        raise SegmentationError(
            "polygon_far",
            f"a polygon spans {low.tolist()} to {high.tolist()}, far outside of its image",
        )
    return flat


def _checked_rle(segmentation: dict, height: int | None, width: int | None) -> dict[str, Any]:
    missing = {"size", "counts"} - segmentation.keys()
    if missing:
        raise SegmentationError("rle_malformed", f"run-length code lacks {sorted(missing)}")
    size, counts = _rle_size(segmentation["size"]), segmentation["counts"]
    if size[0] * size[1] > MAX_PIXELS:
        raise SegmentationError("rle_huge", f"run-length code is for a mask of size {size}")
    if height is not None and width is not None and size != [height, width]:
        raise SegmentationError(
            "rle_size", f"run-length code is for a {size} image, the image is {[height, width]}"
        )
    packed = isinstance(counts, str | bytes)
    runs = _runs_of(_ascii(counts)) if packed else _run_list(counts)
    total = sum(runs)
    # The library would leave the missing tail uninitialised.
    if total != size[0] * size[1]:
        raise SegmentationError(
            "rle_counts",
            f"run-length code is malformed: it covers {total} pixels, its size {size} has "
            f"{size[0] * size[1]}",
        )
    if packed:
        return {"size": size, "counts": _ascii(counts)}
    return coco_rle.frPyObjects({"size": size, "counts": runs}, *size)


def _rle_size(value: Any) -> list[int]:
    try:
        size = [int(n) for n in value]
        sound = len(size) == 2 and min(size) >= 0 and _same(size, value)
    except (TypeError, ValueError, OverflowError):
        sound = False
    if not sound:
        raise SegmentationError(
            "rle_malformed", f"run-length code is malformed: its size is {quote(value)}"
        )
    return size


def _same(whole: list[int], given: Sequence) -> bool:
    """Whether whole numbers say what was given; True and False say no number."""
    return bool not in map(type, given) and all(n == v for n, v in zip(whole, given))


def _run_list(counts: Any) -> list[int]:
    try:
        runs = [int(n) for n in counts]
        sound = _same(runs, counts)
    except (TypeError, ValueError, OverflowError):
        sound = False
    if not sound:
        raise SegmentationError(
            "rle_malformed", f"run-length code is malformed: its counts are {quote(counts)}"
        )
    if min(runs, default=0) < 0:
        raise SegmentationError("rle_malformed", "run-length code has a negative run")
    return runs


def _ascii(counts: str | bytes) -> bytes:
    try:
        return counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise SegmentationError(
            "rle_malformed", f"run-length code holds a letter that is no digit of it ({error})"
        ) from error


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
            raise SegmentationError(
                "rle_malformed", f"run-length code holds the byte {byte}, which is no digit of it"
            )
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            if shift >= _LONGEST_RUN:
                raise SegmentationError(
                    "rle_malformed", "run-length code holds a number of too many digits"
                )
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            raise SegmentationError("rle_malformed", "run-length code has a negative run")
        value = shift = 0
    if shift:
        raise SegmentationError("rle_malformed", "run-length code breaks off inside a number")
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
