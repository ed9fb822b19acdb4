"""Look-up in a registry, with a clear error for what this build leaves to upstream."""

from typing import Any

from detectron2.utils.env import not_in_lite
from fvcore.common.registry import Registry

# Names that stock configs mention and that only upstream registers.
_UPSTREAM_ONLY = """
CoarseMaskHead FCOS KRCNNConvDeconvUpsampleHead PanopticFPN PointRendROIHeads
PointRendSemSegHead RROIHeads RRPN RetinaNet RotatedAnchorGenerator
DeepLabV3Head DeepLabV3PlusHead build_resnet_deeplab_backbone
build_fcos_resnet_fpn_backbone build_mnasnet_backbone build_regnet_backbone build_vit_backbone
"""


def resolve(registry: Registry, name: str) -> Any:
    """What is registered under ``name``.

    Raises:
        NotInLiteError: only upstream has it (a user's own registration wins).
        KeyError: nobody has it.
    """
    if name in _UPSTREAM_ONLY.split() and name not in registry:
        not_in_lite(name)
    return registry.get(name)
