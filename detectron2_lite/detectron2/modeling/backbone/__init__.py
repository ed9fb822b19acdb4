"""Backbones: ResNet and the feature pyramid."""

from detectron2.utils.env import upstream_only

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN
from .resnet import (
    BasicBlock,
    BasicStem,
    BottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)

__getattr__ = upstream_only(
    __name__,
    [
        "DeformBottleneckBlock",
        "MViT",
        "RegNet",
        "SimpleFeaturePyramid",
        "SwinTransformer",
        "ViT",
        "build_fcos_resnet_fpn_backbone",
        "get_vit_lr_decay_rate",
    ],
)
