"""Thin, empty-safe building blocks on top of torch and torchvision."""

from ..utils.env import upstream_only
from .batch_norm import FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from .blocks import CNNBlockBase
from .losses import ciou_loss, diou_loss
from .mask_ops import paste_masks_in_image
from .nms import batched_nms, nms
from .roi_align import ROIAlign, roi_align
from .shape_spec import ShapeSpec
from .weight_init import c2_msra_fill, c2_xavier_fill
from .wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

__all__ = [
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "FrozenBatchNorm2d",
    "Linear",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ShapeSpec",
    "batched_nms",
    "c2_msra_fill",
    "c2_xavier_fill",
    "cat",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "empty_input_loss_func_wrapper",
    "get_norm",
    "interpolate",
    "move_device_like",
    "nms",
    "nonzero_tuple",
    "paste_masks_in_image",
    "roi_align",
    "shapes_to_tensor",
]

__getattr__ = upstream_only(
    __name__,
    [
        "ASPP",
        "CycleBatchNormList",
        "DeformConv",
        "DepthwiseSeparableConv2d",
        "ModulatedDeformConv",
        "ROIAlignRotated",
        "batched_nms_rotated",
        "deform_conv",
        "modulated_deform_conv",
        "nms_rotated",
        "pairwise_iou_rotated",
        "paste_mask_in_image_old",
        "roi_align_rotated",
    ],
)
