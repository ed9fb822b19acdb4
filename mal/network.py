"""Encoder and decoder as one module; teacher and student are two instances of it."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor, nn

from mal.decoder import KVDecoder
from mal.encoder import ViTEncoder
from pseudolabel.files import expand_path


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


def build_network(cfg: CfgNode) -> MaskNetwork:
    """Encoder and decoder as `MODEL.MAL.ENCODER` and `MODEL.MAL.DECODER` describe them."""
    encoder = build_encoder(cfg)
    return MaskNetwork(encoder, build_decoder(cfg, encoder.embed_dim))


def build_encoder(cfg: CfgNode) -> ViTEncoder:
    """The encoder of `MODEL.MAL.ENCODER`."""
    options = cfg.MODEL.MAL.ENCODER
    return ViTEncoder(
        name=options.NAME,
        image_size=cfg.MODEL.MAL.CROP_SIZE,
        stem=options.STEM,
        patch_size=options.PATCH_SIZE,
        embed_dim=options.EMBED_DIM,
        depth=options.DEPTH,
        num_heads=options.NUM_HEADS,
        drop_path=options.DROP_PATH,
        weights=expand_path(options.WEIGHTS),
    )


def build_decoder(cfg: CfgNode, in_dim: int) -> nn.Module:
    """The decoder of `MODEL.MAL.DECODER` for features of `in_dim` channels."""
    options = cfg.MODEL.MAL.DECODER
    return KVDecoder(
        in_dim=in_dim,
        hidden_dim=options.HIDDEN_DIM,
        out_dim=options.OUT_DIM,
        num_convs=options.NUM_CONVS,
        map_size=cfg.MODEL.MAL.MAP_SIZE,
        scales=tuple(options.SCALES),
        upsample=options.UPSAMPLE,
    )
