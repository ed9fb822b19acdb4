"""Box transform, matcher, sampling, pooling and post-processing: laws and corner cases."""

import pytest
import torch
from detectron2.modeling import detector_postprocess, sem_seg_postprocess
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

side = st.floats(2.0, 200.0)
corner = st.floats(-50.0, 300.0)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


# The clamp cuts ratios beyond 1000 / 16; sides from 2 to 100 px stay below it.
@given(
    st.lists(
        st.tuples(box, corner, corner, st.floats(2.0, 100.0), st.floats(2.0, 100.0)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]),
)
@settings(max_examples=30, deadline=None)
def test_deltas_bring_source_to_target(pairs, weights):
    source = torch.tensor([p[0] for p in pairs])
    target = torch.tensor([[x, y, x + w, y + h] for _, x, y, w, h in pairs])
    transform = Box2BoxTransform(weights=weights)
    moved = transform.apply_deltas(transform.get_deltas(source, target), source)
    torch.testing.assert_close(moved, target, rtol=1e-3, atol=2e-2)


def test_several_predictions_for_one_box():
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    source = torch.tensor([[0.0, 0, 10, 20], [5, 5, 9, 9]])
    deltas = torch.randn(2, 12) * 0.1
    together = transform.apply_deltas(deltas, source)
    one_by_one = [transform.apply_deltas(deltas[:, i : i + 4], source) for i in (0, 4, 8)]
    assert torch.equal(together, torch.cat(one_by_one, dim=1))
    assert transform.apply_deltas(torch.empty(0, 12), torch.empty(0, 4)).shape == (0, 12)
    assert transform.apply_deltas(deltas.half(), source).dtype == torch.float32


def test_source_without_width_is_refused():
    boxes = torch.tensor([[3.0, 0, 3, 9]])
    with pytest.raises(AssertionError, match="positive width"):
        Box2BoxTransform(weights=(1.0,) * 4).get_deltas(boxes, boxes + 1)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_dense_loss_is_zero_at_the_target_only(kind):
    transform = Box2BoxTransform(weights=(1.0,) * 4)
    anchors = [Boxes([[0.0, 0, 8, 8], [4, 4, 20, 20]]), Boxes([[0.0, 0, 32, 32]])]
    wanted = torch.tensor([[1.0, 1, 9, 10], [5, 3, 18, 22], [2, 2, 30, 28]])
    exact = transform.get_deltas(Boxes.cat(anchors).tensor, wanted)
    mask = torch.tensor([[True, False, True]])

    def loss(deltas):
        levels = [deltas[None, :2], deltas[None, 2:]]
        return _dense_box_regression_loss(anchors, transform, levels, [wanted], mask, kind, 0.1)

    assert float(loss(exact)) == pytest.approx(0, abs=1e-4)
    off_background = exact.clone()
    off_background[1] += 1
    assert float(loss(off_background)) == pytest.approx(0, abs=1e-4), "background must not count"
    assert float(loss(exact + 0.5)) > 0.05
    empty = (exact * 1).requires_grad_()
    none = _dense_box_regression_loss(
        anchors, transform, [empty[None, :2], empty[None, 2:]], [wanted], mask & False, kind
    )
    none.backward()
    assert none.item() == 0
    assert torch.equal(empty.grad, torch.zeros_like(empty))


def test_unknown_loss_type():
    transform, boxes = Box2BoxTransform(weights=(1.0,) * 4), torch.tensor([[0.0, 0, 8, 8]])
    mask = torch.tensor([[True]])
    with pytest.raises(ValueError, match="l7"):
        _dense_box_regression_loss([boxes], transform, [boxes[None]], [boxes], mask, "l7")


def _match_slowly(quality, low):
    """Independent twin: one prediction after the other."""
    index, label = [], []
    for column in quality.t().tolist():
        best = max(column)
        index.append(column.index(best))
        sure = low and any(v == max(row) for v, row in zip(column, quality.tolist()))
        label.append(1 if best >= 0.75 or sure else 0 if best < 0.25 else -1)
    return index, label


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_matcher_equals_its_slow_twin(seed, m, n, low):
    generator = torch.Generator().manual_seed(seed)
    # Steps of 1/8 make ties and values on the thresholds common, and are exact.
    quality = torch.randint(0, 9, (m, n), generator=generator) / 8
    index, label = Matcher([0.25, 0.75], [0, -1, 1], allow_low_quality_matches=low)(quality)
    want_index, want_label = _match_slowly(quality, low)
    assert label.tolist() == want_label
    got_quality = quality[index, torch.arange(n)]
    assert torch.equal(got_quality, quality[want_index, torch.arange(n)])


@pytest.mark.parametrize(("m", "n"), [(0, 3), (2, 0), (0, 0)])
def test_matcher_on_nothing(m, n):
    index, label = Matcher([0.3, 0.7], [-1, 0, 1])(torch.empty(m, n))
    assert index.tolist() == [0] * n
    assert label.tolist() == [-1] * n  # the label of the lowest bin


@pytest.mark.parametrize(
    ("thresholds", "labels"),
    [
        ([0.7, 0.3], [0, -1, 1]),  # falling
        ([0.5], [0, 1, 1]),  # too many labels
        ([0.5], [0, 2]),  # no such label
        ([0.0], [0, 1]),  # the lowest bin would be empty
    ],
)
def test_matcher_mistakes(thresholds, labels):
    with pytest.raises(AssertionError):
        Matcher(thresholds, labels)


@given(
    st.lists(st.sampled_from([-1, 0, 1, 2, 7]), max_size=40),
    st.integers(0, 20),
    st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_sampling_counts(values, num, fraction):
    labels = torch.tensor(values, dtype=torch.int64)
    positive, negative = subsample_labels(labels, num, fraction, bg_label=7)
    have_pos, have_neg = sum(v in (0, 1, 2) for v in values), values.count(7)
    assert len(positive) == min(have_pos, int(num * fraction))
    assert len(negative) == min(have_neg, num - len(positive))
    assert len(set(positive.tolist())) == len(positive)
    assert all(labels[i] in (0, 1, 2) for i in positive)
    assert all(labels[i] == 7 for i in negative)


def _pooler(levels: int, kind: str = "ROIAlignV2", size=2) -> ROIPooler:
    return ROIPooler(size, [1 / 2 ** (2 + k) for k in range(levels)], 2, kind)


def test_pooler_keeps_the_order_of_boxes():
    maps = [torch.randn(2, 3, 64 >> k, 64 >> k) for k in range(3)]
    boxes = [
        Boxes([[0.0, 0, 250, 250], [3, 3, 20, 20], [0, 0, 130, 130]]),
        Boxes([[5.0, 5, 30, 30], [1, 2, 240, 200]]),
    ]
    pooler = _pooler(3)
    together = pooler(maps, boxes)
    for row, (image, index) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        alone = pooler([m[image : image + 1] for m in maps], [boxes[image][index]])
        torch.testing.assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize(
    ("levels", "images"), [(1, 0), (1, 2), (3, 2), (3, 0)], ids=str
)  # no image; images without boxes
def test_pooling_nothing_is_differentiable(levels, images):
    maps = [torch.randn(images, 5, 16 >> k, 16 >> k, requires_grad=True) for k in range(levels)]
    out = _pooler(levels)(maps, [Boxes(torch.empty(0, 4))] * images)
    assert out.shape == (0, 5, 2, 2)
    out.sum().backward()
    assert all(torch.equal(m.grad, torch.zeros_like(m)) for m in maps)


def test_pooler_format_and_kinds():
    boxes = [Boxes(torch.empty(0, 4)), Boxes([[1.0, 2, 3, 4]]), Boxes([[5.0, 6, 7, 8]] * 2)]
    rows = convert_boxes_to_pooler_format(boxes)
    assert rows[:, 0].tolist() == [1, 2, 2]
    assert rows[0, 1:].tolist() == [1, 2, 3, 4]
    maps = [torch.arange(256.0).view(1, 1, 16, 16)]
    assert _pooler(1, "ROIPool", (2, 3))(maps, [boxes[1]]).shape == (1, 1, 2, 3)
    with pytest.raises(ValueError, match="Unknown pooler"):
        _pooler(1, "ROISomething")
    with pytest.raises(NotImplementedError, match="upstream"):
        _pooler(1, "ROIAlignRotated")
    with pytest.raises(AssertionError, match="half"):
        ROIPooler(2, [1 / 4, 1 / 16], 2, "ROIAlign")


def test_postprocess_scales_clips_drops_and_pastes():
    raw = Instances((10, 20))
    # The second box lies outside of the image and has no area left after clipping.
    raw.pred_boxes = Boxes([[2.0, 2, 30, 8], [25, 2, 30, 8]])
    raw.scores = torch.tensor([0.9, 0.8])
    raw.pred_masks = torch.ones(2, 1, 4, 4)
    before = raw.pred_boxes.tensor.clone()
    out = detector_postprocess(raw, 20, 40)
    assert out.image_size == (20, 40)
    assert out.pred_boxes.tensor.tolist() == [[4, 4, 40, 16]]
    assert out.scores.tolist() == pytest.approx([0.9])
    assert out.pred_masks.shape == (1, 20, 40)
    assert out.pred_masks.dtype == torch.bool
    # Outside of its box a mask is 0, so interpolation rounds the corners off by a pixel or two.
    assert out.pred_masks[0, 5:15, 6:38].all()
    assert 36 * 12 - 8 <= int(out.pred_masks.sum()) <= 36 * 12
    assert torch.equal(raw.pred_boxes.tensor, before), "the raw result must stay usable"


def test_postprocess_of_proposals_and_of_nothing():
    raw = Instances((10, 10), proposal_boxes=Boxes(torch.empty(0, 4)))
    assert len(detector_postprocess(raw, 5, 5)) == 0
    with pytest.raises(AssertionError, match="boxes"):
        detector_postprocess(Instances((10, 10), scores=torch.ones(1)), 5, 5)


def test_sem_seg_postprocess_cuts_the_padding():
    logits = torch.full((3, 8, 8), -5.0)
    logits[:, :4, :6] = 2.0
    out = sem_seg_postprocess(logits, (4, 6), 8, 12)
    assert out.shape == (3, 8, 12)
    assert torch.equal(out, torch.full((3, 8, 12), 2.0))
