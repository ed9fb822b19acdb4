"""Encoder and decoder as one module; teacher and student are two instances of it."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor, nn

from mal.decoder import KVDecoder
from mal.decoder_fully_connected import FullyConnectedDecoder
from mal.decoder_fully_convolutional import FullyConvolutionalDecoder
from mal.decoder_query import QueryDecoder
from mal.encoder_build import build_encoder
from pseudolabel.errors import DataError

# Constructor argument: key of MODEL.MAL.DECODER.
COMMON_KEYS = {"hidden_dim": "HIDDEN_DIM", "out_dim": "OUT_DIM", "num_classes": "NUM_CLASSES"}
VALUE_KEYS = {"num_convs": "NUM_CONVS", "scales": "SCALES", "upsample": "UPSAMPLE"}
QUERY_KEYS = {"num_layers": "QUERY_LAYERS", "num_heads": "QUERY_HEADS"}

# MODEL.MAL.DECODER.NAME: the class, and what it takes beside the common keys.
DECODERS = {
    "attention": (KVDecoder, VALUE_KEYS),
    "fully_connected": (FullyConnectedDecoder, {"grid": "GRID"}),
    "fully_convolutional": (FullyConvolutionalDecoder, VALUE_KEYS),
    "query": (QueryDecoder, {**VALUE_KEYS, **QUERY_KEYS}),
}


class MaskNetwork(nn.Module):
    """Mask predictor for crops around boxes.

    Args:
        encoder: (B, 3, S, S) -> (B, D, h, w), normally of `build_encoder`.
        decoder: (B, D, h, w), (B,), (B,) or None -> (B, M, M), normally of `build_decoder`.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor, box_areas: Tensor, classes: Tensor | None = None) -> Tensor:
        """Predict masks.

        Args:
            images: (B, 3, S, S), normalised crops.
            box_areas: (B,), original box areas in pixels.
            classes: (B,), class of each box, 0 to `DECODER.NUM_CLASSES` - 1; a class-agnostic
                decoder needs none and ignores them.

        Returns:
            logits (B, M, M), float32.

        Raises:
            ValueError: a class-aware decoder gets no classes, or one that it lacks.
        """
        return self.decoder(self.encoder(images), box_areas, classes)


def build_network(cfg: CfgNode, pretrained: bool = True) -> MaskNetwork:
    """Encoder and decoder as `MODEL.MAL.ENCODER` and `MODEL.MAL.DECODER` describe them.

    Args:
        pretrained: False leaves `ENCODER.WEIGHTS` unread.

    Raises:
        DataError: of `build_encoder` and `build_decoder`.
    """
    encoder = build_encoder(cfg, pretrained)
    return MaskNetwork(encoder, build_decoder(cfg, encoder.embed_dim))


def build_decoder(cfg: CfgNode, in_dim: int) -> nn.Module:
    """The decoder of `MODEL.MAL.DECODER` for features of `in_dim` channels.

    Raises:
        DataError: the name is unknown, or a number impossible.
    """
    options = cfg.MODEL.MAL.DECODER
    if options.NAME not in DECODERS:
        remedy = f"use one of {', '.join(DECODERS)}"
        raise DataError("MODEL.MAL.DECODER.NAME", f"there is no {options.NAME!r}", remedy)
    decoder, keys = DECODERS[options.NAME]
    arguments = {name: options[key] for name, key in {**COMMON_KEYS, **keys}.items()}
    try:
        return decoder(in_dim=in_dim, map_size=cfg.MODEL.MAL.MAP_SIZE, **arguments)
    except ValueError as error:
        raise DataError("MODEL.MAL.DECODER", str(error), "correct the number") from error
