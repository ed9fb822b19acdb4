"""Feature pyramid network (Lin et al. 2017)."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.layers.weight_init import c2_xavier_fill
from torch import nn

from .._conv import conv_norm
from .backbone import Backbone
from .build import BACKBONE_REGISTRY
from .resnet import build_resnet_backbone

__all__ = [
    "FPN",
    "LastLevelMaxPool",
    "LastLevelP6P7",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
]


def _pyramid_conv(in_channels: int, out_channels: int, kernel: int, norm) -> Conv2d:
    conv = conv_norm(in_channels, out_channels, kernel, norm, bias=norm == "")
    c2_xavier_fill(conv)
    return conv


class FPN(Backbone):
    """Top-down pyramid; the map of stride 2^s is called "p<s>", with layers fpn_lateral<s> and
    fpn_output<s>."""

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm="",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ):
        """
        Args:
            in_features: maps of ``bottom_up`` from fine to coarse, each of twice the stride of the
                one before.
            norm: of every convolution; a normalised one has no bias.
            top_block: makes coarser maps from the one named by its ``in_feature``; has
                ``num_levels`` and ``in_feature``.
            fuse_type: "sum" or "avg" of the lateral and the upsampled map.
            square_pad: if positive, pad all images to squares of this side.
        """
        assert fuse_type in ("sum", "avg"), fuse_type
        assert len(in_features), "in_features must not be empty"
        assert isinstance(bottom_up, Backbone), type(bottom_up)
        super().__init__()
        self._fuse_type, self._square_pad = fuse_type, square_pad
        self.in_features = tuple(in_features)
        sources = [bottom_up.output_shape()[name] for name in in_features]
        strides = [source.stride for source in sources]
        assert all(b == 2 * a for a, b in itertools.pairwise(strides)), (
            f"Strides {strides} are not log2 contiguous"
        )
        self._stages = [int(math.log2(stride)) for stride in strides]
        for stage, source in zip(self._stages, sources):
            lateral = _pyramid_conv(source.channels, out_channels, 1, norm)
            self.add_module(f"fpn_lateral{stage}", lateral)
            self.add_module(
                f"fpn_output{stage}", _pyramid_conv(out_channels, out_channels, 3, norm)
            )
        self.top_block, self.bottom_up = top_block, bottom_up
        extra = 0 if top_block is None else top_block.num_levels
        levels = self._stages + [self._stages[-1] + 1 + step for step in range(extra)]
        self._out_features = [f"p{level}" for level in levels]
        self._out_feature_strides = {f"p{level}": 2**level for level in levels}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)
        self._size_divisibility = strides[-1]

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self._square_pad}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C, H, W) images to {"p2": ..., "p3": ...}, all with ``out_channels`` channels."""
        bottom_up = self.bottom_up(x)
        outputs: dict[str, torch.Tensor] = {}
        merged = None
        for stage, name in zip(reversed(self._stages), reversed(self.in_features)):
            lateral = getattr(self, f"fpn_lateral{stage}")(bottom_up[name])
            if merged is None:
                merged = lateral
            else:
                merged = lateral + F.interpolate(merged, scale_factor=2)
                merged = merged / 2 if self._fuse_type == "avg" else merged
            outputs[f"p{stage}"] = getattr(self, f"fpn_output{stage}")(merged)
        if self.top_block is not None:
            source = self.top_block.in_feature
            base = bottom_up[source] if source in bottom_up else outputs[source]
            outputs.update(zip(self._out_features[len(self._stages) :], self.top_block(base)))
        return {name: outputs[name] for name in self._out_features}


class LastLevelMaxPool(nn.Module):
    """p6 as every second pixel of p5 (FPN, section 4.1)."""

    num_levels = 1
    in_feature = "p5"

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) to one map of half the size."""
        return [F.max_pool2d(x, 1, stride=2)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 by strided convolutions (RetinaNet, section 4)."""

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5"):
        super().__init__()
        self.in_feature = in_feature
        self.p6, self.p7 = (
            nn.Conv2d(width, out_channels, 3, stride=2, padding=1)
            for width in (in_channels, out_channels)
        )
        for layer in (self.p6, self.p7):
            c2_xavier_fill(layer)

    def forward(self, c5: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) to two maps, of a half and of a quarter of the size."""
        p6 = self.p6(c5)
        return [p6, self.p7(p6.relu())]


def _resnet_pyramid(cfg, input_shape: ShapeSpec, make_top) -> FPN:
    bottom_up = build_resnet_backbone(cfg, input_shape)
    node = cfg.MODEL.FPN
    return FPN(
        bottom_up,
        node.IN_FEATURES,
        node.OUT_CHANNELS,
        norm=node.NORM,
        top_block=make_top(bottom_up),
        fuse_type=node.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet with the pyramid p2 ... p6 of Mask R-CNN."""
    return _resnet_pyramid(cfg, input_shape, lambda _: LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet with the pyramid p3 ... p7 of RetinaNet."""
    width = cfg.MODEL.FPN.OUT_CHANNELS
    return _resnet_pyramid(
        cfg,
        input_shape,
        lambda bottom_up: LastLevelP6P7(bottom_up.output_shape()["res5"].channels, width),
    )
