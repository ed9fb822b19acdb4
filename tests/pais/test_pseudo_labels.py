"""Pseudo-labels from detections, their statistics, and the moving average behind them."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pais.daloss import DALoss, Floors
from pais.ema import momentum_at
from pais.pseudo_labels import WeakViews, carry, keep_above
from pais.statistics import PseudoLabelStatistics
from pseudolabel.ema import update_ema

SIZE = (40, 60)
IDENTITY = torch.eye(3, dtype=torch.float64)
FLIP = torch.tensor([[-1.0, 0, 60], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
# Twice as large, and 30 to the right: the left half of the weak view fills the right of the strong.
ZOOM = torch.tensor([[2.0, 0, 30], [0, 2, 0], [0, 0, 1]], dtype=torch.float64)


def detections(boxes, scores=None, classes=None, quality=None, size=SIZE):
    """Whole boxes as masks, but for the left half of the first one's."""
    count = len(boxes)
    masks = torch.ones(count, 1, 28, 28)
    if count:
        masks[0, :, :, 14:] = 0
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(boxes).float().view(-1, 4)),
        scores=torch.tensor(scores or [0.9] * count),
        pred_classes=torch.tensor(classes or [0] * count, dtype=torch.int64),
        pred_quality=torch.tensor(quality or [0.7] * count),
        pred_masks=masks,
    )


@pytest.mark.parametrize(
    ("floor", "expected"),
    [
        (0.0, [0.5, 0.8]),
        (0.5, [0.8]),  # the floor has to be exceeded
        (0.8, []),
    ],
)
def test_floors_are_exceeded(floor, expected):
    found = detections([[0, 0, 4, 4]] * 2, [0.5, 0.8])
    assert keep_above(found, "scores", floor).scores.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("matrix", "size", "boxes", "columns"),
    [
        # The mask is the left half of a box from column 10 to 30.
        (IDENTITY, SIZE, [10, 5, 30, 25], range(10, 20)),
        (FLIP, SIZE, [30, 5, 50, 25], range(40, 50)),
        (ZOOM, (80, 120), [50, 10, 90, 50], range(50, 70)),
        # A strong view that is smaller: clipped to it.
        (ZOOM, (80, 60), [50, 10, 60, 50], range(50, 60)),
    ],
)
def test_boxes_and_masks_move_together(matrix, size, boxes, columns):
    found = carry(detections([[10, 5, 30, 25]], classes=[1]), matrix, size)
    assert found.image_size == size
    assert found.gt_boxes.tensor.tolist() == [boxes]
    mask = found.gt_masks.tensor[0]
    assert mask.shape == size
    assert mask.any(dim=0).nonzero().flatten().tolist() == list(columns)
    assert (found.gt_classes.tolist(), found.gt_scores.tolist()) == ([1], [pytest.approx(0.9)])
    assert found.gt_quality.tolist() == [pytest.approx(0.7)]


def test_what_has_no_area_is_dropped():
    """Without one on the weak view, or having left the strong one; the others keep their fields."""
    boxes = [[5, 5, 5, 20], [50, 5, 58, 15], [2, 2, 12, 12]]
    found = carry(detections(boxes, [0.6, 0.7, 0.8], [0, 1, 1]), ZOOM, (80, 120))
    assert found.gt_scores.tolist() == [pytest.approx(0.8)]
    assert len(carry(detections([]), ZOOM, SIZE)) == 0
    assert carry(detections([]), ZOOM, SIZE).gt_masks.tensor.shape == (0, *SIZE)


def test_boxes_of_turned_masks_can_be_tight():
    """The mask, left half of its box, is turned by a right angle about the middle; half is left."""
    turned = torch.tensor([[0.0, -1, 50], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    found = detections([[10, 10, 30, 30]])
    hull = carry(found, turned, (60, 60))
    tight = carry(found, turned, (60, 60), tight_boxes=True)
    assert hull.gt_boxes.tensor.tolist() == [[20, 10, 40, 30]]
    assert tight.gt_boxes.tensor.tolist() == [[20, 10, 40, 20]]
    assert torch.equal(hull.gt_masks.tensor, tight.gt_masks.tensor)


@pytest.mark.parametrize("tight", [False, True])
def test_an_empty_mask_leaves_its_box_and_has_no_quality(tight):
    found = detections([[10, 10, 30, 30], [5, 5, 15, 15]])
    found.pred_masks[0] = 0
    moved = carry(found, IDENTITY, SIZE, tight)
    assert moved.gt_boxes.tensor.tolist() == [[10, 10, 30, 30], [5, 5, 15, 15]]
    assert moved.gt_quality.tolist() == [0, pytest.approx(0.7)]


def test_half_precision_of_autocast_becomes_single():
    found = detections([[10, 5, 30, 25]])
    for name in ("pred_masks", "scores", "pred_quality"):
        found.set(name, found.get(name).bfloat16())
    moved = carry(found, IDENTITY, SIZE)
    assert moved.gt_scores.dtype == moved.gt_quality.dtype == torch.float32
    assert moved.gt_masks.tensor.sum() == 200


class Heads:
    """Masks of ones and a quality of .7 for what is asked; remembers it."""

    def forward_with_given_boxes(self, features, instances):
        self.asked = [each.scores.tolist() for each in instances]
        for each in instances:
            each.pred_masks = torch.ones(len(each), 1, 28, 28)
            each.pred_quality = torch.full((len(each),), 0.7)
        return instances

    def background_probability(self, features, boxes):
        self.boxes = boxes
        return [torch.ones(len(each)) for each in boxes]


def weak_views(found, matrices):
    heads = Heads()
    for each in found:
        each.remove("pred_masks")
        each.remove("pred_quality")
    return heads, WeakViews(SimpleNamespace(roi_heads=heads), {}, matrices, found)


def test_masks_are_made_for_survivors_alone():
    found = [detections([[0, 0, 9, 9]] * 3, [0.9, 0.2, 0.6]), detections([[0, 0, 9, 9]], [0.1])]
    heads, views = weak_views(found, [IDENTITY, FLIP])
    labels = views.pseudo_labels(0.5, [SIZE, SIZE])
    assert heads.asked == [[pytest.approx(0.9), pytest.approx(0.6)], []]
    assert [len(each) for each in labels] == [2, 0]
    # The detections stay whole, for the statistics.
    assert [len(each) for each in views.found] == [3, 1]


def test_the_teacher_is_asked_on_the_weak_view():
    found = [detections([], size=SIZE), detections([], size=SIZE)]
    heads, views = weak_views(found, [ZOOM, FLIP])
    regions = [
        Instances((80, 120), proposal_boxes=Boxes(torch.tensor([[50.0, 10, 90, 50]]))),
        Instances(SIZE, proposal_boxes=Boxes(torch.tensor([[30.0, 5, 50, 25], [0, 0, 60, 40]]))),
    ]
    assert [len(each) for each in views.background_probability(regions)] == [1, 2]
    expected = [[[10, 5, 30, 25]], [[10, 5, 30, 25], [0, 0, 60, 40]]]
    assert [boxes.tensor.tolist() for boxes in heads.boxes] == expected


# Statistics


def labels(scores, classes, quality):
    found = Instances(SIZE, gt_scores=torch.tensor(scores).float())
    found.gt_classes = torch.tensor(classes, dtype=torch.int64)
    found.gt_quality = torch.tensor(quality).float()
    return found


def statistics(warn_after=0, floor=0.5, **weighting):
    floors = Floors(floor, floor, floor)
    return PseudoLabelStatistics(["cat", "dog"], floors, DALoss(**weighting), warn_after)


NOTHING = labels([], [], [])


def test_numbers_of_an_iteration_are_stored(caplog):
    caplog.set_level(logging.INFO)
    found = [detections([[0, 0, 9, 9]] * 3, [0.9, 0.6, 0.1]), detections([[0, 0, 9, 9]], [0.5])]
    kept = [labels([0.9, 0.6], [1, 1], [0.8, 0.5]), NOTHING]
    with EventStorage() as storage:
        storage.put_scalar("unlabelled/class weight of negatives", 0.25)
        statistics(use_class_weight=True, class_max=0.8).update(0, found, [NOTHING] * 2, kept)
        values = {name: value for name, (value, _) in storage.latest().items()}
    classes = (1 + (0.6 / 0.8) ** 4) / 2
    masks = 2.5 * (0.8**4 + 0.5**4) / 2
    expected = {
        "kept per image": 1.0,
        "below floor per image": 1.0,  # .1 and .5
        "for proposals per image": 0.0,
        "best score": 0.9,
        "mean score": 0.75,
        "mean quality": 0.65,
        "mean mask weight": masks,
        "mean class weight": classes,
        "class cat per image": 0.0,
        "class dog per image": 1.0,
    }
    values.pop("unlabelled/class weight of negatives")
    assert values == pytest.approx({f"pseudo-labels/{k}": v for k, v in expected.items()})
    (line,) = caplog.messages
    assert line == (
        "pseudo-labels of iterations 1-1: 1.00 kept and 1.00 below the floor of 0.5 per image; "
        f"mean score 0.750, quality 0.650, mask weight {masks:.3f}, class weight {classes:.3f}; "
        "weight of background 0.250; dog 2"
    )


def test_lines_of_the_log_sum_up_a_period(caplog):
    """The first iteration has its own; the means weigh every pseudo-label alike."""
    caplog.set_level(logging.INFO)
    monitor, found = statistics(), [detections([])]
    with EventStorage() as storage:
        for step in range(45):
            storage.iter = step
            few = labels([0.6], [0], [0.4]), labels([0.9] * 3, [1] * 3, [0.8] * 3)
            monitor.update(step, found, [NOTHING], [few[step % 2]])
    begins = [message.split(":")[0] for message in caplog.messages]
    assert begins == [f"pseudo-labels of iterations {span}" for span in ("1-1", "2-20", "21-40")]
    assert "2.00 kept" in caplog.messages[2]
    assert "mean score 0.825, quality 0.700" in caplog.messages[2]
    assert caplog.messages[2].endswith("; dog 30, cat 10")


def test_batches_of_one_step_are_one_iteration(caplog):
    """With accumulated gradients a step has several batches."""
    caplog.set_level(logging.INFO)
    monitor = statistics(warn_after=4)
    with EventStorage() as storage:
        for step in range(4):
            storage.iter = step
            for _ in range(3):
                monitor.update(step, [detections([])], [NOTHING], [NOTHING])
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING"]
    assert caplog.messages[1].startswith("4 iterations without a pseudo-label")


@pytest.mark.parametrize(
    ("scores", "cause"),
    [
        ([], "detects nothing at all"),
        ([0.3, 0.4], "best score is 0.40, and 0.5 has to be exceeded"),
        ([0.9], "strong views show none"),
    ],
)
def test_a_warning_names_the_likely_cause_once(scores, cause, caplog):
    monitor = statistics(warn_after=5)
    found, kept = [detections([[0, 0, 9, 9]] * len(scores), scores)], labels([0.9], [0], [0.5])
    with EventStorage() as storage:
        for step in range(30):
            storage.iter = step
            # One pseudo-label at step 3 starts the count anew, and one at step 20.
            monitor.update(step, found, [NOTHING], [kept if step in (3, 20) else NOTHING])
    texts = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(texts) == 2
    assert all(cause in text and "5 iterations" in text for text in texts)


def test_no_warning_is_given_when_switched_off(caplog):
    monitor = statistics(warn_after=0)
    with EventStorage() as storage:
        for step in range(30):
            storage.iter = step
            monitor.update(step, [detections([])], [NOTHING], [NOTHING])
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]


# The moving average


@pytest.mark.parametrize(
    ("step", "limit", "expected"),
    [
        (0, 0.999, 0.0),  # a copy
        (1, 0.999, 0.5),
        (2, 0.999, 2 / 3),
        (998, 0.999, 1 - 1 / 999),
        (999, 0.999, 0.999),
        (10**6, 0.999, 0.999),
        (5, 0.5, 0.5),
        (5, 0.0, 0.0),
    ],
)
def test_momentum(step, limit, expected):
    assert momentum_at(step, limit) == pytest.approx(expected, abs=1e-15)


class Counted(nn.Module):
    """A parameter, running statistics and a counter."""

    def __init__(self, value):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.weight = nn.Parameter(torch.full((3,), float(value)))
        self.norm.running_mean.fill_(value)
        self.norm.num_batches_tracked.fill_(int(value))


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=8), limit=st.floats(0, 1))
def test_average_is_the_closed_form(values, limit):
    """Teacher after n steps: sum over students of (1 - m_k) times all later m; m_0 = 0."""
    teacher, student = Counted(0), Counted(0)
    expected = 0.0
    for step, value in enumerate(values):
        with torch.no_grad():
            student.weight.fill_(value)
            student.norm.running_mean.fill_(value)
            student.norm.num_batches_tracked.fill_(step)
        momentum = momentum_at(step, limit)
        update_ema(teacher, student, momentum, average_buffers=True)
        expected = momentum * expected + (1 - momentum) * value
    assert teacher.weight.tolist() == pytest.approx([expected] * 3, abs=1e-4)
    assert teacher.norm.running_mean.tolist() == pytest.approx([expected] * 2, abs=1e-4)
    assert int(teacher.norm.num_batches_tracked) == len(values) - 1
    assert teacher.norm.num_batches_tracked.dtype == torch.int64


def test_below_the_limit_the_teacher_is_the_mean_of_all_students():
    """Of those after steps 1 .. n and the one that it started as: m = 1 - 1 / (t + 1)."""
    teacher, student = Counted(2), Counted(2)
    for step, value in enumerate([5.0, 11.0, 6.0], start=1):
        with torch.no_grad():
            student.weight.fill_(value)
        update_ema(teacher, student, momentum_at(step, 0.999), average_buffers=True)
    assert teacher.weight.tolist() == pytest.approx([6.0] * 3)
