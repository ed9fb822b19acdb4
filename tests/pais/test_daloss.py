"""Weights and weighted losses against naive twins, their properties, and what has no gradient."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pais.config import add_pais_config, check_config
from pais.daloss import (
    DALoss,
    class_weight,
    mask_weight,
    relative_class_weight,
    score_floors,
    weighted_class_loss,
    weighted_mask_loss,
)
from pseudolabel.errors import DataError

SETTINGS = settings(max_examples=40, deadline=None)
UNIT = st.floats(0, 1, width=32)
POWER = st.sampled_from([1.0, 2.0, 3.0, 4.0])


def pais_node(*opts):
    cfg = get_cfg()
    add_pais_config(cfg)
    cfg.merge_from_list([f"MODEL.PAIS.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)])
    check_config(cfg)
    return cfg.MODEL.PAIS


# u, w_m and s, w_c as the fact sheet lists them.
MASKS = [(0.3, 0.020), (0.5, 0.156), (0.6, 0.324), (0.7, 0.600), (0.8, 1.02), (0.9, 1.64), (1, 2.5)]
CLASSES = [(0.35, 0.180), (0.40, 0.307), (0.45, 0.492), (0.5, 0.75), (0.7, 0.75), (1.0, 0.75)]


@pytest.mark.parametrize(("quality", "weight"), MASKS)
def test_mask_weights_are_the_listed_ones(quality, weight):
    found = mask_weight(torch.tensor([quality]), 2.5, 4.0).item()
    assert found == pytest.approx(weight, abs=0.005)
    assert found == pytest.approx(2.5 * quality**4, rel=1e-5)


@pytest.mark.parametrize(("score", "weight"), CLASSES)
def test_class_weights_are_the_listed_ones(score, weight):
    found = class_weight(torch.tensor([score]), 12.0, 0.5, 4.0).item()
    assert found == pytest.approx(weight, abs=0.001)
    relative = relative_class_weight(torch.tensor([score]), 12.0, 0.5, 4.0).item()
    assert relative == pytest.approx(12 * min(score, 0.5) ** 4 / 0.75, rel=1e-5)


def test_a_mask_of_quality_0_795_weighs_as_much_as_a_human_one():
    even = torch.tensor([0.4**0.25, 0.794, 0.796])
    weights = mask_weight(even, 2.5, 4.0)
    assert weights[0].item() == pytest.approx(1.0, rel=1e-5)
    assert weights[1] < 1 < weights[2]


@SETTINGS
@given(UNIT, UNIT, POWER)
def test_better_never_weighs_less(first, second, power):
    low, high = sorted((first, second))
    pair = torch.tensor([low, high])
    for weights in (mask_weight(pair, 2.5, power), class_weight(pair, 12.0, 0.5, power)):
        assert weights[0] <= weights[1]
        assert (weights >= 0).all()


@SETTINGS
@given(UNIT, st.floats(0.125, 1, width=32), POWER, st.floats(0.5, 20))
def test_classes_saturate(score, saturation, power, coef):
    weight = class_weight(torch.tensor([score]), coef, saturation, power).item()
    top = class_weight(torch.tensor([saturation]), coef, saturation, power).item()
    assert (weight == top) if score >= saturation else (weight <= top)
    relative = relative_class_weight(torch.tensor([score]), coef, saturation, power).item()
    assert relative == pytest.approx((min(score, saturation) / saturation) ** power, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_computed_in_float32(dtype):
    """The fourth power of a small half-precision number would lose half of its digits."""
    quality = torch.tensor([0.3], dtype=dtype)
    weights = mask_weight(quality, 2.5, 4.0)
    assert weights.dtype == torch.float32
    assert weights.item() == pytest.approx(2.5 * float(quality) ** 4, rel=1e-6)


def naive_class_loss(logits, classes, weights):
    total, mass = 0.0, 0.0
    for row, label, weight in zip(logits.tolist(), classes.tolist(), weights.tolist()):
        largest = max(row)
        log_sum = largest + math.log(sum(math.exp(value - largest) for value in row))
        total += weight * (log_sum - row[label])
        mass += weight
    return total / max(mass, 1.0)


def naive_mask_loss(logits, target, weights):
    total = 0.0
    for region, truth, weight in zip(logits, target, weights.tolist()):
        pixels = [
            -math.log(1 / (1 + math.exp(-z)) if t else 1 / (1 + math.exp(z)))
            for z, t in zip(region.flatten().tolist(), truth.flatten().tolist())
        ]
        total += weight * sum(pixels) / len(pixels)
    return total / max(len(logits), 1)


@SETTINGS
@given(st.lists(st.floats(0, 3, width=32), min_size=1, max_size=6), st.integers(0, 99))
def test_both_losses_equal_their_naive_twins(values, seed):
    generator = torch.Generator().manual_seed(seed)
    n, weights = len(values), torch.tensor(values)
    logits = torch.randn(n, 4, generator=generator) * 3
    classes = torch.randint(0, 4, (n,), generator=generator)
    loss = weighted_class_loss(logits, classes, weights)
    assert loss.item() == pytest.approx(naive_class_loss(logits, classes, weights), rel=1e-4)
    maps = torch.randn(n, 5, 5, generator=generator) * 3
    target = torch.rand(n, 5, 5, generator=generator) > 0.5
    loss = weighted_mask_loss(maps, target, weights)
    assert loss.item() == pytest.approx(naive_mask_loss(maps, target, weights), rel=1e-4)


def test_equal_weights_give_the_stock_losses():
    logits, classes = torch.randn(7, 3), torch.tensor([0, 1, 2, 2, 1, 0, 2])
    ones = torch.ones(7)
    stock = F.cross_entropy(logits, classes)
    assert torch.allclose(weighted_class_loss(logits, classes, ones), stock)
    # The class loss is normalised by its weights, the mask loss is not.
    assert torch.allclose(weighted_class_loss(logits, classes, ones * 0.5), stock)
    maps, target = torch.randn(7, 4, 4), torch.rand(7, 4, 4).round()
    stock = F.binary_cross_entropy_with_logits(maps, target)
    assert torch.allclose(weighted_mask_loss(maps, target, ones), stock)
    assert torch.allclose(weighted_mask_loss(maps, target, ones * 0.5), 0.5 * stock)


def test_weights_that_hardly_add_up_to_a_region_are_not_blown_up():
    logits, classes = torch.randn(3, 2), torch.tensor([0, 1, 1])
    small = weighted_class_loss(logits, classes, torch.full((3,), 0.1))
    assert torch.allclose(small, 0.3 * F.cross_entropy(logits, classes))


def test_nothing_gives_zero_and_a_gradient():
    """No sampled region, no positive region, and weights that are all 0."""
    none = torch.zeros(0)
    cases = [
        (torch.zeros(0, 4), lambda x: weighted_class_loss(x, none.long(), none)),
        (torch.zeros(0, 5, 5), lambda x: weighted_mask_loss(x, x.detach(), none)),
        (torch.randn(2, 4), lambda x: weighted_class_loss(x, torch.tensor([0, 3]), torch.zeros(2))),
        (torch.randn(2, 5, 5), lambda x: weighted_mask_loss(x, x.detach() > 0, torch.zeros(2))),
    ]
    for logits, loss_of in cases:
        logits.requires_grad_()
        loss = loss_of(logits)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert not logits.grad.any()


def test_no_gradient_reaches_the_teacher():
    score, quality = (
        torch.full((2,), 0.4, requires_grad=True),
        torch.full((2,), 0.7).requires_grad_(),
    )
    background = torch.full((2,), 0.3, requires_grad=True)
    loss = DALoss(use_class_weight=True)
    for weights in (loss.masks(quality), loss.positives(score), loss.negatives_of(background)):
        assert not weights.requires_grad
    logits = torch.randn(2, 3, requires_grad=True)
    weighted_class_loss(logits, torch.tensor([0, 2]), score).backward()
    weighted_mask_loss(
        torch.randn(2, 4, 4, requires_grad=True), torch.ones(2, 4, 4), quality
    ).backward()
    assert logits.grad.any()
    assert score.grad is None
    assert quality.grad is None


@pytest.mark.parametrize("which", ["class", "mask"])
def test_half_precision_losses_are_computed_in_float32(which):
    logits = torch.randn(3, 4, 4).bfloat16()
    if which == "class":
        loss = weighted_class_loss(logits[:, 0], torch.tensor([0, 1, 2]), torch.ones(3))
        same = weighted_class_loss(logits[:, 0].float(), torch.tensor([0, 1, 2]), torch.ones(3))
    else:
        loss = weighted_mask_loss(logits, torch.ones(3, 4, 4), torch.ones(3))
        same = weighted_mask_loss(logits.float(), torch.ones(3, 4, 4), torch.ones(3))
    assert loss.dtype == torch.float32
    assert loss == same


# Config changes, then the weights of a mask with u = .6, of a positive with s = .4, and of a
# negative with background probability .3.
SWITCHES = [
    ([], 0.324, 1.0, 0.3),
    # A hard threshold weighs no pseudo-label; its negatives still ask the teacher.
    (["DALOSS", False], 1.0, 1.0, 0.3),
    (["DALOSS", False, "CLASS_WEIGHT", True], 1.0, 1.0, 0.3),
    (["MASK_WEIGHT", False], 1.0, 1.0, 0.3),
    (["CLASS_WEIGHT", True], 0.324, 0.4096, 0.3),
    (["CLASS_WEIGHT", True, "CLASS_COEF", 7.0], 0.324, 0.4096, 0.3),
    (["CLASS_WEIGHT", True, "CLASS_POWER", 2.0], 0.324, 0.64, 0.3),
    (["NEGATIVE_WEIGHT", "constant"], 0.324, 1.0, 0.1225),
    (["NEGATIVE_WEIGHT", "none"], 0.324, 1.0, 1.0),
    (["MASK_POWER", 2.0], 0.9, 1.0, 0.3),
    (["MASK_POWER", 3.0, "MASK_COEF", 1.0], 0.216, 1.0, 0.3),
]


@pytest.mark.parametrize(("opts", "mask", "positive", "negative"), SWITCHES)
def test_each_key_reaches_its_weight(opts, mask, positive, negative):
    loss = DALoss.from_config(pais_node(*opts))
    assert loss.masks(torch.tensor([0.6])).item() == pytest.approx(mask, rel=1e-5)
    assert loss.positives(torch.tensor([0.4])).item() == pytest.approx(positive, rel=1e-5)
    assert loss.negatives_of(torch.tensor([0.3])).item() == pytest.approx(negative, rel=1e-5)


# Config changes, then the floors: initial, of the proposals, of the heads.
FLOORS = [
    ([], (0.5, 0.5, 0.5)),
    (["RPN_SCORE_FLOOR", 0.8, "ROI_SCORE_FLOOR", 0.7], (0.5, 0.8, 0.7)),
    # What has been dropped at first cannot come back.
    (["SCORE_FLOOR", 0.9], (0.9, 0.9, 0.9)),
    (["CLASS_WEIGHT", True], (0.35, 0.35, 0.35)),
    # Without weights doubtful classes have no business here.
    (["CLASS_WEIGHT", True, "DALOSS", False], (0.5, 0.5, 0.5)),
]


@pytest.mark.parametrize(("opts", "floors"), FLOORS)
def test_floors(opts, floors):
    assert score_floors(pais_node(*opts)) == floors


# Key, a value that it refuses.
REFUSED = [
    ("SCORE_FLOOR", 1.5),
    ("CLASS_MAX", 0.0),
    ("MASK_COEF", 0.0),
    ("MASK_POWER", -1.0),
    ("RANK_GAMMA", -0.5),
    ("NEGATIVE_WEIGHT", "soft"),
    ("TEST.NETWORK", "both"),
    ("EMA.MOMENTUM", 1.1),
    ("EMA.START", "both"),
    ("MASK_IOU.FC_DIM", 0),
    ("UNLABELLED_WEIGHT", float("nan")),
]


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_values_without_a_meaning_are_refused_by_name(key, value):
    with pytest.raises(DataError, match=rf"MODEL\.PAIS\.{key}.*Remedy"):
        pais_node(key, value)
