"""ROI heads: stock on labelled images, weighted on unlabelled ones, and the gradients of that."""

import pytest
import torch
import torchvision
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from pais.box_iou import paired_iou
from pais.roi_heads import rank_by_quality
from pseudolabel.errors import DataError
from tests.pais.tiny_heads import (
    BOXES,
    CLASSES,
    SHAPES,
    heads_config,
    targets,
    tiny_features,
    tiny_heads,
    tiny_proposals,
)

UNLABELLED = {"loss_cls", "loss_box_reg", "loss_mask"}
QUALITY = {"loss_box_iou", "loss_mask_iou"}


@pytest.fixture(autouse=True)
def storage():
    with EventStorage() as events:
        yield events


def teacher(value):
    """A teacher for whom every region is background with this probability, and its calls."""
    calls = []

    def background(sampled):
        calls.append([len(regions) for regions in sampled])
        return [torch.full((len(regions),), value) for regions in sampled]

    return background, calls


def pseudo(scores=(0.8, 0.8), quality=(0.9, 0.9)):
    """Two pseudo-labels on the first image, none on the second."""
    return [targets(BOXES, [0, 2], list(scores), list(quality)), targets((), (), [], [])]


def unlabelled(heads, pseudo_labels, background=0.3, features=None):
    """Losses of one fixed draw of regions."""
    torch.manual_seed(5)
    features = tiny_features() if features is None else features
    call = teacher(background)[0]
    return heads.losses_unlabelled(features, tiny_proposals(), pseudo_labels, call)


def drawn(heads, pseudo_labels):
    """The regions that `unlabelled` draws."""
    torch.manual_seed(5)
    return heads.label_and_sample_proposals(tiny_proposals(), pseudo_labels)


def test_on_labelled_images_it_is_the_stock_heads(storage):
    own = tiny_heads()
    stock = build_roi_heads(
        heads_config(
            *("ROI_HEADS.NAME", "StandardROIHeads"),
            *("ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        ),
        SHAPES,
    )
    state = own.state_dict()
    stock.load_state_dict({name: state[name] for name in stock.state_dict()})
    losses = []
    for heads in (own, stock):
        torch.manual_seed(5)
        labelled = [targets(BOXES, [0, 2]), targets((), ())]
        losses.append(heads(None, tiny_features(), tiny_proposals(), labelled)[1])
    assert losses[0].keys() - losses[1].keys() == QUALITY
    assert all(torch.equal(losses[0][name], loss) for name, loss in losses[1].items())
    with torch.no_grad():
        found, expected = (
            heads.eval()(None, tiny_features(), tiny_proposals())[0][0] for heads in (own, stock)
        )
    assert len(expected) > 0
    for name, value in expected.get_fields().items():
        other = found.get(name)
        assert torch.equal(*((x.tensor if isinstance(x, Boxes) else x) for x in (value, other)))


def test_only_positives_of_labelled_images_train_the_box_quality():
    heads = tiny_heads()
    # Boxes far from their proposals, and apart by class.
    heads.box_predictor.bbox_pred.weight.data *= 300
    torch.manual_seed(5)
    labelled = [targets(BOXES, [0, 2]), targets((), ())]
    sampled, losses = heads(None, tiny_features(), tiny_proposals(), labelled)
    maps = [tiny_features()[name] for name in ("p2", "p3")]
    x = heads.box_head(heads.box_pooler(maps, [s.proposal_boxes for s in sampled]))
    _, deltas, quality = heads.box_predictor(x)
    labels = torch.cat([s.gt_classes for s in sampled])
    boxes = torch.cat([s.proposal_boxes.tensor for s in sampled])
    truth = sampled[0].gt_boxes.tensor  # the second image has none, and no positive
    total, positives = 0.0, (labels < CLASSES).nonzero().squeeze(1).tolist()
    for row in positives:
        own = deltas[row].view(CLASSES, 4)[labels[row]][None]
        decoded = heads.box_predictor.box2box_transform.apply_deltas(own, boxes[row][None])
        iou = torchvision.ops.box_iou(decoded, truth[row][None]).item()
        z = quality[row]
        total += F.binary_cross_entropy_with_logits(z, torch.tensor(iou)).item()
    assert len(positives) >= 2
    assert losses["loss_box_iou"].item() == pytest.approx(0.25 * total / len(positives), rel=1e-4)


def test_paired_iou_is_the_diagonal_of_torchvisions():
    first, second = torch.rand(50, 4), torch.rand(50, 4)
    for boxes in (first, second):
        boxes[:, 2:] += boxes[:, :2]
    expected = torchvision.ops.box_iou(first, second).diagonal()
    assert torch.allclose(paired_iou(first, second), expected, atol=1e-6)
    # A box without an area, and one turned inside out.
    assert paired_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0
    assert paired_iou(torch.tensor([[5.0, 5, 1, 1]]), torch.tensor([[0.0, 0, 9, 9]])).item() == 0


def test_losses_on_unlabelled_images_equal_a_naive_twin():
    heads = tiny_heads()
    labels = pseudo(quality=(0.9, 0.5))
    losses = unlabelled(heads, labels, background=0.3)
    assert losses.keys() == UNLABELLED
    sampled, features = drawn(heads, labels), tiny_features()
    maps = [features[name] for name in ("p2", "p3")]
    boxes = [s.proposal_boxes for s in sampled]
    logits, deltas, _ = heads.box_predictor(heads.box_head(heads.box_pooler(maps, boxes)))
    classes = torch.cat([s.gt_classes for s in sampled])
    sums = [0.0, 0.0]
    for row, label in zip(logits, classes):
        weight = 1.0 if label < CLASSES else 0.3
        sums[0] += weight * -row.log_softmax(0)[label].item()
        sums[1] += weight
    assert losses["loss_cls"].item() == pytest.approx(sums[0] / sums[1], rel=1e-5)
    stock = heads.box_predictor.box_reg_loss(
        torch.cat([b.tensor for b in boxes]),
        torch.cat([sampled[0].gt_boxes.tensor, boxes[1].tensor]),
        deltas,
        classes,
    )
    assert losses["loss_box_reg"].item() == pytest.approx(stock.item(), rel=1e-6)
    positive = sampled[0][sampled[0].gt_classes < CLASSES]
    x = heads.mask_pooler([m[:1] for m in maps], [positive.proposal_boxes])
    masks, total = heads.mask_head.layers(x), 0.0
    crops = positive.gt_masks.crop_and_resize(positive.proposal_boxes.tensor, masks.shape[-1])
    for mask, crop, label, u in zip(masks, crops, positive.gt_classes, positive.gt_quality):
        bce = F.binary_cross_entropy_with_logits(mask[label], crop.float())
        total += 2.5 * u.item() ** 4 * bce.item()
    assert losses["loss_mask"].item() == pytest.approx(total / len(positive), rel=1e-4)


def gradients(loss, heads, part):
    """Gradient of a loss with respect to all parameters of a part, as one vector."""
    parameters = [p for p in heads.get_submodule(part).parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([(0 * p if g is None else g).flatten() for g, p in zip(found, parameters)])


def test_a_pseudo_label_of_weight_zero_has_no_mask_gradient():
    """Weight 0 for the first: its class's mask channel learns nothing, the other's goes on."""
    heads = tiny_heads()
    for silent, channel in ((0, 0), (1, 2)):
        quality = [0.9, 0.9]
        quality[silent] = 0.0
        loss = unlabelled(heads, pseudo(quality=quality))["loss_mask"]
        gradient = torch.autograd.grad(loss, heads.mask_head.predictor.weight)[0]
        assert not gradient[channel].any()
        assert gradient[2 - channel].any()
    loss = unlabelled(heads, pseudo(quality=(0.0, 0.0)))["loss_mask"]
    assert not gradients(loss, heads, "mask_head").any()


def test_doubling_a_mask_weight_doubles_its_share():
    """The gradient is linear in the weights, and each pseudo-label's share is its own."""
    heads = tiny_heads()
    double = 0.6 * 2**0.25

    def of(*quality):
        return gradients(
            unlabelled(heads, pseudo(quality=quality))["loss_mask"], heads, "mask_head"
        )

    both, first, second = of(0.6, 0.6), of(0.6, 0.0), of(0.0, 0.6)
    assert first.any()
    assert second.any()
    assert torch.allclose(both, first + second, atol=1e-7)
    assert torch.allclose(of(double, 0.6), 2 * first + second, atol=1e-7)


# s^4 weights: with s_max 1, w_c(s) / w_c(1) = s^4 over the whole range.
SCORED = ("PAIS.CLASS_WEIGHT", True, "PAIS.CLASS_MAX", 1.0)


def test_a_pseudo_label_of_weight_zero_has_no_class_gradient():
    """Its regions are as if they had not been drawn: the loss does not see their logits."""
    heads = tiny_heads(*SCORED, "PAIS.NEGATIVE_WEIGHT", "constant", "PAIS.NEGATIVE_CONSTANT", 0.0)
    for silent in (0, 1):
        scores = [0.9, 0.9]
        scores[silent] = 0.0
        losses = unlabelled(heads, pseudo(scores=scores))
        rows = torch.autograd.grad(losses["loss_cls"], heads.box_predictor.cls_score.bias)[0]
        # Only the other's class is pulled up; everything else is pushed down.
        pulled = (rows < 0).nonzero().squeeze(1).tolist()
        assert pulled == [[2], [0]][silent]
    losses = unlabelled(heads, pseudo(scores=(0.0, 0.0)))
    assert losses["loss_cls"] == 0
    assert not gradients(losses["loss_cls"], heads, "box_predictor").any()


def test_doubling_a_class_weight_doubles_its_share():
    """Weighted sums: the normaliser is taken out by the known sum of weights."""
    heads = tiny_heads(*SCORED)

    def total(*scores):
        labels = pseudo(scores=scores)
        positive = drawn(heads, labels)[0]
        chosen = positive.gt_classes < CLASSES
        regions = sum(len(p) for p in drawn(heads, labels)) - int(chosen.sum())
        mass = (positive.gt_scores[chosen] ** 4).sum() + 0.3 * regions
        loss = unlabelled(heads, labels)["loss_cls"] * mass
        return gradients(loss, heads, "box_predictor")

    none, first, second = total(0.0, 0.0), total(0.6, 0.0), total(0.0, 0.6)
    double = 0.6 * 2**0.25
    assert (first - none).abs().max() > 1e-4
    assert torch.allclose(total(0.6, 0.6), first + second - none, atol=1e-6)
    assert torch.allclose(total(double, 0.6), 2 * (first - none) + second, atol=1e-6)


def test_negatives_weigh_what_the_teacher_thinks_of_them():
    """A teacher that denies every negative leaves the positives alone, and the reverse."""
    heads = tiny_heads()
    denied = unlabelled(heads, pseudo(), background=0.0)["loss_cls"]
    sampled = drawn(heads, pseudo())
    maps = [tiny_features()[name] for name in ("p2", "p3")]
    x = heads.box_head(heads.box_pooler(maps, [s.proposal_boxes for s in sampled]))
    logits = heads.box_predictor(x)[0]
    classes = torch.cat([s.gt_classes for s in sampled])
    positive = classes < CLASSES
    assert torch.allclose(denied, F.cross_entropy(logits[positive], classes[positive]))
    whole = unlabelled(heads, pseudo(), background=1.0)["loss_cls"]
    assert torch.allclose(whole, F.cross_entropy(logits, classes))


# No pseudo-label on any image (none found, or all below the floor, which the caller drops).
@pytest.mark.parametrize("opts", [(), SCORED, ("PAIS.DALOSS", False)])
def test_without_pseudo_labels_the_background_is_learned_and_nothing_else(opts, storage):
    heads = tiny_heads(*opts)
    losses = unlabelled(heads, [targets((), (), [], [])] * 2)
    assert losses["loss_cls"] > 0
    assert losses["loss_box_reg"] == losses["loss_mask"] == 0
    sum(losses.values()).backward()
    assert heads.box_predictor.cls_score.weight.grad.any()
    assert all(p.grad is not None for p in heads.mask_head.predictor.parameters())
    assert storage.latest()["unlabelled/class weight of negatives"][0] == pytest.approx(0.3)
    assert "unlabelled/mask weight of positives" not in storage.latest()


def test_one_class_only():
    heads = tiny_heads("ROI_HEADS.NUM_CLASSES", 1)
    labels = [targets(BOXES, [0, 0], [0.8, 0.6], [0.9, 0.7]), targets((), (), [], [])]
    losses = unlabelled(heads, labels)
    assert all(loss > 0 for loss in losses.values())
    boxes = [Boxes(torch.tensor(BOXES).float())] * 2
    found = heads.background_probability(tiny_features(), boxes)
    maps = [tiny_features()[name] for name in heads.box_in_features]
    logits = heads.box_predictor(heads.box_head(heads.box_pooler(maps, boxes)))[0]
    # Two columns, the object and the background: what is not the one is the other.
    assert [len(each) for each in found] == [2, 2]
    torch.testing.assert_close(torch.cat(found), (logits[:, 1] - logits[:, 0]).sigmoid())


def test_the_teacher_is_asked_only_where_its_answer_counts():
    for opts, asked in ((), 1), (("PAIS.NEGATIVE_WEIGHT", "none"), 0):
        background, calls = teacher(0.5)
        heads = tiny_heads(*opts)
        heads.losses_unlabelled(tiny_features(), tiny_proposals(), pseudo(), background)
        assert len(calls) == asked


def test_weights_and_samples_are_logged_apart_from_those_of_labelled_images(storage):
    heads = tiny_heads()
    heads(None, tiny_features(), tiny_proposals(), [targets(BOXES, [0, 2]), targets((), ())])
    unlabelled(heads, pseudo(quality=(0.9, 0.9)))
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert {"roi_head/num_fg_samples", "unlabelled/roi_head/num_fg_samples"} <= latest.keys()
    assert latest["unlabelled/mask weight of positives"] == pytest.approx(2.5 * 0.9**4, rel=1e-5)
    assert latest["unlabelled/class weight of positives"] == 1
    assert latest["unlabelled/class weight of negatives"] == pytest.approx(0.3)


def test_background_probability_is_the_last_of_the_softmax():
    heads, features = tiny_heads(), tiny_features()
    boxes = [Boxes(torch.tensor(BOXES).float()), Boxes(torch.zeros(0, 4))]
    found = heads.background_probability(features, boxes)
    assert [len(each) for each in found] == [2, 0]
    pooled = heads.box_pooler([features[name] for name in ("p2", "p3")], boxes)
    rows = heads.box_predictor(heads.box_head(pooled))[0].exp()
    assert torch.allclose(found[0], rows[:, CLASSES] / rows.sum(dim=1))
    assert not found[0].requires_grad


def detect(heads):
    """What a teacher finds on the first image."""
    boxes = heads.detect_boxes(tiny_features(), tiny_proposals())
    assert not boxes[0].has("pred_masks")
    return heads.forward_with_given_boxes(tiny_features(), boxes)[0]


# Ranking changes what `forward` gives, never what the teacher's labels are made of.
def test_ranking_by_quality():
    heads = tiny_heads("PAIS.RANK_GAMMA", 2.0).eval()
    with torch.no_grad():
        heads.box_predictor.cls_score.weight *= 30
        plain = detect(heads)
        ranked = heads(None, tiny_features(), tiny_proposals())[0][0]
    assert len(plain) > 3
    assert not plain.has("class_scores")
    expected = sorted((plain.scores * plain.pred_quality**2).tolist(), reverse=True)
    assert ranked.scores.tolist() == pytest.approx(expected)
    assert sorted(ranked.class_scores.tolist(), reverse=True) == plain.scores.tolist()
    assert torch.allclose(ranked.scores, ranked.class_scores * ranked.pred_quality**2)
    assert rank_by_quality(plain, 0.0) is plain


def test_ranking_moves_all_fields_together():
    heads = tiny_heads().eval()
    with torch.no_grad():
        found = detect(heads)[:3]
    found.scores = torch.tensor([0.9, 0.8, 0.7])
    found.pred_quality = torch.tensor([0.1, 0.5, 1.0])
    ranked = rank_by_quality(found, 1.0)
    assert ranked.scores.tolist() == pytest.approx([0.7, 0.4, 0.09])
    assert torch.equal(ranked.pred_boxes.tensor, found.pred_boxes.tensor[[2, 1, 0]])
    assert torch.equal(ranked.pred_masks, found.pred_masks[[2, 1, 0]])


def test_the_box_branch_can_be_left_out():
    heads = tiny_heads("PAIS.BOX_IOU.ENABLED", False)
    assert not [name for name in heads.state_dict() if "iou_score" in name]
    labelled = [targets(BOXES, [0, 2]), targets((), ())]
    losses = heads(None, tiny_features(), tiny_proposals(), labelled)[1]
    assert losses.keys() == UNLABELLED | {"loss_mask_iou"}
    assert unlabelled(heads, pseudo()).keys() == UNLABELLED
    with torch.no_grad():
        assert heads.eval()(None, tiny_features(), tiny_proposals())[0][0].has("pred_quality")


# Options of stock heads that the branches have to bear.
@pytest.mark.parametrize("key", ["CLS_AGNOSTIC_BBOX_REG", "TRAIN_ON_PRED_BOXES"])
def test_stock_options_are_obeyed(key):
    heads = tiny_heads(f"ROI_BOX_HEAD.{key}", True)
    labelled = [targets(BOXES, [0, 2]), targets((), ())]
    losses = heads(None, tiny_features(), tiny_proposals(), labelled)[1]
    assert losses.keys() == UNLABELLED | QUALITY
    assert losses["loss_box_iou"] > 0
    assert unlabelled(heads, pseudo()).keys() == UNLABELLED


def test_a_loss_without_a_probability_of_background_is_refused():
    with pytest.raises(DataError, match="USE_SIGMOID_CE"):
        tiny_heads("ROI_BOX_HEAD.USE_SIGMOID_CE", True)


def test_half_precision():
    heads = tiny_heads()
    with torch.autocast("cpu", torch.bfloat16):
        losses = unlabelled(heads, pseudo())
        background = heads.background_probability(tiny_features(), [Boxes(torch.rand(3, 4))] * 2)
    assert losses["loss_cls"].dtype == losses["loss_mask"].dtype == torch.float32
    assert background[0].dtype == torch.float32
    sum(losses.values()).backward()
    assert heads.mask_head.predictor.weight.grad.isfinite().all()
