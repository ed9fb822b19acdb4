"""Dice, MIL and the losses on human masks against naive loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mal.dice import dice_loss
from mal.mask_supervision import mask_losses
from mal.mil import mil_loss, warmup


def _naive_dice(prob, target, smooth=1e-3):
    product = square_p = square_t = 0.0
    for p, t in zip(prob.flatten().tolist(), target.flatten().tolist()):
        product += p * t
        square_p += p * p
        square_t += t * t
    return 1 - 2 * product / ((square_p + smooth) + (square_t + smooth))


def _naive_mil(prob, box):
    height, width = prob.shape
    columns = [[m[:, x].max().item() for x in range(width)] for m in (prob, box)]
    rows = [[m[y, :].max().item() for y in range(height)] for m in (prob, box)]
    return sum(_naive_dice(*map(torch.tensor, pair)) for pair in (columns, rows))


def _box(height=7, width=9, rows=(2, 5), columns=(3, 7)):
    mask = torch.zeros(1, height, width)
    mask[:, rows[0] : rows[1], columns[0] : columns[1]] = 1
    return mask


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_naive_twins(seed, batch, height, width):
    generator = torch.Generator().manual_seed(seed)
    prob = torch.rand(batch, height, width, generator=generator)
    box = torch.rand(batch, height, width, generator=generator).round(decimals=1)
    dice = [_naive_dice(p, b) for p, b in zip(prob, box)]
    mil = [_naive_mil(p, b) for p, b in zip(prob, box)]
    for loss, expected in ((dice_loss, dice), (mil_loss, mil)):
        each = loss(prob, box, reduction="none")
        assert each.tolist() == pytest.approx(expected, abs=1e-5)
        assert loss(prob, box).item() == pytest.approx(sum(expected) / batch, abs=1e-5)
        assert loss(prob, box, reduction="sum").item() == pytest.approx(sum(expected), abs=1e-4)


@pytest.mark.parametrize(
    ("prob", "target", "expected"),
    [
        ([1.0, 1.0], [1.0, 1.0], 0.0005),  # the smoothing leaves 0.002 / 4.002
        ([1.0, 0.0], [0.0, 1.0], 1.0),  # disjoint
        ([0.0, 0.0], [0.0, 0.0], 1.0),  # both empty: smoothing is in the denominator alone
        ([0.5, 0.5], [1.0, 1.0], 1 - 2 / 2.502),  # squared masses, not linear ones
    ],
)
def test_dice_values(prob, target, expected):
    loss = dice_loss(torch.tensor([prob]), torch.tensor([target]))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_dice_smooth_is_used():
    ones = torch.ones(1, 4)
    assert dice_loss(ones, ones, smooth=1.0).item() == pytest.approx(1 - 8 / 10)


def test_filled_box_has_no_mil_loss():
    box = _box()
    assert mil_loss(box, box).item() < 1e-3


def test_mil_ignores_the_inside_as_long_as_rows_and_columns_are_hit():
    box = _box(rows=(2, 6), columns=(3, 7))
    diagonal = torch.zeros_like(box)
    for k in range(4):
        diagonal[0, 2 + k, 3 + k] = 1
    assert mil_loss(diagonal, box).item() == pytest.approx(mil_loss(box, box).item(), abs=1e-6)
    diagonal[0, 3, 4] = 0  # one row and one column lose their only hit
    assert mil_loss(diagonal, box).item() > 0.1


def test_mil_punishes_what_leaves_the_box():
    box = _box()
    spill = box.clone()
    spill[0, 0, 0] = 1
    assert mil_loss(spill, box) > mil_loss(box, box) + 0.1


def test_mil_gradient_reaches_only_the_maxima():
    prob = torch.rand(1, 7, 9).requires_grad_()
    mil_loss(prob, _box()).backward()
    rows, columns = prob.argmax(2), prob.argmax(1)
    expected = torch.zeros_like(prob, dtype=torch.bool)
    expected[0, torch.arange(7), rows[0]] = True
    expected[0, columns[0], torch.arange(9)] = True
    assert torch.equal(prob.grad != 0, expected)


@pytest.mark.parametrize("loss", [dice_loss, mil_loss])
def test_common_contract(loss):
    empty = torch.zeros(0, 4, 4, requires_grad=True)
    value = loss(empty, torch.zeros(0, 4, 4))
    value.backward()
    assert value.item() == 0  # not NaN
    assert empty.grad.shape == (0, 4, 4)
    half = torch.rand(2, 4, 4).half()
    assert loss(half, half).dtype == torch.float32
    with pytest.raises(ValueError, match="reduction"):
        loss(half, half, reduction="avg")
    with pytest.raises(ValueError, match="shapes differ"):
        loss(half, half[:, :3, :3])


@pytest.mark.parametrize(
    ("step", "steps", "expected"),
    [(0, 1000, 0.0), (250, 1000, 0.25), (1000, 1000, 1.0), (5000, 1000, 1.0), (0, 0, 1.0)],
)
def test_warmup(step, steps, expected):
    assert warmup(step, steps) == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6))
def test_losses_on_human_masks_equal_loops(seed, batch, side):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(batch, side, side, generator=generator)
    target = torch.rand(batch, side, side, generator=generator)  # fractional, as at outlines
    losses = mask_losses(logits, target)
    entropy = [
        math.log1p(math.exp(-abs(x))) + max(x, 0) - x * t
        for x, t in zip(logits.flatten().tolist(), target.flatten().tolist())
    ]
    dice = [_naive_dice(x.sigmoid(), t) for x, t in zip(logits, target)]
    assert losses["loss_bce"].item() == pytest.approx(sum(entropy) / len(entropy), abs=1e-5)
    assert losses["loss_dice"].item() == pytest.approx(sum(dice) / batch, abs=1e-5)


def test_losses_on_human_masks_keep_their_precision_and_their_gradient():
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    sum(mask_losses(logits, torch.zeros(0, 4, 4)).values()).backward()
    assert logits.grad.shape == (0, 4, 4)
    half = mask_losses(torch.full((1, 4, 4), 30000.0).half(), torch.zeros(1, 4, 4).half())
    assert all(v.dtype == torch.float32 and v.isfinite() for v in half.values())
