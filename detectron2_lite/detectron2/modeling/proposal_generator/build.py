"""Registry of proposal generators."""

from detectron2.layers import ShapeSpec
from fvcore.common.registry import Registry
from torch import nn

from .._absent import resolve

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Modules built from ``(cfg, input_shape: dict of ShapeSpec)``; called with images, features and
targets, they return one `Instances` of proposals per image and a dict of losses.
"""


def build_proposal_generator(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Build ``MODEL.PROPOSAL_GENERATOR.NAME``; None for "PrecomputedProposals"."""
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    precomputed = name == "PrecomputedProposals"
    return None if precomputed else resolve(PROPOSAL_GENERATOR_REGISTRY, name)(cfg, input_shape)
