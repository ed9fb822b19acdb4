"""The encoder that a config asks for."""

import logging
from typing import Any

from detectron2.config import CfgNode

from mal.encoder import ViTEncoder
from mal.encoder_pyramid import PyramidEncoder, is_pyramid
from mal.encoder_weights import PUBLISHED
from pseudolabel.errors import DataError
from pseudolabel.files import expand_path

logger = logging.getLogger(__name__)

SECTION = "MODEL.MAL.ENCODER"
# What describes a ViT alone; a ConvNeXt or Swin is as its name says.
_VIT_KEYS = {"STEM": "patch", "PATCH_SIZE": 0, "EMBED_DIM": 0, "DEPTH": 0, "NUM_HEADS": 0}


def build_encoder(cfg: CfgNode, pretrained: bool = True) -> ViTEncoder | PyramidEncoder:
    """The encoder of `MODEL.MAL.ENCODER` for crops of `MODEL.MAL.CROP_SIZE`.

    Args:
        pretrained: False leaves `ENCODER.WEIGHTS` unread.

    Raises:
        DataError: a name or size that cannot be built, keys of a ViT for another network, or
            weights that are not there, not readable or do not fit.
    """
    options = cfg.MODEL.MAL.ENCODER
    weights = str(options.WEIGHTS) if pretrained else ""
    if weights.startswith(PUBLISHED):
        _warn_of_other_pixels(weights, cfg)
    shared = {
        "name": options.NAME,
        "image_size": cfg.MODEL.MAL.CROP_SIZE,
        "drop_path": options.DROP_PATH,
        "weights": weights if weights.startswith(PUBLISHED) else expand_path(weights),
    }
    try:
        return _encoder(options, shared)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(SECTION, str(error), "correct the key") from error


def _encoder(options: CfgNode, shared: dict[str, Any]) -> ViTEncoder | PyramidEncoder:
    if is_pyramid(options.NAME):
        foreign = [key for key, default in _VIT_KEYS.items() if options[key] != default]
        if foreign:
            problem = (
                f"{', '.join(foreign)} describe a ViT; {options.NAME} is built as its name says"
            )
            raise DataError(SECTION, problem, "leave them at their defaults")
        return PyramidEncoder(**shared)
    return ViTEncoder(
        stem=options.STEM,
        patch_size=options.PATCH_SIZE,
        embed_dim=options.EMBED_DIM,
        depth=options.DEPTH,
        num_heads=options.NUM_HEADS,
        **shared,
    )


def _warn_of_other_pixels(weights: str, cfg: CfgNode) -> None:
    """Published weights know the normalisation that they were trained with."""
    import timm

    published = timm.get_pretrained_cfg(weights.removeprefix(PUBLISHED), allow_unregistered=True)
    if published is None:
        return
    for key, values in (("PIXEL_MEAN", published.mean), ("PIXEL_STD", published.std)):
        trained = [255 * value for value in values]
        own = list(cfg.MODEL[key])
        if max(abs(a - b) for a, b in zip(trained, own)) > 1:
            logger.warning(
                "%s was trained with MODEL.%s %s, this config has %s",
                *(weights, key, [round(value, 3) for value in trained], own),
            )
