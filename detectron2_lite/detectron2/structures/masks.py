"""Three ways to hold the masks of N objects: bitmaps, polygons, and predictions per region.

Legend: N objects, H x W image, M side of a mask cropped to its box. Boxes are XYXY in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor

from ..layers import paste_masks_in_image, roi_align
from .boxes import Boxes

__all__ = ["BitMasks", "PolygonMasks", "ROIMasks", "polygons_to_bitmask"]

Polygons = list[np.ndarray]


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Rasterise the union of polygons by COCO's rules.

    Args:
        polygons: arrays of alternating x and y in pixels.
        height: H.
        width: W.

    Returns:
        (H, W) bool.
    """
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    runs = mask_util.frPyObjects([np.asarray(p).tolist() for p in polygons], height, width)
    return mask_util.decode(mask_util.merge(runs)).astype(bool)


def _polygons_in_box(polygons: Polygons, box: np.ndarray, size: int) -> np.ndarray:
    """Rasterise polygons on a (size, size) grid laid over a box."""
    # A box thinner than a tenth of a pixel would blow the coordinates up without limit.
    zoom = size / np.maximum(box[2:] - box[:2], 0.1)
    local = [((p.reshape(-1, 2) - box[:2]) * zoom).ravel() for p in polygons]
    return polygons_to_bitmask(local, size, size)


class BitMasks:
    """Masks as an (N, H, W) bool tensor."""

    def __init__(self, tensor: Tensor | np.ndarray) -> None:
        data = torch.as_tensor(tensor).to(torch.bool)
        if data.dim() != 3:
            raise ValueError(f"BitMasks need an (N, H, W) tensor, got {tuple(data.shape)}")
        self.image_size = tuple(data.shape[1:])
        self.tensor = data

    def to(self, *args: Any, **kwargs: Any) -> BitMasks:
        """As `Tensor.to`."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> BitMasks:
        """Select by int, slice, index tensor or (N,) bool tensor; always (K, H, W)."""
        chosen = self.tensor[item]
        if isinstance(item, int):
            chosen = chosen[None]
        if chosen.dim() != 3:
            raise IndexError(f"Indexing masks with {item!r} does not give masks")
        return BitMasks(chosen)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={self.image_size})"

    def nonempty(self) -> Tensor:
        """(N,) bool: the mask has a pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: PolygonMasks | list[Polygons], height: int, width: int
    ) -> BitMasks:
        """Rasterise the polygons of every object on an image of the given size."""
        if isinstance(polygon_masks, PolygonMasks):
            polygon_masks = polygon_masks.polygons
        canvas = np.zeros((len(polygon_masks), height, width), dtype=bool)
        for row, polygons in zip(canvas, polygon_masks):
            row[:] = polygons_to_bitmask(polygons, height, width)
        return BitMasks(torch.from_numpy(canvas))

    @staticmethod
    def from_roi_masks(roi_masks: ROIMasks, boxes: Boxes, height: int, width: int) -> BitMasks:
        """Paste predictions per region; see `ROIMasks.to_bitmasks`."""
        return roi_masks.to_bitmasks(boxes, height, width)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Cut each mask to its box and resample it.

        Args:
            boxes: (N, 4), one per mask.
            mask_size: M.

        Returns:
            (N, M, M) bool on the boxes' device.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} boxes for {len(self)} masks")
        rows = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
        rois = torch.cat([rows[:, None], boxes], dim=1).float()
        masks = self.tensor.to(device=boxes.device, dtype=torch.float32)[:, None]
        if len(rois) == 0:
            return torch.zeros(0, mask_size, mask_size, dtype=torch.bool, device=boxes.device)
        cropped = roi_align(masks, rois, (mask_size, mask_size), 1.0, 0, True)
        return cropped[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes; the far corner is the last pixel + 1, and an empty mask gives zeros."""
        boxes = torch.zeros(len(self), 4, dtype=torch.float32, device=self.device)
        filled = self.nonempty()
        for column, occupied in enumerate((self.tensor.any(dim=1), self.tensor.any(dim=2))):
            marks = occupied.to(torch.uint8)
            first, last = marks.argmax(dim=1), marks.flip(1).argmax(dim=1)
            boxes[:, column] = first.float()
            boxes[:, column + 2] = (marks.shape[1] - last).float()
        return Boxes(boxes * filled[:, None])

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> BitMasks:
        """Concatenate masks of images of the same size."""
        if len(bitmasks_list) == 0:
            raise ValueError("Nothing to concatenate")
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))


class PolygonMasks:
    """Masks as polygons: per object a list of float64 arrays [x0, y0, x1, y1, ...] in pixels.

    They live on the CPU; `to` changes nothing.
    """

    def __init__(self, polygons: list[list[Tensor | np.ndarray | Sequence[float]]]) -> None:
        if not isinstance(polygons, list):
            raise ValueError(
                f"PolygonMasks take a list (objects) of lists (parts) of coordinates, "
                f"got {type(polygons).__name__}"
            )
        self.polygons: list[Polygons] = [
            [_as_polygon(index, part) for part in _parts(index, parts)]
            for index, parts in enumerate(polygons)
        ]

    def to(self, *args: Any, **kwargs: Any) -> PolygonMasks:
        """This object: polygons have no device."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """Smallest boxes around the vertices; zeros for an object without polygons."""
        boxes = torch.zeros(len(self), 4, dtype=torch.float32)
        for row, parts in zip(boxes, self.polygons):
            if parts:
                points = torch.from_numpy(np.concatenate(parts).reshape(-1, 2)).float()
                row[:2], row[2:] = points.amin(dim=0), points.amax(dim=0)
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """(N,) bool: the object has a polygon."""
        return torch.tensor([len(parts) > 0 for parts in self.polygons], dtype=torch.bool)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Rasterise each object inside its box.

        Args:
            boxes: (N, 4), one per object.
            mask_size: M.

        Returns:
            (N, M, M) bool on the boxes' device.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} boxes for {len(self)} objects")
        grids = np.zeros((len(self), mask_size, mask_size), dtype=bool)
        corners = boxes.detach().float().cpu().numpy()
        for grid, parts, box in zip(grids, self.polygons, corners):
            grid[:] = _polygons_in_box(parts, box, mask_size)
        return torch.from_numpy(grids).to(boxes.device)

    def area(self) -> Tensor:
        """(N,) areas by the shoelace formula, parts added up (overlaps count twice)."""
        areas = [sum(map(_shoelace, parts)) for parts in self.polygons]
        return torch.tensor(areas, dtype=torch.float32)

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PolygonMasks:
        """Select by int, slice, list of int, index tensor or (N,) bool tensor."""
        if isinstance(item, int):
            chosen = [self.polygons[item]]
        elif isinstance(item, slice):
            chosen = self.polygons[item]
        else:
            chosen = [self.polygons[i] for i in _positions(item)]
        return PolygonMasks(chosen)

    def __iter__(self) -> Iterator[Polygons]:
        return iter(self.polygons)

    def __len__(self) -> int:
        return len(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    @staticmethod
    def cat(polymasks_list: Sequence[PolygonMasks]) -> PolygonMasks:
        """Concatenate."""
        if len(polymasks_list) == 0:
            raise ValueError("Nothing to concatenate")
        return PolygonMasks([parts for masks in polymasks_list for parts in masks.polygons])


class ROIMasks:
    """Predicted masks, each in the frame of its own box: (N, M, M) probabilities."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.dim() != 3:
            raise ValueError(f"ROIMasks need an (N, M, M) tensor, got {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device | str) -> ROIMasks:
        """The same masks on another device."""
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item: int | slice | Tensor) -> ROIMasks:
        """Select by slice, index tensor or (N,) bool tensor; always (K, M, M)."""
        chosen = self.tensor[item]
        if chosen.dim() != 3:
            raise IndexError(f"Indexing masks with {item!r} does not give masks")
        return ROIMasks(chosen)

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)})"

    def to_bitmasks(
        self, boxes: Boxes | Tensor, height: int, width: int, threshold: float = 0.5
    ) -> BitMasks:
        """Paste into an image of H x W; see `paste_masks_in_image`."""
        return BitMasks(paste_masks_in_image(self.tensor, boxes, (height, width), threshold))


def _parts(index: int, parts: Any) -> list:
    if not isinstance(parts, (list, tuple)):
        raise ValueError(f"Object {index}: expected a list of polygons, got {type(parts).__name__}")
    return list(parts)


def _as_polygon(index: int, part: Tensor | np.ndarray | Sequence[float]) -> np.ndarray:
    array = part.cpu().numpy() if isinstance(part, Tensor) else part
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 1 or len(array) < 6 or len(array) % 2:
        raise ValueError(
            f"Object {index}: a polygon needs an even number, at least 6, of coordinates, "
            f"got shape {array.shape}"
        )
    return array


def _shoelace(polygon: np.ndarray) -> float:
    x, y = polygon[0::2], polygon[1::2]
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def _positions(item: list[int] | np.ndarray | Tensor) -> list[int]:
    index = torch.as_tensor(item)
    if index.numel() == 0:
        return []
    if index.dim() != 1 or index.is_floating_point():
        raise IndexError(f"Cannot index polygons with {item!r}")
    return (index.nonzero()[:, 0] if index.dtype == torch.bool else index).tolist()
