"""Point sampling of PointRend (Kirillov et al., CVPR 2020) and the colour jitter of its recipes."""

from detectron2.utils.env import upstream_only

from .color_augmentation import ColorAugSSDTransform

__all__ = ["ColorAugSSDTransform"]

__getattr__ = upstream_only(
    __name__,
    [
        "ImplicitPointRendMaskHead",
        "PointRendMaskHead",
        "PointRendSemSegHead",
        "add_pointrend_config",
    ],
)
