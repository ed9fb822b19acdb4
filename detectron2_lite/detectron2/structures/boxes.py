"""Axis-aligned boxes.

Legend: N boxes, M other boxes. XYXY means (x0, y0, x1, y1) in pixels, continuous coordinates:
a box that covers exactly the first pixel is (0, 0, 1, 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum, unique
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import ops

from ..utils.env import not_in_lite

__all__ = [
    "BoxMode",
    "Boxes",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
]


@unique
class BoxMode(IntEnum):
    """How the numbers of a box are to be read. The values appear in JSON files."""

    XYXY_ABS = 0
    """(x0, y0, x1, y1) in pixels."""
    XYWH_ABS = 1
    """(x0, y0, width, height) in pixels."""
    XYXY_REL = 2
    """XYXY as fractions of the image; named in annotations, not convertible."""
    XYWH_REL = 3
    """XYWH as fractions of the image; named in annotations, not convertible."""
    XYWHA_ABS = 4
    """(centre x, centre y, width, height, angle): pixels, and degrees counter-clockwise."""

    @staticmethod
    def convert(box: Any, from_mode: BoxMode | int, to_mode: BoxMode | int) -> Any:
        """Convert between XYXY_ABS and XYWH_ABS, from XYWHA_ABS to XYXY_ABS (the axis-aligned
        box around the rotated one) and from XYWH_ABS to XYWHA_ABS (angle 0).

        Args:
            box: 4 numbers (5 for XYWHA_ABS) as list or tuple, or an array or tensor whose last
                dimension is 4 (5).
            from_mode: mode of `box`.
            to_mode: mode wanted.

        Returns:
            The same kind of object as `box`; `box` itself when the modes are equal.

        Raises:
            ValueError: `box` has another count of numbers (per row), or a mode is relative.
            NotInLiteError: another conversion of rotated boxes.
        """
        source, target = BoxMode(from_mode), BoxMode(to_mode)
        if source == target:
            return box
        for mode in (source, target):
            if mode in (BoxMode.XYXY_REL, BoxMode.XYWH_REL):
                raise ValueError(f"{mode.name} cannot be converted: the image size is not known")
        if isinstance(box, (list, tuple)):
            if any(np.ndim(number) for number in box):
                raise ValueError(f"A box as {type(box).__name__} holds plain numbers, got {box!r}")
            return type(box)(_reinterpret(np.array(box, dtype=float), source, target).tolist())
        copy = box.copy() if isinstance(box, np.ndarray) else box.clone()
        return _reinterpret(copy, source, target)


def _reinterpret(box: Any, source: BoxMode, target: BoxMode) -> Any:
    """Express `box`, which may be overwritten, in the mode `target`."""
    width = 5 if source is BoxMode.XYWHA_ABS else 4
    if box.shape[-1] != width:
        raise ValueError(f"{source.name} needs {width} numbers a box, got {tuple(box.shape)}")
    if BoxMode.XYWHA_ABS in (source, target):
        return _reinterpret_rotated(box, source, target)
    if target is BoxMode.XYXY_ABS:
        box[..., 2:] += box[..., :2]
    else:
        box[..., 2:] -= box[..., :2]
    return box


def _reinterpret_rotated(box: Any, source: BoxMode, target: BoxMode) -> Any:
    if (source, target) not in (
        (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS),
        (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS),
    ):
        not_in_lite(f"BoxMode.convert from {source.name} to {target.name}")
    numbers = torch.as_tensor(box)
    precise = numbers.double()
    centre, size = precise[..., :2], precise[..., 2:4]
    if target is BoxMode.XYWHA_ABS:
        angle = torch.zeros_like(precise[..., :1])
        result = torch.cat([centre + size / 2, size, angle], dim=-1)
    else:
        turn = torch.deg2rad(precise[..., 4:])
        # What a side spans along x and y; swapped, it is what the other side spans.
        spans = torch.cat([turn.cos(), turn.sin()], dim=-1).abs()
        half = (size[..., :1] * spans + size[..., 1:] * spans.flip(-1)) / 2
        result = torch.cat([centre - half, centre + half], dim=-1)
    result = result.to(numbers.dtype)
    return result.numpy() if isinstance(box, np.ndarray) else result


class Boxes:
    """N boxes as an (N, 4) float32 tensor in XYXY, with the operations that models need.

    Indexing keeps it two-dimensional; iterating gives one (4,) tensor per box.
    """

    def __init__(self, tensor: Tensor | np.ndarray | Sequence) -> None:
        data = torch.as_tensor(tensor).to(torch.float32)
        if data.numel() == 0:
            # Keeps the device and, unlike new_zeros, a gradient that may hang on it.
            data = data.reshape(-1, 4)
        if data.dim() != 2 or data.shape[1] != 4:
            raise ValueError(f"Boxes need an (N, 4) tensor, got {tuple(data.shape)}")
        self.tensor = data

    def clone(self) -> Boxes:
        """A copy with its own memory."""
        duplicate = self.tensor.clone()
        return Boxes(duplicate)

    def to(self, device: torch.device | str) -> Boxes:
        """The same boxes on another device."""
        moved = self.tensor.to(device)
        return Boxes(moved)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def area(self) -> Tensor:
        """(N,) areas in square pixels."""
        sides = self.tensor[:, 2:] - self.tensor[:, :2]
        return sides[:, 0] * sides[:, 1]

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move all corners into an image of (height, width), in place.

        Raises:
            AssertionError: a coordinate is NaN or infinite.
        """
        corners = self.tensor.reshape(-1, 2, 2)
        assert corners.isfinite().all(), "Boxes with NaN or infinite corners"
        height, width = box_size
        x, y = corners[..., 0].clamp(0, width), corners[..., 1].clamp(0, height)
        self.tensor = torch.stack((x, y), dim=2).flatten(1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both sides are longer than `threshold` pixels."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool: no side exceeds an image of (height, width) by more than the threshold."""
        height, width = box_size
        limit = self.tensor.new_tensor([width, height]) + boundary_threshold
        low = self.tensor[:, :2] >= -boundary_threshold
        return (low & (self.tensor[:, 2:] < limit)).all(dim=1)

    def get_centers(self) -> Tensor:
        """(N, 2) centres as (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x and y coordinates by the two factors, in place."""
        self.tensor *= self.tensor.new_tensor([scale_x, scale_y] * 2)

    @classmethod
    def cat(cls, boxes_list: Sequence[Boxes]) -> Boxes:
        """Concatenate; an empty list gives no boxes (on the CPU)."""
        if not all(isinstance(boxes, Boxes) for boxes in boxes_list):
            raise TypeError("Boxes.cat takes a list of Boxes")
        rows = [boxes.tensor for boxes in boxes_list]
        return cls(torch.cat(rows) if rows else [])

    def __getitem__(self, item: int | slice | Tensor) -> Boxes:
        """Select by int, slice, index tensor or (N,) bool tensor; always (K, 4)."""
        chosen = self.tensor[item]
        if isinstance(item, int):
            chosen = chosen[None]
        if chosen.dim() != 2:
            raise IndexError(f"Indexing boxes with {item!r} does not give boxes")
        return Boxes(chosen)

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection areas of every box of the first with every box of the second."""
    a, b = boxes1.tensor[:, None], boxes2.tensor[None]
    overlap = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    overlap = overlap.clamp(min=0)
    return overlap[..., 0] * overlap[..., 1]


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    # A pair that does not meet has ratio 0 whatever the whole is: no 0 / 0 from empty boxes.
    return torch.where(part > 0, part / whole, torch.zeros_like(part))


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over union; 0, not NaN, for empty boxes."""
    inter = pairwise_intersection(boxes1, boxes2)
    return _ratio(inter, boxes1.area()[:, None] + boxes2.area()[None] - inter)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over the area of the *second* box; 0 where that is empty."""
    inter = pairwise_intersection(boxes1, boxes2)
    return _ratio(inter, boxes2.area()[None].expand_as(inter))


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N,) IoU of the i-th box of one with the i-th of the other.

    Raises:
        ValueError: the numbers of boxes differ.
    """
    if len(boxes1) != len(boxes2):
        raise ValueError(f"{len(boxes1)} boxes cannot be paired with {len(boxes2)}")
    a, b = boxes1.tensor, boxes2.tensor
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    inter = (high - low).clamp(min=0).prod(dim=1)
    return _ratio(inter, ops.box_area(a) + ops.box_area(b) - inter)
