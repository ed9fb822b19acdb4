"""Behaviour that the golden numbers do not show: errors, images without objects, frozen maps."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.modeling.meta_arch import build_sem_seg_head
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

SHAPES = {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}


def cascade_cfg(**model):
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    for name, value in model.items():
        cfg.merge_from_list([f"MODEL.{name.replace('__', '.')}", value])
    return cfg


def make_features(n=1):
    generator = torch.Generator().manual_seed(0)
    maps = {"p2": (n, 8, 16, 16), "p3": (n, 8, 8, 8)}
    return {name: torch.randn(shape, generator=generator) for name, shape in maps.items()}


def make_target(boxes):
    boxes = torch.tensor(boxes).float().view(-1, 4)
    classes = torch.arange(len(boxes)) % 3
    masks = BitMasks(torch.ones(len(boxes), 64, 64, dtype=torch.bool))
    return Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=masks)


def make_proposals(boxes):
    logits = torch.zeros(len(boxes))
    return Instances((64, 64), proposal_boxes=Boxes(boxes), objectness_logits=logits)


NEAR = [[8.0, 8, 40, 40], [10, 6, 44, 38], [0, 0, 60, 60], [50, 50, 62, 62]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # the next stage takes one box per region, so there cannot be one per class
        ({"ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": False}, "CLS_AGNOSTIC_BBOX_REG"),
        # three thresholds by default, two sets of weights
        ({"ROI_BOX_CASCADE_HEAD__BBOX_REG_WEIGHTS": ((1.0,) * 4,) * 2}, "3 IOUS and 2"),
        # sampled at 0.5, trained at 0.6
        ({"ROI_BOX_CASCADE_HEAD__IOUS": (0.6, 0.6, 0.7)}, "starts at 0.6"),
        ({"KEYPOINT_ON": True}, "upstream"),
    ],
)
def test_cascade_config_mistakes(change, message):
    with pytest.raises((AssertionError, NotImplementedError), match=message):
        build_roi_heads(cascade_cfg(**change), SHAPES)


@pytest.mark.parametrize("boxes", [[], [NEAR[0]]], ids=["background", "one object"])
def test_cascade_gives_every_parameter_a_gradient(boxes):
    torch.manual_seed(0)
    heads = build_roi_heads(cascade_cfg(), SHAPES)
    with EventStorage() as storage:
        _, losses = heads(None, make_features(), [make_proposals(NEAR)], [make_target(boxes)])
    sum(losses.values()).backward()
    assert len(losses) == 6
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    if not boxes:
        assert all(losses[f"loss_box_reg_stage{k}"] == 0 for k in range(3))
        assert storage.latest()["stage2/roi_head/num_fg_samples"][0] == 0


def test_later_stages_are_stricter():
    """Boxes of IoU 0.56 and 0.64 with their target: foreground in one stage, in two."""
    heads = build_roi_heads(cascade_cfg(), SHAPES)
    boxes = torch.tensor([[0.0, 0, 56, 10], [0, 0, 64, 10], [0, 0, 100, 10]])
    target = make_target([[0, 0, 100, 10]])
    counts = []
    with EventStorage():
        for stage in range(3):
            proposals = [Instances((100, 100), proposal_boxes=Boxes(boxes))]
            (labelled,) = heads._match_and_label_boxes(proposals, stage, [target])
            counts.append(int((labelled.gt_classes == 0).sum()))
            assert torch.equal(labelled.gt_boxes.tensor, target.gt_boxes.tensor.expand(3, 4))
    assert counts == [3, 2, 1]


def test_each_stage_sends_back_its_share_of_the_gradient():
    """A cascade of one stage is the stock head; with three, each one's gradient is a third."""
    one = cascade_cfg(
        ROI_BOX_CASCADE_HEAD__IOUS=(0.5,), ROI_BOX_CASCADE_HEAD__BBOX_REG_WEIGHTS=((10.0,) * 4,)
    )
    three = build_roi_heads(cascade_cfg(), SHAPES)
    single = build_roi_heads(one, SHAPES)
    single.load_state_dict(three.state_dict(), strict=False)
    gradients = []
    for heads in (single, three):
        features = {name: x.requires_grad_() for name, x in make_features().items()}
        logits, _ = heads._run_stage(features, [make_proposals(NEAR)], 0)
        logits.sum().backward()
        gradients.append(features["p2"].grad)
    torch.testing.assert_close(gradients[1] * 3, gradients[0])
    assert gradients[0].abs().sum() > 0


def test_inference_keeps_a_box_that_leaves_the_image():
    """Scores of three stages are averaged row by row, so no stage may drop a row."""
    heads = build_roi_heads(cascade_cfg(ROI_HEADS__SCORE_THRESH_TEST=0.0), SHAPES).eval()
    outside = make_proposals([*NEAR[:1], [70.0, 70, 80, 80]])
    with torch.no_grad():
        (found,), _ = heads(None, make_features(), [outside])
    assert len(found) > 0
    with torch.no_grad():
        (found,), _ = heads(None, make_features(), [make_proposals(torch.zeros(0, 4))])
    assert len(found) == 0


def c4_model(**model):
    cfg = get_cfg()  # C4 heads are the default of every key
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", True
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 16, 4
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    for name, value in model.items():
        cfg.merge_from_list([f"MODEL.{name.replace('__', '.')}", value])
    torch.manual_seed(0)
    return build_model(cfg)


def test_c4_trains_without_objects_and_finds_masks():
    model = c4_model()
    assert isinstance(model.roi_heads, Res5ROIHeads)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    for boxes in ([], NEAR[:2]):
        with EventStorage():
            losses = model([{"image": image, "instances": make_target(boxes)}])
        assert set(losses) == {
            "loss_rpn_cls",
            "loss_rpn_loc",
            "loss_cls",
            "loss_box_reg",
            "loss_mask",
        }
        assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    given = Instances((64, 64), pred_boxes=Boxes(NEAR), pred_classes=torch.tensor([0, 1, 2, 0]))
    model.eval()
    with torch.no_grad():
        (raw,) = model.inference(
            [{"image": image}], detected_instances=[given], do_postprocess=False
        )
    assert raw.pred_masks.shape == (4, 1, 14, 14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ROI_HEADS__IN_FEATURES": ["res3", "res4"]}, "one map"),
        ({"RESNETS__DEFORM_ON_PER_STAGE": [False, False, False, True]}, "upstream"),
        ({"KEYPOINT_ON": True}, "upstream"),
    ],
)
def test_c4_config_mistakes(change, message):
    with pytest.raises((AssertionError, NotImplementedError), match=message):
        c4_model(**change)


def test_semantic_head_ignores_pixels():
    cfg = get_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 4, 32
    head = build_sem_seg_head(cfg, SHAPES)
    target = torch.randint(0, 4, (1, 64, 64))
    target[:, 32:] = 255
    with_ignored = head(make_features(), target)[1]["loss_sem_seg"]
    # The ignored half may hold anything; the loss is the mean of the upper half.
    logits = head.eval()(make_features())[0]
    assert logits.shape == (1, 4, 64, 64)
    picked = logits.log_softmax(1)[:, :, :32].gather(1, target[:, None, :32])
    torch.testing.assert_close(with_ignored, -picked.mean())
    with pytest.raises(AssertionError, match="at least one"):
        build_sem_seg_head(cfg, {})


def test_addresses():
    """Where upstream documents the names."""
    from detectron2.modeling import SemanticSegmentor
    from detectron2.modeling.meta_arch import semantic_seg
    from detectron2.modeling.roi_heads import cascade_rcnn, roi_heads

    assert roi_heads.Res5ROIHeads is Res5ROIHeads
    assert cascade_rcnn.CascadeROIHeads is CascadeROIHeads
    assert semantic_seg.SemanticSegmentor is SemanticSegmentor
