"""Base class of the blocks that a backbone is made of."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from .batch_norm import FrozenBatchNorm2d

__all__ = ["CNNBlockBase"]

Block = TypeVar("Block", bound="CNNBlockBase")


class CNNBlockBase(nn.Module):
    """A block of layers with known channels and stride, of an NCHW -> NCHW forward."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self: Block) -> Block:
        """Stop all gradients and turn every batch norm into FrozenBatchNorm2d, in place."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self
