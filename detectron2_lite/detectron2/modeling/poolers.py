"""Pooling of regions from a feature pyramid (FPN, equation 1)."""

import math
from collections.abc import Sequence

import torch
from detectron2.layers import ROIAlign, cat
from detectron2.structures import Boxes
from detectron2.utils.env import not_in_lite
from torch import nn
from torchvision.ops import RoIPool

__all__ = ["ROIPooler", "assign_boxes_to_levels", "convert_boxes_to_pooler_format"]


def assign_boxes_to_levels(
    box_lists: list[Boxes],
    min_level: int,
    max_level: int,
    canonical_box_size: int,
    canonical_level: int,
) -> torch.Tensor:
    """Level of each of the M boxes, (M,) int64, counted from ``min_level`` = 0.

    A box of area ``canonical_box_size ** 2`` px belongs to ``canonical_level``; each doubling of
    the side is one level up.
    """
    side = Boxes.cat(box_lists).area().sqrt()
    # The small term keeps log2 finite for boxes without area; clamping sends them to the bottom.
    level = canonical_level + torch.log2(side / canonical_box_size + 1e-8)
    return level.floor().clamp(min_level, max_level).long() - min_level


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> torch.Tensor:
    """All boxes of a batch as (M, 5): image index, x0, y0, x1, y1."""
    rows = [torch.nn.functional.pad(b.tensor, (1, 0), value=i) for i, b in enumerate(box_lists)]
    return cat(rows)


def _make_pooler(kind: str, size: tuple[int, int], scale: float, ratio: int) -> nn.Module:
    if kind == "ROIPool":
        return RoIPool(size, spatial_scale=scale)
    if kind == "ROIAlignRotated":
        not_in_lite("POOLER_TYPE ROIAlignRotated")
    if kind not in ("ROIAlign", "ROIAlignV2"):
        raise ValueError(f"Unknown pooler type: {kind}")
    return ROIAlign(size, spatial_scale=scale, sampling_ratio=ratio, aligned=kind == "ROIAlignV2")


class ROIPooler(nn.Module):
    """Pool each box from the one pyramid level that suits its size."""

    def __init__(
        self,
        output_size: int | tuple[int, int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        """
        Args:
            output_size: side, or (height, width), of the pooled map.
            scales: 1 / stride of each level, each half the one before.
            sampling_ratio: samples per bin and axis; 0 adapts it to the box.
            pooler_type: "ROIPool", "ROIAlign" (half a pixel off) or "ROIAlignV2" (aligned).
            canonical_box_size, canonical_level: see `assign_boxes_to_levels`.
        """
        super().__init__()
        size = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
        assert [type(n) for n in size] == [int, int], (
            f"output_size {output_size} is not two integers"
        )
        depths = [-math.log2(scale) for scale in scales]
        assert all(math.isclose(d, round(d)) for d in depths), "strides must be powers of two"
        assert round(depths[-1]) - round(depths[0]) == len(scales) - 1, (
            "scales must fall by half from level to level"
        )
        assert round(depths[0]) >= 0
        assert canonical_box_size > 0
        self.output_size = size
        self.min_level, self.max_level = round(depths[0]), round(depths[-1])
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level
        self.level_poolers = nn.ModuleList(
            _make_pooler(pooler_type, size, scale, sampling_ratio) for scale in scales
        )

    def forward(self, x: list[torch.Tensor], box_lists: list[Boxes]) -> torch.Tensor:
        """
        Args:
            x: per level (B, C, H_l, W_l).
            box_lists: B sets of boxes in image pixels, M in all.

        Returns:
            (M, C, h, w), in the order of ``box_lists``; with M = 0 still tied to the features, so
            that a backward pass through it is legal.
        """
        assert len(x) == len(self.level_poolers), (
            f"{len(x)} feature maps for {len(self.level_poolers)} levels"
        )
        images, channels = x[0].shape[:2]
        assert images == len(box_lists), (
            f"{len(box_lists)} box lists for a batch of {images} images"
        )
        if sum(len(boxes) for boxes in box_lists) == 0:
            nothing = x[0].new_zeros(0, channels, *self.output_size)
            return nothing + sum(level.sum() * 0 for level in x)
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(x) == 1:
            (pooler,) = self.level_poolers
            return pooler(*x, rois)
        canonical = self.canonical_box_size, self.canonical_level
        lowest, highest = self.min_level, self.max_level
        level_of = assign_boxes_to_levels(box_lists, lowest, highest, *canonical)
        index, pooled = [], []
        for level, (feature, pooler) in enumerate(zip(x, self.level_poolers)):
            chosen = (level_of == level).nonzero().flatten()
            index.append(chosen)
            pooled.append(pooler(feature, rois[chosen]))
        # The levels come out one after another; put the rows back into the order of the boxes.
        return torch.cat(pooled)[torch.cat(index).argsort()]
