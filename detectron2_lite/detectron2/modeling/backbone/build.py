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
    if input_shape is None:
        input_shape = ShapeSpec(len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    backbone = resolve(BACKBONE_REGISTRY, name)(cfg, input_shape)
    assert isinstance(backbone, Backbone), f"{name} made no Backbone"
    return backbone
