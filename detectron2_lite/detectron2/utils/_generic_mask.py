"""One object's mask, whichever way it was stored: bitmap, RLE or polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from torch import Tensor

from ..structures import polygons_to_bitmask
from ._mask_outline import is_hole, trace_outlines

__all__ = ["GenericMask", "to_numpy"]


class GenericMask:
    """A mask that turns into polygons or into a bitmap when it is asked for.

    Polygons of a bitmap run along the outer edges of its pixels and enclose exactly those.
    (Upstream's join the centres of the border pixels, and lose what is one pixel thin.)

    Args:
        mask_or_polygons: COCO RLE, compressed or not; a list of polygons [x0, y0, x1, y1, ...] in
            pixels; or an (H, W) array or tensor.
        height: H of the image.
        width: W of the image.

    Raises:
        ValueError: for anything else, or a mask of another size than the image.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        self.height = int(height)
        self.width = int(width)
        self._mask: np.ndarray | None = None
        self._polygons: list[np.ndarray] | None = None
        self._has_holes: bool | None = None
        if isinstance(mask_or_polygons, Mapping):
            self._mask = self._checked(_decode(mask_or_polygons))
        elif isinstance(mask_or_polygons, (np.ndarray, Tensor)):
            array = to_numpy(mask_or_polygons)
            self._mask = self._checked(array.astype(np.uint8))
        elif isinstance(mask_or_polygons, (list, tuple)):
            self._polygons = [_flat_polygon(part) for part in mask_or_polygons]
            self._has_holes = False
        else:
            raise ValueError(
                "A mask is an RLE dict, a list of polygons, or an (H, W) array, "
                f"not a {type(mask_or_polygons).__name__}"
            )

    def _checked(self, mask: np.ndarray) -> np.ndarray:
        if mask.shape != (self.height, self.width):
            raise ValueError(
                f"The mask has the shape {mask.shape}, the image {(self.height, self.width)}"
            )
        return mask

    @property
    def mask(self) -> np.ndarray:
        """(H, W) uint8."""
        if self._mask is None:
            self._mask = self.polygons_to_mask(self._polygons)
        return self._mask

    @property
    def polygons(self) -> list[np.ndarray]:
        """Flat float64 arrays [x0, y0, x1, y1, ...]; those of a bitmap include its holes."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self._mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether some of the polygons surround holes; never for a mask made from polygons."""
        if self._has_holes is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self._mask)
        return self._has_holes

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Outlines of an (H, W) bitmap as flat polygons, and whether there are holes."""
        outlines = trace_outlines(mask)
        return [outline.ravel() for outline in outlines], any(map(is_hole, outlines))

    def polygons_to_mask(self, polygons: Sequence[np.ndarray]) -> np.ndarray:
        """(H, W) uint8: the union of flat polygons by COCO's rules."""
        # pycocotools would take two points for a box.
        parts = [part for part in polygons if len(part) >= 6]
        return polygons_to_bitmask(parts, self.height, self.width).astype(np.uint8)

    def area(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    def bbox(self) -> np.ndarray:
        """(4,) float64 XYXY box around the pixels; zeros for an empty mask."""
        rows = np.flatnonzero(self.mask.any(axis=1))
        columns = np.flatnonzero(self.mask.any(axis=0))
        if len(rows) == 0:
            return np.zeros(4)
        return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def _decode(rle: Mapping[str, Any]) -> np.ndarray:
    if "counts" not in rle or "size" not in rle:
        raise ValueError(f"An RLE mask needs 'counts' and 'size', got the keys {sorted(rle)}")
    compressed = dict(rle)
    if isinstance(rle["counts"], (list, tuple)):
        compressed = mask_util.frPyObjects(dict(rle, counts=list(rle["counts"])), *rle["size"])
    return mask_util.decode(compressed)


def to_numpy(array: Any) -> np.ndarray:
    """A tensor of any device, or anything else that is like an array, as a numpy array."""
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _flat_polygon(part: Any) -> np.ndarray:
    flat = to_numpy(part).astype(np.float64).ravel()
    if len(flat) % 2:
        raise ValueError(f"A polygon has x and y for each point, got {len(flat)} numbers")
    return flat
