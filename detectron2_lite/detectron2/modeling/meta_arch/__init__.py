"""Whole models."""

from detectron2.utils.env import upstream_only

from .build import META_ARCH_REGISTRY, build_model
from .rcnn import GeneralizedRCNN, ProposalNetwork
from .semantic_seg import (
    SEM_SEG_HEADS_REGISTRY,
    SemanticSegmentor,
    SemSegFPNHead,
    build_sem_seg_head,
)

__getattr__ = upstream_only(__name__, ["FCOS", "PanopticFPN", "RetinaNet"])
