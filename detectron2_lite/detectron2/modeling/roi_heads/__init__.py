"""Second stage of the detector."""

from detectron2.utils.env import upstream_only

from .box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead, build_box_head
from .cascade_rcnn import CascadeROIHeads
from .fast_rcnn import FastRCNNOutputLayers, fast_rcnn_inference
from .mask_head import (
    ROI_MASK_HEAD_REGISTRY,
    BaseMaskRCNNHead,
    MaskRCNNConvUpsampleHead,
    build_mask_head,
)
from .res5_heads import Res5ROIHeads
from .roi_heads import (
    ROI_HEADS_REGISTRY,
    ROIHeads,
    StandardROIHeads,
    build_roi_heads,
    select_foreground_proposals,
)

__getattr__ = upstream_only(
    __name__,
    [
        "BaseKeypointRCNNHead",
        "KRCNNConvDeconvUpsampleHead",
        "ROI_KEYPOINT_HEAD_REGISTRY",
        "RROIHeads",
        "build_keypoint_head",
    ],
)
