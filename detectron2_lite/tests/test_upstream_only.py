"""What only upstream has answers at its documented address, with an error that names upstream."""

import importlib

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.env import NotInLiteError

# module, then names in it
TABLE = """
detectron2.config                                 LazyConfig LazyCall instantiate
detectron2.config.lazy                            LazyConfig LazyCall
detectron2.structures                             RotatedBoxes Keypoints heatmaps_to_keypoints
detectron2.structures.rotated_boxes               RotatedBoxes pairwise_iou
detectron2.structures.keypoints                   Keypoints
detectron2.tracking                               BaseTracker
detectron2.tracking.bbox_iou_tracker              BBoxIOUTracker
detectron2.export                                 TracingAdapter scripting_with_instances
detectron2.export.flatten                         TracingAdapter
detectron2.model_zoo                              get get_config get_config_file get_checkpoint_url
detectron2.modeling                               RetinaNet FCOS PanopticFPN GeneralizedRCNNWithTTA
detectron2.modeling.meta_arch.retinanet           RetinaNet
detectron2.modeling.meta_arch.fcos                FCOS
detectron2.modeling.meta_arch.panoptic_fpn        PanopticFPN
detectron2.modeling.test_time_augmentation        DatasetMapperTTA
detectron2.modeling.backbone                      SwinTransformer ViT SimpleFeaturePyramid RegNet
detectron2.modeling.roi_heads                     BaseKeypointRCNNHead RROIHeads
detectron2.modeling.roi_heads.keypoint_head       KRCNNConvDeconvUpsampleHead
detectron2.modeling.roi_heads.rotated_fast_rcnn   RROIHeads
detectron2.modeling.proposal_generator.rrpn       RRPN
detectron2.modeling.anchor_generator              RotatedAnchorGenerator
detectron2.modeling.box_regression                Box2BoxTransformRotated
detectron2.layers                                 DeformConv nms_rotated ROIAlignRotated ASPP
detectron2.layers.deform_conv                     DeformConv ModulatedDeformConv
detectron2.layers.rotated_boxes                   pairwise_iou_rotated
detectron2.data.transforms                        RandomRotation RotationTransform
detectron2.engine                                 TorchProfiler AutogradProfiler
detectron2.engine.hooks                           TorchMemoryStats
detectron2.evaluation                             RotatedCOCOEvaluator COCOPanopticEvaluator
detectron2.evaluation.panoptic_evaluation         COCOPanopticEvaluator
detectron2.evaluation.rotated_coco_evaluation     RotatedCOCOEvaluator
detectron2.evaluation.cityscapes_evaluation       CityscapesInstanceEvaluator
detectron2.evaluation.pascal_voc_evaluation       PascalVOCDetectionEvaluator
detectron2.evaluation.fast_eval_api               COCOeval_opt
detectron2.data.datasets.cityscapes               load_cityscapes_instances
detectron2.data.datasets.pascal_voc               register_pascal_voc
detectron2.data.datasets.coco_panoptic            register_coco_panoptic
detectron2.data.benchmark                         DataLoaderBenchmark
detectron2.checkpoint.catalog                     ModelCatalog
detectron2.utils.analysis                         flop_count_operators
detectron2.utils.video_visualizer                 VideoVisualizer
detectron2.projects                               panoptic_deeplab tridentnet
detectron2.projects.point_rend                    PointRendMaskHead PointRendSemSegHead
detectron2.projects.point_rend.point_head         StandardPointHead
detectron2.projects.deeplab                       DeepLabV3Head build_resnet_deeplab_backbone
"""
ADDRESSES = [
    (module, name)
    for module, *names in map(str.split, TABLE.strip().splitlines())
    for name in names
]


@pytest.mark.parametrize(("module", "name"), ADDRESSES, ids=lambda part: part.split(".")[-1])
def test_address(module, name):
    with pytest.raises(NotInLiteError, match=r"upstream\s+Detectron2"):
        exec(f"from {module} import {name}")


# config keys that select such a part, and what of it the message names
KEYS = {
    "META_ARCHITECTURE": ("RetinaNet", "RetinaNet"),
    "PROPOSAL_GENERATOR.NAME": ("RRPN", "RRPN"),
    "ROI_HEADS.NAME": ("RROIHeads", "RROIHeads"),
    "ANCHOR_GENERATOR.NAME": ("RotatedAnchorGenerator", "RotatedAnchorGenerator"),
    "BACKBONE.NAME": ("build_resnet_deeplab_backbone", "build_resnet_deeplab_backbone"),
    "KEYPOINT_ON": (True, "KEYPOINT_ON"),
    "RESNETS.DEFORM_ON_PER_STAGE": ([True] * 4, "DEFORM_ON_PER_STAGE"),
}


@pytest.mark.parametrize("key", KEYS)
def test_config_key(key):
    value, named = KEYS[key]
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "meta", f"MODEL.{key}", value])
    with pytest.raises(NotInLiteError, match=named):
        build_model(cfg)


def test_optional_features_stay_optional():
    """A program that guards an import with ImportError, or asks with hasattr, goes on."""
    structures = importlib.import_module("detectron2.structures")
    with pytest.raises(ImportError):
        from detectron2.export import TracingAdapter  # noqa: F401
    with pytest.raises(AttributeError):
        structures.no_such_name  # noqa: B018


def test_model_zoo_may_be_imported():
    """Many programs import it at the top and use it for one of their choices only."""
    from detectron2 import model_zoo

    with pytest.raises(NotInLiteError, match="model_zoo"):
        model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
