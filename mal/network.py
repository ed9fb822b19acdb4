"""Encoder and decoder as one module; teacher and student are two instances of it."""

from __future__ import annotations

from torch import Tensor, nn

from .decoder import KVDecoder
from .encoder import ViTEncoder


class MaskNetwork(nn.Module):
    """Class-agnostic mask predictor for crops around boxes.

    Args:
        encoder: (B, 3, S, S) -> (B, D, h, w), normally a `ViTEncoder`.
        decoder: (B, D, h, w), (B,) -> (B, M, M), normally a `KVDecoder`.
    """

    def __init__(self, encoder: ViTEncoder | nn.Module, decoder: KVDecoder | nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor, box_areas: Tensor) -> Tensor:
        """Predict masks.

        Args:
            images: (B, 3, S, S), normalised crops.
            box_areas: (B,), original box areas in pixels.

        Returns:
            logits (B, M, M), float32.
        """
        return self.decoder(self.encoder(images), box_areas)
