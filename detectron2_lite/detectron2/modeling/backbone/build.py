"""Registry of backbones."""

from detectron2.layers import ShapeSpec
from fvcore.common.registry import Registry

from .._absent import resolve
from .backbone import Backbone

BACKBONE_REGISTRY = Registry("BACKBONE")
BACKBONE_REGISTRY.__doc__ = """
Functions or classes called with ``(cfg, input_shape: ShapeSpec)`` that return a `Backbone`.
"""


def build_backbone(cfg, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone named by ``MODEL.BACKBONE.NAME``.

    Args:
        input_shape: of the images; by default as many channels as ``MODEL.PIXEL_MEAN`` has.
    """
    shape = input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone = resolve(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME)(cfg, shape)
    assert isinstance(backbone, Backbone), f"{cfg.MODEL.BACKBONE.NAME} made no Backbone"
    return backbone
