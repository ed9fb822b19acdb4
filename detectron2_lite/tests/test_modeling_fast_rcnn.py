"""Box predictor: losses and suppression against naive twins."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

SIZE = (64, 64)
TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def make_proposals(boxes):
    boxes = torch.tensor(boxes).float().view(-1, 4)
    return Instances(SIZE, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))


def regions(classes, k=3):
    """One image with a region per class given; each target is its region, moved a little."""
    p = make_proposals([[i, i, i + 20, i + 10 + i] for i in range(len(classes))])
    p.gt_classes = torch.tensor(classes, dtype=torch.int64)
    p.gt_boxes = Boxes(p.proposal_boxes.tensor + torch.tensor([1.0, 2, -1, 3]))
    return p


class TestPredictor:
    @pytest.mark.parametrize("agnostic", [False, True])
    @pytest.mark.parametrize("beta", [0.0, 0.5])
    def test_losses_equal_their_naive_twin(self, agnostic, beta):
        layers = FastRCNNOutputLayers(
            6,
            box2box_transform=TRANSFORM,
            num_classes=3,
            cls_agnostic_bbox_reg=agnostic,
            smooth_l1_beta=beta,
            loss_weight={"loss_box_reg": 2.0},
        )
        p = regions([2, 3, 0, 3, 1])
        logits, deltas = torch.randn(5, 4), torch.randn(5, 4 if agnostic else 12)
        with EventStorage() as storage:
            got = layers.losses((logits, deltas), [p])
            stats = {k: v[0] for k, v in storage.latest().items()}
        classification = box = 0.0
        for row, cls in enumerate(p.gt_classes.tolist()):
            classification -= math.log(float(logits[row].softmax(0)[cls])) / 5
            if cls == 3:
                continue
            want = TRANSFORM.get_deltas(
                p.proposal_boxes.tensor[row : row + 1], p.gt_boxes.tensor[row : row + 1]
            )[0]
            own = deltas[row] if agnostic else deltas[row, 4 * cls : 4 * cls + 4]
            for d in (own - want).abs().tolist():
                box += (0.5 * d * d / beta if d < beta else d - 0.5 * beta) / 5
        assert float(got["loss_cls"]) == pytest.approx(classification, rel=1e-4)
        assert float(got["loss_box_reg"]) == pytest.approx(2.0 * box, rel=1e-4)
        guess = logits.argmax(1).tolist()
        pairs = list(zip(guess, p.gt_classes.tolist()))
        assert stats["fast_rcnn/cls_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / 5)
        front = [(a, b) for a, b in pairs if b != 3]
        hits, lost = sum(a == b for a, b in front), sum(a == 3 for a, _ in front)
        assert stats["fast_rcnn/fg_cls_accuracy"] == pytest.approx(hits / 3)
        assert stats["fast_rcnn/false_negative"] == pytest.approx(lost / 3)

    @pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
    @pytest.mark.parametrize("sigmoid", [False, True])
    def test_nothing_to_learn_from(self, kind, sigmoid):
        layers = FastRCNNOutputLayers(
            ShapeSpec(channels=10),
            box2box_transform=TRANSFORM,
            num_classes=8,
            box_reg_loss_type=kind,
            use_sigmoid_ce=sigmoid,
        )
        for proposals in ([], [make_proposals([])]):
            for p in proposals:
                p.gt_classes = torch.empty(0, dtype=torch.int64)
            x = torch.randn(0, 10, requires_grad=True)
            with EventStorage():
                losses = layers.losses(layers(x), proposals)
            assert {k: v.item() for k, v in losses.items()} == {"loss_cls": 0, "loss_box_reg": 0}
            sum(losses.values()).backward()
            assert all(p.grad is not None for p in layers.parameters())
            found, kept = layers.inference(layers(x), proposals)
            assert len(found) == len(proposals) == len(kept)

    def test_background_only(self):
        layers = FastRCNNOutputLayers(6, box2box_transform=TRANSFORM, num_classes=3)
        with EventStorage() as storage:
            losses = layers.losses(layers(torch.randn(2, 6)), [regions([3, 3])])
            assert "fast_rcnn/fg_cls_accuracy" not in storage.latest()
        assert losses["loss_box_reg"].item() == 0
        assert losses["loss_cls"].item() > 0

    def test_sigmoid_and_federated_loss(self):
        logits, p = torch.randn(4, 6), regions([0, 5, 2, 5])
        arguments = {"box2box_transform": TRANSFORM, "num_classes": 5, "use_sigmoid_ce": True}
        target = torch.zeros(4, 5)
        target[0, 0] = target[2, 2] = 1
        each = F.binary_cross_entropy_with_logits(logits[:, :5], target, reduction="none")
        plain = FastRCNNOutputLayers(6, **arguments)
        got = plain.sigmoid_cross_entropy_loss(logits, p.gt_classes)
        torch.testing.assert_close(got, each.sum() / 4)
        assert plain.predict_probs((logits, None), [p])[0].sum() > 0
        # Class 4 is the only one that may be drawn besides those that are present.
        fed = FastRCNNOutputLayers(
            6,
            **arguments,
            use_fed_loss=True,
            get_fed_loss_cls_weights=lambda: torch.tensor([1.0, 0, 1, 0, 1]),
            fed_loss_num_classes=4,
        )
        got = fed.sigmoid_cross_entropy_loss(logits, p.gt_classes)
        torch.testing.assert_close(got, each[:, [0, 2, 4]].sum() / 4)
        with pytest.raises(AssertionError, match="sigmoid"):
            FastRCNNOutputLayers(6, **arguments | {"use_sigmoid_ce": False}, use_fed_loss=True)

    def test_boxes_for_given_classes(self):
        layers = FastRCNNOutputLayers(6, box2box_transform=TRANSFORM, num_classes=3)
        p, deltas = regions([2, 3, 0]), torch.randn(3, 12)
        all_boxes = layers.predict_boxes((None, deltas), [p])[0].view(3, 3, 4)
        chosen = layers.predict_boxes_for_gt_classes((None, deltas), [p])[0]
        assert torch.equal(chosen[0], all_boxes[0, 2])
        assert torch.equal(chosen[2], all_boxes[2, 0])


def _detect_slowly(boxes, scores, score_thresh, nms_thresh, topk):
    """Independent twin for one image: greedy suppression, class by class."""
    found = []
    for cls in range(scores.shape[1] - 1):
        order = sorted(range(len(scores)), key=lambda r: -float(scores[r, cls]))
        kept = []
        for row in order:
            if float(scores[row, cls]) <= score_thresh:
                continue
            own = boxes[row, 4 * cls : 4 * cls + 4].tolist()
            if all(_iou(own, other) <= nms_thresh for other, _ in kept):
                kept.append((own, row))
        found += [(float(scores[row, cls]), cls, row) for _, row in kept]
    return sorted(found, reverse=True)[:topk]


def _iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    area = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return common / (area - common)


class TestInference:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("topk", [3, 100])
    def test_equals_its_slow_twin(self, seed, topk):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(12, 3, 2, generator=generator) * 30
        size = 5 + torch.rand(12, 3, 2, generator=generator) * 25
        boxes = torch.cat([corner, corner + size], dim=2).flatten(1)
        scores = torch.rand(12, 4, generator=generator)
        (found,), (rows,) = fast_rcnn_inference([boxes], [scores], [SIZE], 0.3, 0.4, topk)
        want = _detect_slowly(boxes, scores, 0.3, 0.4, topk)
        assert found.scores.tolist() == pytest.approx([s for s, _, _ in want])
        assert found.pred_classes.tolist() == [c for _, c, _ in want]
        assert rows.tolist() == [r for _, _, r in want]

    def test_clipping_and_agnostic_boxes(self):
        boxes = torch.tensor([[-5.0, -5, 70, 30]])
        scores = torch.tensor([[0.9, 0.05, 0.8, 0.1]])
        (found,), _ = fast_rcnn_inference([boxes], [scores], [SIZE], 0.05, 0.5, 9)
        assert found.pred_boxes.tensor.tolist() == [[0, 0, 64, 30]] * 2
        assert found.pred_classes.tolist() == [0, 2]  # 0.05 itself does not pass

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_bad_numbers_are_dropped_and_rows_still_count_from_the_input(self, bad):
        boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 40, 40], [30, 0, 60, 9]])
        scores = torch.tensor([[0.9, 0.1]] * 3)
        boxes[0, 1] = bad
        scores[1, 0] = bad
        (found,), (rows,) = fast_rcnn_inference([boxes], [scores], [SIZE], 0.0, 0.5, 9)
        assert len(found) == 1
        assert rows.tolist() == [2]
