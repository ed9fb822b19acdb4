"""Grids of reference boxes, one set per feature level."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from detectron2.utils.env import upstream_only
from fvcore.common.registry import Registry
from torch import nn

from ._absent import resolve

ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")
ANCHOR_GENERATOR_REGISTRY.__doc__ = """
Modules that make anchors: called with a list of feature maps, they return one `Boxes` per level.
"""

__getattr__ = upstream_only(__name__, ["RotatedAnchorGenerator"])


class BufferList(nn.Module):
    """Like `nn.ParameterList`, for tensors that move with the module and are not saved."""

    def __init__(self, buffers: Sequence[torch.Tensor]):
        super().__init__()
        for index, value in enumerate(buffers):
            self.register_buffer(str(index), value, persistent=False)

    def __len__(self) -> int:
        return len(self._buffers)

    def __iter__(self):
        return iter(self._buffers.values())


def _spread(params: Sequence, num_levels: int, name: str) -> list[Sequence[float]]:
    """One list of numbers per level; a flat list or a single inner list serves all levels."""
    assert isinstance(params, Sequence), f"{name} must be a list, got {params!r}"
    assert len(params), f"{name} must not be empty"
    nested = list(params) if isinstance(params[0], Sequence) else [params]
    if len(nested) == 1:
        nested = nested * num_levels
    assert len(nested) == num_levels, (
        f"{name} has {len(nested)} lists for {num_levels} feature levels"
    )
    return nested


def _on_grid(feature: torch.Tensor, stride: int, cell: torch.Tensor, offset: float) -> torch.Tensor:
    """(H * W * A, 4) the anchors `cell` (A, 4) at every cell of a map (..., H, W)."""
    height, width = feature.shape[-2], feature.shape[-1]
    ys = (torch.arange(height, device=cell.device, dtype=cell.dtype) + offset) * stride
    xs = (torch.arange(width, device=cell.device, dtype=cell.dtype) + offset) * stride
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), dim=-1).repeat(1, 1, 2)
    return (grid[:, :, None] + cell).reshape(-1, 4)


class _TensorBoxes:
    """`Boxes` as far as TorchScript understands it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class _ScriptableGenerator(nn.Module):
    """A generator with its anchors fixed; TorchScript cannot compile `configurable` classes."""

    def __init__(self, cells: list[torch.Tensor], strides: list[int], offset: float) -> None:
        super().__init__()
        self.cells = cells
        self.strides = strides
        self.offset = offset

    def forward(self, features: list[torch.Tensor]) -> list[_TensorBoxes]:
        boxes: list[_TensorBoxes] = []
        for feature, stride, cell in zip(features, self.strides, self.cells):
            boxes.append(_TensorBoxes(_on_grid(feature, stride, cell, self.offset)))
        return boxes


@ANCHOR_GENERATOR_REGISTRY.register()
class DefaultAnchorGenerator(nn.Module):
    """Anchors of every size and aspect ratio of a level, at every cell of its grid.

    L levels; A_l = sizes x ratios anchors per cell of level l.
    """

    box_dim: int = 4  # numbers that describe one anchor

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence,
        aspect_ratios: Sequence,
        strides: Sequence[int],
        offset: float = 0.5,
    ):
        """
        Args:
            sizes: per level (or one list for all), the square roots of the areas, in pixels.
            aspect_ratios: likewise, height / width; the area is kept.
            strides: pixels between cells, per level.
            offset: where in its cell an anchor is centred, in [0, 1): 0 the corner, 0.5 the middle.
        """
        super().__init__()
        assert 0.0 <= offset < 1.0, f"offset must be in [0, 1), got {offset}"
        self.strides = list(strides)
        self.offset = offset
        levels = len(self.strides)
        pairs = zip(
            _spread(sizes, levels, "sizes"), _spread(aspect_ratios, levels, "aspect_ratios")
        )
        self.cell_anchors = BufferList([self.generate_cell_anchors(s, r) for s, r in pairs])

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]) -> dict:
        node = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": node.SIZES,
            "aspect_ratios": node.ASPECT_RATIOS,
            "offset": node.OFFSET,
            "strides": [shape.stride for shape in input_shape],
        }

    @property
    def num_anchors(self) -> list[int]:
        """Anchors per cell, for each level."""
        return [len(cell) for cell in self.cell_anchors]

    @property
    def num_cell_anchors(self) -> list[int]:
        """The older name of `num_anchors`."""
        return self.num_anchors

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> torch.Tensor:
        """Anchors of one cell, centred on (0, 0): (len(sizes) * len(aspect_ratios), 4) XYXY."""
        size = torch.tensor(sizes, dtype=torch.float64)[:, None]
        ratio = torch.tensor(aspect_ratios, dtype=torch.float64)[None]
        half = 0.5 * torch.stack([size / ratio.sqrt(), size * ratio.sqrt()], dim=-1)
        return torch.cat([-half, half], dim=-1).reshape(-1, 4).float()

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """
        Args:
            features: one map per level, (..., H_l, W_l); only sizes and device are read.

        Returns:
            Per level `Boxes` of H_l * W_l * A_l anchors, in the order of (H, W, A).
        """
        levels = zip(features, self.strides, self.cell_anchors, strict=True)
        return [Boxes(_on_grid(*level, self.offset)) for level in levels]

    def __prepare_scriptable__(self) -> nn.Module:
        """What `torch.jit.script` compiles in place of this module."""
        return _ScriptableGenerator(list(self.cell_anchors), self.strides, self.offset)


def build_anchor_generator(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the generator named by ``MODEL.ANCHOR_GENERATOR.NAME``."""
    return resolve(ANCHOR_GENERATOR_REGISTRY, cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)
