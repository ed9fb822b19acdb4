"""The mask head with its quality branch: target, losses, inference, and what stays stock."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_mask_head
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pais.mask_iou_head import MASK_WEIGHTS, CroppedMasks, crop_iou
from tests.pais.tiny_heads import BOXES, CLASSES, SHAPES, SIZE, heads_config, targets

S = 6  # side of the pooled regions


@pytest.fixture(autouse=True)
def storage():
    with EventStorage() as events:
        yield events


def build(*opts):
    cfg = heads_config(*opts)
    shape = SHAPES["p2"]
    torch.manual_seed(0)
    return build_mask_head(cfg, type(shape)(channels=shape.channels, height=S, width=S))


def positives(weights=None):
    """Two positives on the first image, none on the second, whose masks are ellipses."""
    regions = targets(BOXES, [0, 2])
    regions.proposal_boxes = Boxes(regions.gt_boxes.tensor + 1)
    empty = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    empty.gt_classes = torch.zeros(0, dtype=torch.int64)
    if weights is not None:
        regions.set(MASK_WEIGHTS, torch.tensor(weights))
        empty.set(MASK_WEIGHTS, torch.zeros(0))
    return [regions, empty]


def detections(counts):
    found = []
    for count in counts:
        each = Instances(SIZE, pred_boxes=Boxes(torch.rand(count, 4)))
        each.pred_classes = torch.arange(count) % CLASSES
        found.append(each)
    return found


def pooled(n, seed=4):
    return torch.randn(n, 8, S, S, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
def test_crop_iou_equals_a_naive_count(first, second):
    a, b = (np.array([(bits >> k) & 1 for k in range(16)], bool) for bits in (first, second))
    union = (a | b).sum()
    expected = (a & b).sum() / union if union else 0.0
    found = crop_iou(*(torch.from_numpy(x).view(1, 4, 4) for x in (a, b)))
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_crop_iou_takes_soft_targets():
    found = crop_iou(torch.ones(1, 1, 2, dtype=torch.bool), torch.tensor([[[1.0, 0.5]]]))
    assert found.item() == pytest.approx(1.5 / 2.0)


def test_the_mask_branch_is_the_stock_one():
    """Same parameters, same logits, same loss and the same statistics, bit for bit."""
    own, stock = build(), build("ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
    names = set(stock.state_dict())
    extra = set(own.state_dict()) - names
    assert extra == {f"quality.{k}.{kind}" for k in (1, 3) for kind in ("weight", "bias")}
    stock.load_state_dict({name: own.state_dict()[name] for name in names})
    x = pooled(2)
    assert torch.equal(own.layers(x), stock.layers(x))
    with EventStorage() as ours:
        loss = own(x, positives())["loss_mask"]
    with EventStorage() as theirs:
        assert torch.equal(loss, stock(x, positives())["loss_mask"])
    assert ours.latest() == theirs.latest() != {}


def test_the_target_is_the_iou_inside_the_region():
    head = build()
    x, regions = pooled(2), positives()
    losses = head(x, regions)
    logits, crops = (
        head.layers(x),
        regions[0].gt_masks.crop_and_resize(regions[0].proposal_boxes.tensor, 2 * S),
    )
    expected = []
    for region, label, truth in zip(logits, [0, 2], crops):
        guess = (region[label] >= 0).numpy()
        expected.append((guess & truth.numpy()).sum() / (guess | truth.numpy()).sum())
    quality = head.quality(head.features(x)).squeeze(1)
    loss = F.binary_cross_entropy_with_logits(quality, torch.tensor(expected, dtype=torch.float32))
    assert losses["loss_mask_iou"].item() == pytest.approx(0.25 * loss.item(), rel=1e-4)
    assert regions[0].has("gt_masks"), "the caller's regions keep their whole masks"


def test_the_quality_loss_trains_the_shared_convolutions_but_not_the_masks():
    head = build()
    head(pooled(2), positives())["loss_mask_iou"].backward()
    touched = {name for name, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"mask_fcn1.weight", "mask_fcn2.weight", "quality.1.weight"} <= touched
    assert not {name for name in touched if name.startswith(("deconv", "predictor"))}


def test_regions_of_unlabelled_images_weigh_in_the_mask_and_not_in_the_quality():
    head = build()
    x = pooled(2)
    losses = head(x, positives([0.3, 1.7]))
    assert losses.keys() == {"loss_mask"}
    regions = positives()
    crops = regions[0].gt_masks.crop_and_resize(regions[0].proposal_boxes.tensor, 2 * S).float()
    logits = head.layers(x)[[0, 1], [0, 2]]
    each = F.binary_cross_entropy_with_logits(logits, crops, reduction="none").mean(dim=(1, 2))
    assert losses["loss_mask"].item() == pytest.approx((0.3 * each[0] + 1.7 * each[1]).item() / 2)
    losses["loss_mask"].backward()
    assert head.quality[1].weight.grad is None


# Weighted regions or labelled ones.
@pytest.mark.parametrize("weighted", [False, True])
def test_without_a_positive_the_losses_are_zero_with_gradients(weighted):
    head = build()
    regions = positives([1.0, 1.0] if weighted else None)[1:]
    losses = head(pooled(0), regions)
    assert losses.keys() == ({"loss_mask"} if weighted else {"loss_mask", "loss_mask_iou"})
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert head.predictor.weight.grad is not None
    assert (head.quality[3].weight.grad is not None) != weighted


@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0)])
def test_detections_get_masks_and_qualities(counts):
    head = build().eval()
    with torch.no_grad():
        x = pooled(sum(counts))
        found = head(x, detections(counts))
        expected = head.quality(head.features(x)).squeeze(1).sigmoid()
    assert [len(i) for i in found] == list(counts)
    assert [tuple(i.pred_masks.shape) for i in found] == [(n, 1, 2 * S, 2 * S) for n in counts]
    assert torch.equal(torch.cat([i.pred_quality for i in found]), expected)
    assert ((expected >= 0) & (expected <= 1)).all()


def test_one_mask_for_all_classes():
    head = build("ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
    assert head.predictor.out_channels == 1
    assert head(pooled(2), positives())["loss_mask_iou"] > 0
    assert head(pooled(2), positives([1.0, 1.0]))["loss_mask"] > 0


def test_the_branch_is_as_wide_and_weighs_as_much_as_configured():
    one, two = build(), build("PAIS.MASK_IOU.WEIGHT", 0.5)
    x = pooled(2)
    losses = [head(x, positives())["loss_mask_iou"].item() for head in (one, two)]
    assert losses[1] == pytest.approx(2 * losses[0])
    assert build("PAIS.MASK_IOU.FC_DIM", 5).quality[1].weight.shape == (5, 8 * S * S)


def test_under_bfloat16_losses_and_qualities_are_float32():
    head = build()
    with torch.autocast("cpu", torch.bfloat16):
        losses = head(pooled(2), positives()) | {"w": head(pooled(2), positives([1.0, 2.0]))}
        assert losses["loss_mask_iou"].dtype == losses["w"]["loss_mask"].dtype == torch.float32
        found = head.eval()(pooled(2), detections((2,)))
    assert found[0].pred_quality.dtype == torch.float32


def test_crops_serve_only_the_regions_that_they_were_made_for():
    crops = CroppedMasks(torch.zeros(2, 12, 12, dtype=torch.bool))
    assert crops.crop_and_resize(torch.zeros(2, 4), 12) is crops.tensor
    for boxes, side in ((torch.zeros(3, 4), 12), (torch.zeros(2, 4), 28)):
        with pytest.raises(ValueError, match="no crops"):
            crops.crop_and_resize(boxes, side)
