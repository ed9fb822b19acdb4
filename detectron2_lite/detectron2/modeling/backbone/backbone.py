"""What every backbone has in common."""

from abc import ABCMeta, abstractmethod

import torch
from detectron2.layers import ShapeSpec
from torch import nn

__all__ = ["Backbone"]


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from images to named feature maps.

    The default `output_shape` reads three attributes: ``_out_features`` (names),
    ``_out_feature_channels`` and ``_out_feature_strides`` (both by name).
    """

    @abstractmethod
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C, H, W) images to {name: (B, C_l, H / stride_l, W / stride_l)}."""

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of this; 0 means no demand."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further demands for `ImageList.from_tensors`: "size_divisibility", "square_size"."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every output, by name."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {
            name: ShapeSpec(channels=channels[name], stride=strides[name])
            for name in self._out_features
        }
