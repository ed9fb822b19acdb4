"""Three ways to hold the masks of N objects: bitmaps, polygons, and predictions per region.

Legend: N objects, H x W image, M side of a mask cropped to its box. Boxes are XYXY in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
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
    parts = [np.asarray(part).tolist() for part in polygons]
    if not parts:
        return np.full((height, width), False)
    union = mask_util.merge(mask_util.frPyObjects(parts, height, width))
    return mask_util.decode(union) > 0


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
        moved = self.tensor.to(*args, **kwargs)
        return BitMasks(moved)

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
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)}, image_size={self.image_size})"

    def nonempty(self) -> Tensor:
        """(N,) bool: the mask has a pixel."""
        return self.tensor.any(dim=2).any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: PolygonMasks | list[Polygons], height: int, width: int
    ) -> BitMasks:
        """Rasterise the polygons of every object on an image of the given size."""
        objects = getattr(polygon_masks, "polygons", polygon_masks)
        canvases = [polygons_to_bitmask(parts, height, width) for parts in objects]
        return BitMasks(np.array(canvases, dtype=bool).reshape(len(canvases), height, width))

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
        where = boxes.device
        if not len(self):
            return torch.empty((0, mask_size, mask_size), device=where).bool()
        numbered = F.pad(boxes.float(), (1, 0))
        numbered[:, 0] = torch.arange(len(self))  # which mask a box is cut from
        shades = self.tensor.to(where).float().unsqueeze(1)
        return roi_align(shades, numbered, mask_size, aligned=True).squeeze(1) >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """Tight boxes; the far corner is the last pixel + 1, and an empty mask gives zeros."""
        ends = []
        for across in (1, 2):
            marks = self.tensor.any(dim=across).to(torch.uint8)
            first, unused = marks.argmax(dim=1), marks.flip(1).argmax(dim=1)
            ends.append(torch.stack([first, marks.shape[1] - unused], dim=1))
        corners = torch.stack(ends, dim=2).flatten(1)
        return Boxes(corners * self.nonempty()[:, None])

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
        kind = type(polygons)
        if not issubclass(kind, list):
            raise ValueError(
                "PolygonMasks take a list (objects) of lists (parts) of coordinates, "
                f"got {kind.__name__}"
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
        return Boxes([_extent(parts) for parts in self.polygons])

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
        corners = boxes.detach().float().cpu().numpy()
        grids = [_polygons_in_box(*pair, mask_size) for pair in zip(self.polygons, corners)]
        stacked = np.array(grids, dtype=bool).reshape(len(self), mask_size, mask_size)
        return torch.as_tensor(stacked, device=boxes.device)

    def area(self) -> Tensor:
        """(N,) float64 areas by the shoelace formula, parts added up (overlaps count twice)."""
        areas = [sum(map(_shoelace, parts)) for parts in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    def __getitem__(self, item: int | slice | list[int] | Tensor) -> PolygonMasks:
        """Select by int, slice, list of int, index tensor or (N,) bool tensor."""
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        positions = [item] if isinstance(item, int) else _positions(item)
        return PolygonMasks([self.polygons[position] for position in positions])

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
        shape = tuple(tensor.shape)
        if len(shape) != 3:
            raise ValueError(f"ROIMasks need an (N, M, M) tensor, got {shape}")
        self.tensor = tensor

    def to(self, device: torch.device | str) -> ROIMasks:
        """The same masks on another device."""
        moved = self.tensor.to(device)
        return ROIMasks(moved)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return len(self.tensor)

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
        size = height, width
        return BitMasks(paste_masks_in_image(self.tensor, boxes, size, threshold=threshold))


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
    here = polygon.reshape(-1, 2)
    x, y = here.T
    next_x, next_y = np.roll(here, -1, axis=0).T
    return abs(float((x * next_y - next_x * y).sum())) / 2


def _extent(parts: Polygons) -> list[float]:
    if not parts:
        return [0.0] * 4
    points = np.concatenate(parts).reshape(-1, 2)
    return [*points.min(axis=0), *points.max(axis=0)]


def _positions(item: list[int] | np.ndarray | Tensor) -> list[int]:
    index = torch.as_tensor(item)
    if index.numel() == 0:
        return []
    if index.dim() != 1 or index.is_floating_point():
        raise IndexError(f"Cannot index polygons with {item!r}")
    return (index.nonzero()[:, 0] if index.dtype == torch.bool else index).tolist()
