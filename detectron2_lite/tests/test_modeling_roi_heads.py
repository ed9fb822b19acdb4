"""Second stage: sampling, losses against naive twins, suppression, masks, seams for subclasses."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_box_head, build_mask_head, build_roi_heads
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

SIZE = (64, 64)


def make_cfg(**heads):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 4
    for name, value in heads.items():
        cfg.merge_from_list([f"MODEL.{name.replace('__', '.')}", value])
    return cfg


SHAPES = {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}


def make_features(n=2):
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(n, 8, *(s // shape.stride for s in SIZE), generator=generator)
        for name, shape in SHAPES.items()
    }


def make_target(boxes, classes, **fields):
    target = Instances(SIZE, gt_boxes=Boxes(torch.tensor(boxes).float().view(-1, 4)))
    target.gt_classes = torch.tensor(classes, dtype=torch.int64)
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (a, b, c, d) in zip(masks, boxes):
        mask[b:d, a:c] = True
    target.gt_masks = BitMasks(masks)
    for name, value in fields.items():
        target.set(name, value)
    return target


def make_proposals(boxes):
    boxes = torch.tensor(boxes).float().view(-1, 4)
    return Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))


BOXES = [[0, 0, 20, 20], [30, 30, 60, 60], [2, 2, 22, 22], [50, 0, 60, 9]]


def batch():
    targets = [
        make_target(
            [[0, 0, 20, 20], [28, 28, 60, 60]], [2, 0], gt_weights=torch.tensor([0.25, 0.75])
        ),
        make_target([], []),
    ]
    return [make_proposals(BOXES), make_proposals(BOXES[:2])], targets


class TestSampling:
    def test_targets_travel_with_their_samples(self):
        heads = build_roi_heads(make_cfg(ROI_HEADS__POSITIVE_FRACTION=1.0), SHAPES)
        proposals, targets = batch()
        targets[0].colour = torch.tensor([1, 2])  # no gt_ field: stays where it is
        with EventStorage() as storage:
            first, second = heads.label_and_sample_proposals(proposals, targets)
            scalars = {k: v[0] for k, v in storage.latest().items()}
        rows = {
            tuple(box): (cls, weight)
            for box, cls, weight in zip(
                first.proposal_boxes.tensor.int().tolist(),
                first.gt_classes.tolist(),
                first.gt_weights.tolist(),
            )
        }
        assert rows == {
            (0, 0, 20, 20): (2, 0.25),  # both the proposal and the appended ground truth
            (2, 2, 22, 22): (2, 0.25),
            (30, 30, 60, 60): (0, 0.75),
            (28, 28, 60, 60): (0, 0.75),  # appended
            (50, 0, 60, 9): (3, 0.25),  # background, with the fields of the first target
        }
        assert len(first) == 6
        assert len(first.gt_masks) == 6
        assert not first.has("colour")
        # Without ground truth there is nothing to copy but the background's class.
        assert second.gt_classes.tolist() == [3, 3]
        assert not any(second.has(name) for name in ("gt_boxes", "gt_masks", "gt_weights"))
        assert scalars == {"roi_head/num_fg_samples": 2.5, "roi_head/num_bg_samples": 1.5}

    def test_a_field_that_the_proposals_have_is_kept(self):
        heads = build_roi_heads(make_cfg(ROI_HEADS__PROPOSAL_APPEND_GT=False), SHAPES)
        proposals, targets = batch()
        proposals[0].gt_weights = torch.full((4,), 9.0)
        with EventStorage():
            first, _ = heads.label_and_sample_proposals(proposals, targets)
        assert first.gt_weights.tolist() == [9.0] * 4

    def test_ignored_proposals_are_never_drawn(self):
        heads = ROIHeads(
            num_classes=3,
            batch_size_per_image=50,
            positive_fraction=0.5,
            proposal_matcher=Matcher([0.3, 0.6], [0, -1, 1]),
            proposal_append_gt=False,
        )
        target = make_target([[0, 0, 20, 20]], [1])
        candidates = make_proposals([[0, 0, 20, 20], [0, 0, 20, 40], [40, 40, 50, 50]])
        with EventStorage():
            (got,) = heads.label_and_sample_proposals([candidates], [target])
        assert got.gt_classes.tolist() == [1, 3]  # the one of IoU 0.5 is missing
        with pytest.raises(NotImplementedError):
            heads(None, {}, [])

    def test_select_foreground(self):
        p = make_proposals(BOXES)
        p.gt_classes = torch.tensor([0, 3, -1, 2])
        (chosen,), (mask,) = select_foreground_proposals([p], 3)
        assert mask.tolist() == [True, False, False, True]
        assert chosen.gt_classes.tolist() == [0, 2]


class TestMaskHead:
    def test_loss_equals_its_naive_twin(self):
        targets = [make_target([[0, 0, 20, 20], [8, 8, 24, 24]], [1, 0]), make_target([], [])]
        for t in targets:
            t.proposal_boxes = Boxes(t.gt_boxes.tensor + 3.0)
        logits = torch.randn(2, 2, 6, 6)
        truth = targets[0].gt_masks.crop_and_resize(targets[0].proposal_boxes.tensor, 6)
        own = torch.stack([logits[0, 1], logits[1, 0]])
        want = F.binary_cross_entropy_with_logits(own, truth.float())
        with EventStorage() as storage:
            torch.testing.assert_close(mask_rcnn_loss(logits, targets), want)
            wrong = (own > 0) != truth
            stats = {k: v[0] for k, v in storage.latest().items()}
        assert stats == pytest.approx(
            {
                "mask_rcnn/accuracy": 1 - float(wrong.float().mean()),
                "mask_rcnn/false_positive": float(wrong[~truth].float().mean()),
                "mask_rcnn/false_negative": float(wrong[truth].float().mean()),
            }
        )
        one = logits[:, :1]
        with EventStorage():  # class-agnostic: the one channel serves every class
            want = F.binary_cross_entropy_with_logits(one[:, 0], truth.float())
            torch.testing.assert_close(mask_rcnn_loss(one, targets), want)

    def test_pictures(self):
        target = make_target([[0, 0, 20, 20]], [0])
        target.proposal_boxes = target.gt_boxes
        with EventStorage() as storage:
            mask_rcnn_loss(torch.randn(1, 1, 6, 6), [target], vis_period=1)
            assert len(storage._vis_data) == 1

    def test_inference_picks_the_predicted_class(self):
        logits = torch.randn(3, 4, 5, 5)
        detections = [
            Instances(SIZE, pred_classes=torch.tensor([3, 0])),
            Instances(SIZE, pred_classes=torch.empty(0, dtype=torch.int64)),
            Instances(SIZE, pred_classes=torch.tensor([2])),
        ]
        mask_rcnn_inference(logits, detections)
        assert [tuple(d.pred_masks.shape) for d in detections] == [
            (2, 1, 5, 5),
            (0, 1, 5, 5),
            (1, 1, 5, 5),
        ]
        torch.testing.assert_close(detections[0].pred_masks[1, 0], logits[1, 0].sigmoid())
        torch.testing.assert_close(detections[2].pred_masks[0, 0], logits[2, 2].sigmoid())

    def test_no_region_gives_a_gradient_of_zero(self):
        head = build_mask_head(make_cfg(), ShapeSpec(channels=8, width=4, height=4))
        with EventStorage():
            loss = head(torch.randn(0, 8, 4, 4), [])["loss_mask"]
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("norm", ["", "GN"])
def test_norm_of_heads(norm):
    cfg = make_cfg(ROI_BOX_HEAD__NORM=norm, ROI_BOX_HEAD__NUM_CONV=1, ROI_BOX_HEAD__CONV_DIM=32)
    cfg.MODEL.ROI_MASK_HEAD.NORM = norm
    shape = ShapeSpec(channels=8, height=4, width=4)
    box, mask = build_box_head(cfg, shape), build_mask_head(cfg, shape)
    extra = {"norm.weight", "norm.bias"} if norm else {"bias"}
    for head, name in ((box, "conv1"), (mask, "mask_fcn1")):
        names = {k.removeprefix(name + ".") for k in head.state_dict() if k.startswith(name + ".")}
        assert names == {"weight"} | extra
    assert box(torch.randn(2, 8, 4, 4)).shape == (2, 16)
    assert box.output_shape == ShapeSpec(channels=16)
    assert mask.layers(torch.randn(2, 8, 4, 4)).shape == (2, 3, 8, 8)
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 0
    assert build_box_head(cfg, shape).output_shape == ShapeSpec(channels=32, height=4, width=4)
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV = 0
    with pytest.raises(AssertionError, match="layer"):
        build_box_head(cfg, shape)


class _WeightedPredictor(FastRCNNOutputLayers):
    def losses(self, predictions, proposals):
        seen = [p.gt_weights if p.has("gt_weights") else None for p in proposals]
        return {"loss_cls": predictions[0].sum() * 0, "loss_seen": sum(x is None for x in seen)}


@ROI_HEADS_REGISTRY.register()
class _SubclassForThisTest(StandardROIHeads):
    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        ret["box_predictor"] = _WeightedPredictor(cfg, ret["box_head"].output_shape)
        return ret

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        ret = super()._init_mask_head(cfg, input_shape)
        ret["mask_head"].loss_weight = 3.0
        return ret

    def _forward_mask(self, features, instances):
        out = super()._forward_mask(features, instances)
        return out | {"loss_mine": torch.ones(())} if self.training else out


class TestStandardROIHeads:
    def test_losses_and_detections(self):
        heads = build_roi_heads(make_cfg(), SHAPES)
        proposals, targets = batch()
        with EventStorage():
            sampled, losses = heads(None, make_features(), proposals, targets)
        assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
        assert [len(s) for s in sampled] == [6, 2]
        with pytest.raises(AssertionError, match="targets"):
            heads(None, make_features(), proposals)
        heads.eval()
        found, losses = heads(None, make_features(), proposals)
        assert losses == {}
        assert found[0].pred_masks.shape[1:] == (1, 8, 8)

    def test_seams_for_subclasses(self):
        heads = build_roi_heads(make_cfg(ROI_HEADS__NAME="_SubclassForThisTest"), SHAPES)
        assert isinstance(heads.box_predictor, _WeightedPredictor)
        proposals, targets = batch()
        with EventStorage():
            _, losses = heads(None, make_features(), proposals, targets)
        assert losses["loss_seen"] == 1  # the image without ground truth
        assert losses["loss_mine"] == 1
        assert heads.mask_head.loss_weight == 3.0

    def test_given_boxes(self):
        heads = build_roi_heads(make_cfg(), SHAPES)
        given = Instances(SIZE, pred_boxes=Boxes(BOXES), pred_classes=torch.tensor([0, 1, 2, 0]))
        with pytest.raises(AssertionError, match="inference"):
            heads.forward_with_given_boxes(make_features(1), [given])
        heads.eval()
        (out,) = heads.forward_with_given_boxes(make_features(1), [given])
        assert out.pred_masks.shape == (4, 1, 8, 8)
        with pytest.raises(AssertionError, match="pred_classes"):
            heads.forward_with_given_boxes(
                make_features(1), [Instances(SIZE, pred_boxes=Boxes(BOXES))]
            )

    def test_without_masks(self):
        cfg = make_cfg()
        cfg.MODEL.MASK_ON = False
        heads = build_roi_heads(cfg, SHAPES)
        proposals, targets = batch()
        with EventStorage():
            _, losses = heads(None, make_features(), proposals, targets)
        assert set(losses) == {"loss_cls", "loss_box_reg"}
        found, _ = heads.eval()(None, make_features(), proposals)
        assert not found[0].has("pred_masks")

    def test_training_the_mask_branch_on_predicted_boxes(self):
        heads = build_roi_heads(make_cfg(ROI_BOX_HEAD__TRAIN_ON_PRED_BOXES=True), SHAPES)
        nn.init.constant_(heads.box_predictor.bbox_pred.bias, 0.5)
        proposals, targets = batch()
        with EventStorage():
            sampled, losses = heads(None, make_features(), proposals, targets)
        moved = sampled[0].proposal_boxes.tensor
        assert not moved.requires_grad
        known = torch.tensor(BOXES + [[28, 28, 60, 60]]).float()
        assert not any((moved[0] == k).all() for k in known)
        assert losses["loss_mask"].isfinite()

    def test_mask_head_on_whole_maps(self):
        """Without a pooler the head gets the maps by name."""
        heads = build_roi_heads(make_cfg(), SHAPES)
        heads.mask_pooler = None

        class Spy(nn.Module):
            def forward(self, x, instances):
                self.names = list(x)
                return instances

        heads.mask_head = Spy()
        heads.eval()(None, make_features(), batch()[0])
        assert heads.mask_head.names == ["p2", "p3"]

    @pytest.mark.parametrize(
        ("key", "value"),
        [("ROI_HEADS__NAME", "RROIHeads"), ("KEYPOINT_ON", True)],
    )
    def test_upstream_only(self, key, value):
        with pytest.raises(NotImplementedError, match="upstream"):
            build_roi_heads(make_cfg(**{key: value}), SHAPES)

    def test_channels_must_agree(self):
        shapes = SHAPES | {"p3": ShapeSpec(channels=4, stride=8)}
        with pytest.raises(AssertionError, match="equal channels"):
            build_roi_heads(make_cfg(), shapes)
