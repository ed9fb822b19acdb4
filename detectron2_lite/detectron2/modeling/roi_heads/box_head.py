"""Feature extractors between pooled regions and the box predictor."""

import math
from collections.abc import Sequence

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.layers.weight_init import c2_msra_fill, c2_xavier_fill
from fvcore.common.registry import Registry
from torch import nn

from .._absent import resolve
from .._conv import conv_norm as make_conv

__all__ = ["ROI_BOX_HEAD_REGISTRY", "FastRCNNConvFCHead", "build_box_head"]

_SIDES = ("channels", "height", "width")

ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
ROI_BOX_HEAD_REGISTRY.__doc__ = """
Modules built from ``(cfg, input_shape: ShapeSpec)`` that turn pooled regions into features; they
have an ``output_shape``.
"""


@ROI_BOX_HEAD_REGISTRY.register()
class FastRCNNConvFCHead(nn.Sequential):
    """3x3 convolutions conv1, conv2, ..., then linear layers fc1, fc2, ..., ReLU after each."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dims: Sequence[int],
        fc_dims: Sequence[int],
        conv_norm="",
    ):
        """
        Args:
            input_shape: channels, height and width of a pooled region.
            conv_dims, fc_dims: output sizes of the layers.
            conv_norm: normalisation of the convolutions, which then have no bias.
        """
        assert [*conv_dims, *fc_dims], "a box head needs at least one layer"
        super().__init__()
        size = tuple(getattr(input_shape, side) for side in _SIDES)
        for number, dim in enumerate(conv_dims, start=1):
            conv = make_conv(size[0], dim, 3, conv_norm, activation=nn.ReLU())
            self.add_module(f"conv{number}", conv)
            size = (dim, *size[1:])
        if fc_dims:
            self.flatten = nn.Flatten()
        for number, dim in enumerate(fc_dims, start=1):
            self.add_module(f"fc{number}", nn.Linear(math.prod(size), dim))
            self.add_module(f"fc_relu{number}", nn.ReLU())
            size = (dim,)
        self._output_size = size
        fills = {nn.Linear: c2_xavier_fill, Conv2d: c2_msra_fill}
        for layer in self.children():
            if type(layer) in fills:
                fills[type(layer)](layer)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [node.CONV_DIM] * node.NUM_CONV,
            "fc_dims": [node.FC_DIM] * node.NUM_FC,
            "conv_norm": node.NORM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels (and height and width, if there is no linear layer) of the output."""
        return ShapeSpec(**dict(zip(_SIDES, self._output_size)))


def build_box_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build the head named by ``MODEL.ROI_BOX_HEAD.NAME``."""
    return resolve(ROI_BOX_HEAD_REGISTRY, cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)
