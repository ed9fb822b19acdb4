"""Encoder and decoder as one module; teacher and student are two instances of it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write

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


def save_network(network: MaskNetwork, path: str | Path) -> None:
    """Writes encoder and decoder to a safetensors file, in half precision, atomically."""
    from safetensors.torch import save

    state = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    with atomic_write(path, "wb") as file:
        file.write(save(state))


def load_network(network: MaskNetwork, path: str | Path) -> None:
    """Loads a file of `save_network`; names and shapes must be the network's own.

    Raises:
        DataError: no such file, no safetensors file, or one of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    remedy = "check MODEL.MAL.WEIGHTS, and that ENCODER and DECODER are those of the file"
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(path, f"cannot be read ({error})", remedy) from error
    try:
        network.load_state_dict({name: value.to(torch.float32) for name, value in state.items()})
    except RuntimeError as error:
        raise DataError(path, f"does not fit the network ({error})", remedy) from error
