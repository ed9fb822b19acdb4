"""Registry of whole models."""

from fvcore.common.registry import Registry
from torch import nn

from .._absent import resolve

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Modules built from ``(cfg)``; called with a list of dataset dicts, they return a dict of losses in
training and one dict of predictions per image in inference.
"""


def build_model(cfg) -> nn.Module:
    """Build ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``; no weights are loaded."""
    model = resolve(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(cfg.MODEL.DEVICE)
