"""DeepLab's config keys and its polynomial learning rate; the models are upstream's."""

from detectron2.utils.env import upstream_only

from .build_solver import build_lr_scheduler
from .config import add_deeplab_config

__all__ = ["add_deeplab_config", "build_lr_scheduler"]

__getattr__ = upstream_only(
    __name__, ["DeepLabV3Head", "DeepLabV3PlusHead", "build_resnet_deeplab_backbone"]
)
