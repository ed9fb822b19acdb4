"""Region proposal network: targets, losses against a naive twin, selection, bad numbers."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import RPN_HEAD_REGISTRY, build_proposal_generator, build_rpn_head
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn

SIZE = (64, 96)


def make_cfg(**rpn):
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0]]
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4"]
    for name, value in rpn.items():
        cfg.MODEL.RPN[name] = value
    return cfg


def make_rpn(**rpn):
    torch.manual_seed(1)
    shapes = {"p3": ShapeSpec(channels=8, stride=8), "p4": ShapeSpec(channels=8, stride=16)}
    return build_proposal_generator(make_cfg(**rpn), shapes)


def make_batch(n=2):
    generator = torch.Generator().manual_seed(2)
    images = ImageList(torch.zeros(n, 3, *SIZE), [SIZE] * n)
    features = {
        f"p{k}": torch.randn(n, 8, SIZE[0] >> k, SIZE[1] >> k, generator=generator) for k in (3, 4)
    }
    return images, features


def make_targets(n=2):
    boxes = [[[4.0, 4, 30, 40], [50, 10, 90, 60]], [[20.0, 20, 40, 44]]]
    return [Instances(SIZE, gt_boxes=Boxes(boxes[i % 2])) for i in range(n)]


@pytest.mark.parametrize(
    ("dims", "names"),
    [
        ([-1], {"conv"}),  # one convolution has no number
        ([64], {"conv"}),
        ([-1, 16], {"conv.conv0", "conv.conv1"}),
    ],
)
def test_head_names(dims, names):
    head = build_rpn_head(make_cfg(CONV_DIMS=dims), [ShapeSpec(channels=8, stride=8)] * 2)
    hidden = {k.removesuffix(".weight") for k in head.state_dict() if k.startswith("conv")}
    assert {k for k in hidden if not k.endswith("bias")} == names
    logits, deltas = head([torch.randn(2, 8, 5, 6)])
    assert (logits[0].shape, deltas[0].shape) == ((2, 2, 5, 6), (2, 8, 5, 6))


def test_head_mistakes():
    with pytest.raises(ValueError, match="conv_dims"):
        build_rpn_head(make_cfg(CONV_DIMS=[0]), [ShapeSpec(channels=8, stride=8)] * 2)
    with pytest.raises(AssertionError, match="same channels"):
        build_rpn_head(make_cfg(), [ShapeSpec(channels=c, stride=8) for c in (4, 8)])


def test_custom_head():
    @RPN_HEAD_REGISTRY.register()
    class _HeadForThisTest(nn.Module):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.levels = len(input_shape)

    assert make_rpn(HEAD_NAME="_HeadForThisTest").rpn_head.levels == 2


def test_precomputed_proposals():
    cfg = make_cfg()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, {}) is None


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_losses_equal_their_naive_twin(beta):
    rpn = make_rpn(
        SMOOTH_L1_BETA=beta, LOSS_WEIGHT=0.5, BBOX_REG_LOSS_WEIGHT=3.0, BATCH_SIZE_PER_IMAGE=40
    )
    images, features = make_batch()
    targets = make_targets()
    maps = [features["p3"], features["p4"]]
    anchors = rpn.anchor_generator(maps)
    with torch.no_grad():
        logits, deltas = rpn.rpn_head(maps)
    torch.manual_seed(7)
    with EventStorage() as storage:
        _, losses = rpn(images, features, targets)
        counts = {k: v[0] for k, v in storage.latest().items()}
    torch.manual_seed(7)
    labels, matched = rpn.label_and_sample_anchors(anchors, targets)

    box_sum = class_sum = 0.0
    for image in range(2):
        row = 0
        for level, anchor_level in enumerate(anchors):
            height, width = maps[level].shape[-2:]
            for y in range(height):
                for x in range(width):
                    for a in range(2):
                        label = int(labels[image][row])
                        score = float(logits[level][image, a, y, x])
                        if label == 1:
                            class_sum += math.log1p(math.exp(-score))
                            source = anchor_level.tensor[y * width * 2 + x * 2 + a][None]
                            want = rpn.box2box_transform.get_deltas(
                                source, matched[image][row][None]
                            )
                            got = deltas[level][image, 4 * a : 4 * a + 4, y, x]
                            for d in (got - want[0]).abs().tolist():
                                box_sum += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
                        elif label == 0:
                            class_sum += math.log1p(math.exp(score))
                        row += 1
    divisor = 40 * 2
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.5 * class_sum / divisor, rel=1e-4)
    assert losses["loss_rpn_loc"].item() == pytest.approx(1.5 * box_sum / divisor, rel=1e-4)
    stacked = torch.stack(labels)
    assert counts["rpn/num_pos_anchors"] == int((stacked == 1).sum()) / 2
    assert counts["rpn/num_neg_anchors"] == int((stacked == 0).sum()) / 2


def test_anchor_labels():
    rpn = make_rpn(BATCH_SIZE_PER_IMAGE=10, POSITIVE_FRACTION=0.3)
    _, features = make_batch()
    anchors = rpn.anchor_generator([features["p3"], features["p4"]])
    empty = Instances(SIZE, gt_boxes=Boxes(torch.empty(0, 4)))
    labels, boxes = rpn.label_and_sample_anchors(anchors, [make_targets()[0], empty])
    for label in labels:
        assert int((label >= 0).sum()) == 10
        assert int((label == 1).sum()) <= 3
    assert int((labels[0] == 1).sum()) >= 1, "every object has a best anchor"
    assert set(labels[1].tolist()) == {-1, 0}, "without objects all is background"
    assert not boxes[1].any()
    best = pairwise_iou(make_targets()[0].gt_boxes, Boxes.cat(anchors)).argmax(0)
    assert torch.equal(boxes[0], make_targets()[0].gt_boxes.tensor[best])


def test_anchors_beyond_the_border():
    rpn = make_rpn(BOUNDARY_THRESH=0, BATCH_SIZE_PER_IMAGE=10000)
    _, features = make_batch()
    anchors = rpn.anchor_generator([features["p3"], features["p4"]])
    labels, _ = rpn.label_and_sample_anchors(anchors, make_targets()[:1])
    inside = Boxes.cat(anchors).inside_box(SIZE, 0)
    assert (~inside).any()
    assert (labels[0][~inside] == -1).all()
    assert (labels[0][inside] >= 0).any()


def test_training_needs_targets_and_proposals_carry_no_gradient():
    rpn = make_rpn()
    images, features = make_batch()
    with pytest.raises(AssertionError, match="targets"):
        rpn(images, features)
    with EventStorage():
        proposals, _ = rpn(images, features, make_targets())
    assert not proposals[0].proposal_boxes.tensor.requires_grad
    assert not proposals[0].objectness_logits.requires_grad
    rpn.eval()
    proposals, losses = rpn(images, features)
    assert losses == {}
    assert len(proposals) == 2


def _proposals():
    """Two levels; the first two boxes of level 0 overlap, level 1 repeats one of them."""
    level0 = [[0.0, 0, 20, 20], [1, 0, 20, 20], [30, 30, 50, 50], [-9, -9, 4, 4]]
    level1 = [[0.0, 0, 20, 20], [40, 0, 41, 30], [60, 60, 90, 90]]
    boxes = [torch.tensor([level0]), torch.tensor([level1])]
    return boxes, [torch.tensor([[1.0, 4.0, 2.0, 0.0]]), torch.tensor([[3.0, 5.0, 9.0]])]


@pytest.mark.parametrize(
    ("pre", "post", "min_size", "want"),
    [
        # NMS drops the weaker twin on level 0 but not its copy on level 1; the last box is
        # outside of the image and empty after clipping.
        (9, 9, 0, [5.0, 4.0, 3.0, 2.0, 0.0]),
        (9, 2, 0, [5.0, 4.0]),  # the best two over both levels
        (1, 9, 0, [4.0]),  # one candidate per level; that of level 1 is empty
        (2, 9, 0, [5.0, 4.0, 2.0]),
        (9, 9, 3, [4.0, 3.0, 2.0, 0.0]),  # a box of width 1 is too small
        (9, 9, 4, [4.0, 3.0, 2.0]),  # the clipped one has sides of exactly 4
    ],
)
def test_selection(pre, post, min_size, want):
    boxes, logits = _proposals()
    found = find_top_rpn_proposals(boxes, logits, [(50, 60)], 0.7, pre, post, min_size, False)[0]
    assert found.objectness_logits.tolist() == want
    assert found.image_size == (50, 60)
    limit = torch.tensor([60.0, 50, 60, 50])
    assert (found.proposal_boxes.tensor <= limit).all()
    assert (found.proposal_boxes.tensor >= 0).all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["box", "logit"])
def test_selection_of_bad_numbers(bad, where):
    boxes, logits = _proposals()
    if where == "box":
        boxes[0][0, 2, 1] = bad
    else:
        logits[0][0, 2] = bad
    arguments = (boxes, logits, [(50, 60)], 0.7, 9, 9, 0)
    found = find_top_rpn_proposals(*arguments, False)[0]
    assert found.objectness_logits.tolist() == [5.0, 4.0, 3.0, 0.0]
    with pytest.raises(FloatingPointError, match="diverged"):
        find_top_rpn_proposals(*arguments, True)


def test_ground_truth_becomes_proposals():
    gt = Boxes([[1.0, 1, 9, 9]])
    plain = Instances((10, 10), proposal_boxes=Boxes([[0.0, 0, 5, 5]]))
    plain.objectness_logits = torch.tensor([0.5])
    out = add_ground_truth_to_proposals([gt], [plain])[0]
    assert out.proposal_boxes.tensor.tolist() == [[0, 0, 5, 5], [1, 1, 9, 9]]
    assert out.objectness_logits.tolist() == pytest.approx([0.5, 23.02585], rel=1e-4)
    assert add_ground_truth_to_proposals([], []) == []

    # A further field of the proposals must be known for the ground truth as well.
    plain.view = torch.tensor([7])
    for lacking in (gt, Instances((10, 10), gt_boxes=gt)):
        with pytest.raises(AssertionError, match="view"):
            add_ground_truth_to_proposals([lacking], [plain])
    full = Instances((10, 10), gt_boxes=gt, view=torch.tensor([3]), other=torch.tensor([4]))
    out = add_ground_truth_to_proposals([full], [plain])[0]
    assert out.view.tolist() == [7, 3]
    assert not out.has("other")
