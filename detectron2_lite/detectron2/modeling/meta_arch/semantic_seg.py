"""Registry of semantic and per-pixel heads; Mask2Former-like models register theirs here."""

from detectron2.layers import ShapeSpec
from detectron2.utils.env import upstream_only
from fvcore.common.registry import Registry
from torch import nn

from .._absent import resolve

SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")
SEM_SEG_HEADS_REGISTRY.__doc__ = """
Modules built from ``(cfg, input_shape: dict of ShapeSpec)`` that predict from feature maps.
"""

__getattr__ = upstream_only(__name__, ["SemanticSegmentor", "SemSegFPNHead"])


def build_sem_seg_head(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build ``MODEL.SEM_SEG_HEAD.NAME``."""
    return resolve(SEM_SEG_HEADS_REGISTRY, cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, input_shape)
