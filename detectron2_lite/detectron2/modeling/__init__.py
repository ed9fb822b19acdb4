"""Two-stage detectors and their parts."""

from detectron2.layers import ShapeSpec
from detectron2.utils.env import upstream_only

from .anchor_generator import ANCHOR_GENERATOR_REGISTRY, build_anchor_generator
from .backbone import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    build_backbone,
    build_resnet_backbone,
    make_stage,
)
from .meta_arch import (
    META_ARCH_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    GeneralizedRCNN,
    ProposalNetwork,
    SemanticSegmentor,
    build_model,
    build_sem_seg_head,
)
from .postprocessing import detector_postprocess, sem_seg_postprocess
from .proposal_generator import (
    PROPOSAL_GENERATOR_REGISTRY,
    RPN_HEAD_REGISTRY,
    build_proposal_generator,
    build_rpn_head,
)
from .roi_heads import (
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    FastRCNNOutputLayers,
    ROIHeads,
    StandardROIHeads,
    build_box_head,
    build_mask_head,
    build_roi_heads,
)

__getattr__ = upstream_only(
    __name__,
    [
        "BaseKeypointRCNNHead",
        "DatasetMapperTTA",
        "FCOS",
        "GeneralizedRCNNWithTTA",
        "MViT",
        "MMDetBackbone",
        "MMDetDetector",
        "PanopticFPN",
        "ROI_KEYPOINT_HEAD_REGISTRY",
        "RegNet",
        "RetinaNet",
        "SimpleFeaturePyramid",
        "SwinTransformer",
        "ViT",
        "build_keypoint_head",
        "get_vit_lr_decay_rate",
    ],
)
