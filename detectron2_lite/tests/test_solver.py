"""Schedules and optimizer groups against upstream's numbers; clipping; errors."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.solver import (
    LRMultiplier,
    WarmupMultiStepLR,
    WarmupParamScheduler,
    build_lr_scheduler,
    build_optimizer,
    get_default_optimizer_params,
)
from detectron2.solver.build import (
    _expand_param_groups,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from fvcore.common.param_scheduler import CosineParamScheduler, LinearParamScheduler
from torch import nn


def _cfg(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("SOLVER.MAX_ITER", 30, "SOLVER.STEPS", (10, 20), "SOLVER.WARMUP_ITERS", 5),
            *("SOLVER.BASE_LR", 0.1, "SOLVER.WARMUP_FACTOR", 0.1),
            *overrides,
        ]
    )
    return cfg


def _sgd(lr=0.1):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def _rates(cfg, count):
    optimizer = _sgd()
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


GOLDEN_LR = [
    ("lr_multistep", ()),
    ("lr_cosine", ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")),
    (
        "lr_fixedgamma",
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.NUM_DECAYS", 2),
    ),
]


@pytest.mark.parametrize(("name", "overrides"), GOLDEN_LR)
def test_schedules_equal_upstream(name, overrides, parts):
    expected = parts[name]["lr"]
    assert _rates(_cfg(*overrides), len(expected)) == pytest.approx(expected, rel=1e-5)


# (overrides, LRs of the first iterations)
WARMUP = [
    (("SOLVER.WARMUP_METHOD", "constant"), [0.01] * 5 + [0.1]),
    (("SOLVER.WARMUP_ITERS", 0), [0.1] * 6),
    (("SOLVER.WARMUP_ITERS", 60, "SOLVER.WARMUP_METHOD", "constant"), [0.01] * 30),  # all warm-up
]


@pytest.mark.parametrize(("overrides", "expected"), WARMUP)
def test_warmup(overrides, expected):
    assert _rates(_cfg(*overrides), len(expected)) == pytest.approx(expected)


def test_rescaled_interval_starts_the_schedule_after_the_warmup():
    scheduler = WarmupParamScheduler(
        CosineParamScheduler(1.0, 0.0), 0.1, 0.2, rescale_interval=True
    )
    assert scheduler(0.0) == pytest.approx(0.1)
    assert scheduler(0.2) == pytest.approx(1.0)  # the cosine's own beginning
    assert scheduler(0.6) == pytest.approx(0.5)  # its middle


@pytest.mark.parametrize("late", [30, 40])  # at the end, and beyond
def test_late_steps_are_ignored(late, caplog):
    rates = _rates(_cfg("SOLVER.STEPS", (10, late), "SOLVER.WARMUP_ITERS", 0), 30)
    assert rates[-1] == pytest.approx(0.01)
    assert "MAX_ITER" in caplog.text


# (overrides, part of the message)
BAD = [
    (("SOLVER.LR_SCHEDULER_NAME", "Poly"), "Poly"),
    (("SOLVER.WARMUP_METHOD", "burn"), "burn"),
    (("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1.0), "BASE_LR_END"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_wrong_settings(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_lr_scheduler(_cfg(*overrides), _sgd())


def test_multiplier_state_continues():
    optimizer = _sgd()
    scheduler = LRMultiplier(optimizer, LinearParamScheduler(1.0, 0.0), 10)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert state == {"base_lrs": [0.1], "last_epoch": 4}
    other_optimizer = _sgd()
    other = LRMultiplier(other_optimizer, LinearParamScheduler(1.0, 0.0), 10)
    other.load_state_dict(state)
    for opt, sched in ((optimizer, scheduler), (other_optimizer, other)):
        opt.step()
        sched.step()
    assert other_optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_multiplier_needs_a_param_scheduler():
    with pytest.raises(TypeError, match="ParamScheduler"):
        LRMultiplier(_sgd(), lambda where: 1.0, 10)


def test_deprecated_schedulers_name_their_successor():
    with pytest.raises(NotImplementedError, match="LRMultiplier"):
        WarmupMultiStepLR(_sgd(), [1])


GROUPS = [
    ("optimizer_default", ()),
    (
        "optimizer_norm_and_bias",
        (
            *("MODEL.FPN.NORM", "GN", "SOLVER.WEIGHT_DECAY_NORM", 0.01),
            *("SOLVER.BIAS_LR_FACTOR", 2.0, "SOLVER.WEIGHT_DECAY_BIAS", 0.0),
        ),
    ),
]


@pytest.mark.parametrize(("name", "overrides"), GROUPS)
def test_optimizer_groups_equal_upstream(name, overrides, parts):
    cfg = get_cfg()
    levels = ["res2", "res3", "res4", "res5"]
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "SOLVER.BASE_LR", 0.02),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
            *("MODEL.RESNETS.OUT_FEATURES", levels, "MODEL.FPN.IN_FEATURES", levels),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 2),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),  # the sizes do not change the groups
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 4, *overrides),
        ]
    )
    optimizer = build_optimizer(cfg, build_model(cfg))
    expected = parts[name]
    assert type(optimizer).__name__ == expected["type"]
    found = [
        {
            "n": len(g["params"]),
            "lr": g["lr"],
            "wd": g["weight_decay"],
            "momentum": g["momentum"],
            "nesterov": g["nesterov"],
        }
        for g in optimizer.param_groups
    ]
    assert found == [pytest.approx(g) for g in expected["groups"]]


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.GroupNorm(1, 2)
        self.alias = self.conv  # shared: must not be listed twice
        self.frozen = nn.Linear(1, 1).requires_grad_(False)


def test_parameter_settings():
    net = _Net()
    groups = get_default_optimizer_params(
        net,
        base_lr=1.0,
        weight_decay=0.5,
        weight_decay_norm=0.0,
        lr_factor_func=lambda name: 0.1 if name.startswith("norm") else 1.0,
        overrides={"bias": {"weight_decay": 9.0}},
    )
    by_parameter = {id(p): g for g in groups for p in g["params"]}
    assert len(by_parameter) == sum(len(g["params"]) for g in groups) == 4

    def settings(parameter):
        return by_parameter[id(parameter)]["lr"], by_parameter[id(parameter)]["weight_decay"]

    assert settings(net.conv.weight) == (1.0, 0.5)
    assert settings(net.conv.bias) == (1.0, 9.0)
    assert settings(net.norm.weight) == (pytest.approx(0.1), 0.0)
    assert settings(net.norm.bias) == (pytest.approx(0.1), 9.0)


# arguments that contradict each other
CONFLICTS = [
    {"bias_lr_factor": 2.0},  # a factor of nothing
    {"lr_factor_func": lambda name: 1.0},
    {"base_lr": 1.0, "bias_lr_factor": 2.0, "overrides": {"bias": {"lr": 3.0}}},
]


@pytest.mark.parametrize("kwargs", CONFLICTS)
def test_contradicting_settings(kwargs):
    with pytest.raises(ValueError, match=r"bias|base_lr"):
        get_default_optimizer_params(_Net(), **kwargs)


def test_expand_and_reduce_groups():
    groups = [
        {"params": ["a", "b", "c"], "lr": 1.0, "weight_decay": 3.0},
        {"params": ["b", "d"], "lr": 2.0, "momentum": 2.0},  # later settings win
        {"params": ["a"], "weight_decay": 4.0},
    ]
    assert _expand_param_groups(groups) == [
        {"params": ["a"], "lr": 1.0, "weight_decay": 4.0},
        {"params": ["b"], "lr": 2.0, "weight_decay": 3.0, "momentum": 2.0},
        {"params": ["c"], "lr": 1.0, "weight_decay": 3.0},
        {"params": ["d"], "lr": 2.0, "momentum": 2.0},
    ]
    joined = reduce_param_groups([{"params": ["a"], "lr": 1}, {"params": ["b"], "lr": 1}])
    assert joined == [{"params": ["a", "b"], "lr": 1}]


# (type, limit, gradient of two parameters after clipping; before: (3, 4) and (0.3, 0.4))
CLIP = [
    ("value", 1.0, [1.0, 1.0], [0.3, 0.4]),
    ("norm", 1.0, [0.6, 0.8], [0.3, 0.4]),  # each parameter by itself
]


@pytest.mark.parametrize("as_class", [True, False])
@pytest.mark.parametrize(("kind", "limit", "first", "second"), CLIP)
def test_gradient_clipping(kind, limit, first, second, as_class):
    cfg = _cfg("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind)
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = limit
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    unused = nn.Parameter(torch.zeros(1))  # has no gradient
    if as_class:
        optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)([*parameters, unused], lr=1.0)
    else:
        optimizer = torch.optim.SGD([*parameters, unused], lr=1.0)
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    parameters[0].grad = torch.tensor([3.0, 4.0])
    parameters[1].grad = torch.tensor([0.3, 0.4])
    optimizer.step()
    assert (-parameters[0]).tolist() == pytest.approx(first, abs=1e-5)
    assert (-parameters[1]).tolist() == pytest.approx(second, abs=1e-5)
    assert type(optimizer).__name__ == "SGDWithGradientClip"


def test_clipping_switched_off_or_unknown():
    cfg = _cfg()
    optimizer = _sgd()
    assert maybe_add_gradient_clipping(cfg, optimizer) is optimizer
    assert type(optimizer) is torch.optim.SGD
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    with pytest.raises(ValueError, match="full_model"):
        maybe_add_gradient_clipping(cfg, optimizer)


def test_last_step_does_not_fail():
    rates = _rates(_cfg("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"), 30)
    assert all(math.isfinite(r) for r in rates)
