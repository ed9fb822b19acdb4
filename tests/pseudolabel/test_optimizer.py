"""Groups of the optimizers, the learning rate of a step, and clipping of the whole gradient."""

import logging

import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pseudolabel.config import add_masksmith_config
from pseudolabel.errors import DataError
from pseudolabel.optimizer import (
    backbone_prefixes,
    build_adamw,
    layers_of,
    learning_rate,
    with_learning_rate,
)
from pseudolabel.trainer import Trainer


def config(*options):
    cfg = get_cfg()
    add_masksmith_config(cfg)
    solver = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.01, "SOLVER.BETAS", (0.8, 0.9)]
    cfg.merge_from_list([*solver, "SOLVER.WEIGHT_DECAY", 0.1, *options])
    return cfg


class Encoder(nn.Module):
    """Stem, two blocks, final norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.norm = nn.LayerNorm(2)

    def layer_of(self, name):
        places = {"stem": 0, "blocks.0": 1, "blocks.1": 2, "norm": 3}
        return next(layer for start, layer in places.items() if name.startswith(start)), 4


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), nn.Linear(2, 1)


def rates(optimizer, model):
    """{parameter name: learning rate}."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_one_group_without_decay():
    model = Model()
    model.encoder.stem.requires_grad_(False)
    optimizer = build_adamw(config(), model)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 8  # the frozen stem is left out
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.01, (0.8, 0.9), 0.1)


@pytest.mark.parametrize("wrapper", [lambda m: m, nn.DataParallel])
def test_decay_by_layer(wrapper):
    model = wrapper(Model())
    optimizer = build_adamw(config("SOLVER.LAYER_DECAY", 0.5), model)
    found = {name.removeprefix("module."): rate for name, rate in rates(optimizer, model).items()}
    expected = {"encoder.stem": 1 / 8, "encoder.blocks.0": 1 / 4, "encoder.blocks.1": 1 / 2}
    for name, rate in found.items():
        layer = name.rpartition(".")[0]
        assert rate == pytest.approx(0.01 * expected.get(layer, 1))  # norm and decoder: 1
    assert len(found) == len(list(model.parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1] * 4


def test_a_step_moves_each_layer_by_its_rate():
    """The first step of Adam is as long as the learning rate, whatever the gradient."""
    model = Model()
    options = ("SOLVER.LAYER_DECAY", 0.1, "SOLVER.WEIGHT_DECAY", 0.0)
    optimizer = build_adamw(config(*options), model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for name, rate in rates(optimizer, model).items():
        moved = (dict(model.named_parameters())[name] - before[name]).abs()
        assert torch.allclose(moved, torch.full_like(moved, rate), rtol=1e-2)


def test_gradients_are_clipped_where_the_config_says_so():
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.25)
    for decay in (1.0, 0.5):
        model = Model()
        optimizer = build_adamw(config(*clip, "SOLVER.LAYER_DECAY", decay), model)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 7.0)
        optimizer.step()
        assert all(p.grad.max() == 0.25 for p in model.parameters())


class OffByOne(Encoder):
    def layer_of(self, name):
        return 4, 4


@pytest.mark.parametrize(
    ("model", "decay", "message"),
    [
        (nn.Linear(2, 2), 0.5, "no part of Linear knows its layers"),
        (Model(), 0.0, "LAYER_DECAY 0.0"),
        (Model(), 1.5, "LAYER_DECAY 1.5"),
        (OffByOne(), 0.5, r"stem\.weight: layer 4 of 4"),
    ],
)
def test_impossible_decays_are_refused(model, decay, message):
    with pytest.raises(ValueError, match=message):
        build_adamw(config("SOLVER.LAYER_DECAY", decay), model)


def test_encoders_of_student_and_teacher_are_found_each():
    model = nn.ModuleDict({"student": Model(), "teacher": Model()})
    names = [name for name, _ in model.named_parameters()]
    layers = layers_of(model, names)
    assert list(layers) == names
    assert layers["student.encoder.blocks.1.bias"] == layers["teacher.encoder.blocks.1.bias"]
    assert layers["student.encoder.blocks.1.bias"] == (2, 4)


# the backbone's rate ---------------------------------------------------------------------------


class Detector(nn.Module):
    """A stock model: `backbone`, and a head."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 1)


class Declared(nn.Module):
    """The same under another name, which it says; the part called backbone lies within."""

    backbone_prefixes = ("model.encoder.",)

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"encoder": Detector(), "head": nn.Linear(2, 1)})


@pytest.mark.parametrize(
    ("model", "prefixes"),
    [
        (Detector(), ("backbone.",)),
        (nn.DataParallel(Detector()), ("module.backbone.",)),
        (Declared(), ("model.encoder.",)),
        (Model(), ("encoder.",)),  # what knows its layers
        (Encoder(), ("",)),  # all of it
        (
            nn.ModuleDict({"student": Detector(), "teacher": Detector()}),
            ("student.backbone.", "teacher.backbone."),
        ),
        (nn.ModuleDict({"my_backbone": nn.Linear(1, 1)}), ()),
    ],
    ids=["stock", "wrapped", "declared", "layers", "alone", "two", "none"],
)
def test_the_backbone_is_found(model, prefixes):
    assert backbone_prefixes(model) == prefixes


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize("kind", [Detector, Declared])
def test_the_backbone_has_its_share_of_the_rate(kind, name):
    model = kind()
    model.requires_grad_(True)
    options = ("SOLVER.OPTIMIZER", name, "SOLVER.BACKBONE_MULTIPLIER", 0.1)
    optimizer = Trainer.build_optimizer(config(*options), model)
    found = rates(optimizer, model)
    assert len(found) == len(list(model.parameters())), "every parameter once"
    for parameter, rate in found.items():
        within = parameter.startswith(("backbone.", "model.encoder."))
        assert rate == pytest.approx(0.001 if within else 0.01), parameter
    assert all(group["params"] for group in optimizer.param_groups)


def test_layer_decay_and_the_backbone_s_rate_multiply():
    model = Model()
    options = ("SOLVER.LAYER_DECAY", 0.5, "SOLVER.BACKBONE_MULTIPLIER", 0.1)
    found = rates(build_adamw(config(*options), model), model)
    expected = {"encoder.stem": 1 / 80, "encoder.blocks.0": 1 / 40, "encoder.blocks.1": 1 / 20}
    expected |= {"encoder.norm": 1 / 10, "decoder": 1}
    for name, rate in found.items():
        assert rate == pytest.approx(0.01 * expected[name.rpartition(".")[0]]), name


@pytest.mark.parametrize(
    ("model", "factor", "message"),
    [
        (nn.Linear(2, 2), 0.1, "MULTIPLIER 0.1: no part of Linear is called or declared"),
        (Detector(), 0.0, "MULTIPLIER 0.0: is no factor"),
        (Detector(), -1.0, "MULTIPLIER -1.0: is no factor"),
    ],
)
def test_impossible_multipliers_are_refused(model, factor, message):
    with pytest.raises(DataError, match=message):
        build_adamw(config("SOLVER.BACKBONE_MULTIPLIER", factor), model)


def test_a_frozen_backbone_needs_no_rate():
    model = Detector()
    model.backbone.requires_grad_(False)
    (group,) = build_adamw(config("SOLVER.BACKBONE_MULTIPLIER", 0.1), model).param_groups
    assert (len(group["params"]), group["lr"]) == (2, 0.01)


# clipping of the whole gradient ----------------------------------------------------------------


def full_model(limit, *options):
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model")
    return config(*clip, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", limit, *options)


def pair(first, second):
    """Two parameters with these gradients; None for one without."""
    model = nn.ParameterDict({"a": torch.zeros(1), "b": torch.zeros(1)})
    for name, value in (("a", first), ("b", second)):
        model[name].grad = None if value is None else torch.tensor([value])
    return model


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize(
    ("gradients", "limit", "norm", "expected"),
    [
        ((3.0, 4.0), 1.0, 2.0, (0.6, 0.8)),  # of length 5; one by one it would be (1, 1)
        ((3.0, 4.0), 6.0, 2.0, (3.0, 4.0)),  # short enough
        ((3.0, 4.0), 0.7, 1.0, (0.3, 0.4)),  # sum of absolute values
        ((3.0, -4.0), 2.0, float("inf"), (1.5, -2.0)),
        ((3.0, None), 1.5, 2.0, (1.5, None)),  # not every parameter takes part in a step
        ((0.0, 0.0), 1.0, 2.0, (0.0, 0.0)),
    ],
)
def test_the_whole_gradient_is_scaled_by_one_factor(gradients, limit, norm, expected, name):
    cfg = full_model(limit, "SOLVER.CLIP_GRADIENTS.NORM_TYPE", norm, "SOLVER.OPTIMIZER", name)
    model = pair(*gradients)
    Trainer.build_optimizer(cfg, model).step()
    for key, value in zip("ab", expected):
        grad = model[key].grad
        assert (grad is None) if value is None else grad.item() == pytest.approx(value, rel=1e-5)


def test_a_step_of_sgd_has_the_clipped_length():
    """Also over several groups, whose rates differ."""
    model = Detector()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # nine ones: of length 3
    sgd = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0)
    cfg = full_model(0.3, *sgd, "SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.BACKBONE_MULTIPLIER", 0.5)
    Trainer.build_optimizer(cfg, model).step()
    for name, parameter in model.named_parameters():
        length = 0.01 * 0.1 * (0.5 if name.startswith("backbone") else 1)
        assert torch.allclose(before[name] - parameter, torch.tensor(length), rtol=1e-3), name


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_resumed_run_clips_on_bit_for_bit(name):
    cfg = full_model(0.05, "SOLVER.OPTIMIZER", name, "SOLVER.BACKBONE_MULTIPLIER", 0.1)

    def run(steps, saved=None):
        torch.manual_seed(0)
        model = Detector()
        optimizer = Trainer.build_optimizer(cfg, model)
        if saved is not None:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        for step in steps:
            optimizer.zero_grad()
            inputs = torch.full((1, 2), 1.0 + step)
            model.head(model.backbone(inputs)).square().sum().backward()
            optimizer.step()
        return model.state_dict(), optimizer.state_dict()

    whole, _ = run(range(6))
    parts, _ = run(range(3, 6), run(range(3)))
    for key, value in whole.items():
        assert torch.equal(parts[key], value), key


def test_an_unknown_way_of_clipping_is_refused():
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "whole")
    for name in ("AdamW", "SGD"):
        with pytest.raises(ValueError, match="whole"):
            Trainer.build_optimizer(config(*clip, "SOLVER.OPTIMIZER", name), nn.Linear(1, 1))


# the learning rate of a step ------------------------------------------------------------------


@given(st.floats(1e-8, 1e-2), st.integers(1, 10_000), st.floats(1e-6, 1.0), st.floats(0.0, 1.0))
def test_rate_is_per_sample_and_the_end_keeps_its_ratio(per_sample, samples, base, ratio):
    end = ("SOLVER.BASE_LR_END", base * ratio)
    cfg = config("SOLVER.BASE_LR", base, *end, "SOLVER.LR_PER_SAMPLE", per_sample)
    scaled = with_learning_rate(cfg, samples).SOLVER
    assert learning_rate(cfg, samples) == scaled.BASE_LR == per_sample * samples
    assert 0 <= scaled.BASE_LR_END <= scaled.BASE_LR  # what the schedules demand, rounding included
    assert pytest.approx(scaled.BASE_LR * ratio) == scaled.BASE_LR_END


def test_product_is_logged_once_and_doing_it_twice_changes_nothing(caplog):
    cfg = config("SOLVER.LR_PER_SAMPLE", 1.5e-6)
    with caplog.at_level(logging.INFO, logger="pseudolabel.optimizer"):
        scaled = with_learning_rate(cfg, 32, unit="crops")
    assert "lr 4.8e-05 = 1.5e-06 x 32 crops" in caplog.text
    assert cfg.SOLVER.BASE_LR == 0.01  # the run's own config is as it was
    assert with_learning_rate(scaled, 8) is scaled


def test_base_lr_counts_where_the_key_is_off():
    cfg = config()
    assert learning_rate(cfg, 32) == 0.01
    assert with_learning_rate(cfg, 32) is cfg


def test_it_serves_sgd_and_the_schedule_alike():
    from detectron2.solver import build_optimizer
    from detectron2.solver.build import build_lr_scheduler

    schedule = ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.002)
    length = ("SOLVER.MAX_ITER", 10, "SOLVER.WARMUP_ITERS", 0)
    cfg = config(*schedule, *length, "SOLVER.LR_PER_SAMPLE", 0.5)
    scaled = with_learning_rate(cfg, 4)
    for build in (build_optimizer, build_adamw):
        optimizer = build(scaled, nn.Linear(2, 2))
        scheduler = build_lr_scheduler(scaled, optimizer)
        seen = []
        for _ in range(11):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert seen[0] == pytest.approx(2.0)
        assert seen[-1] == pytest.approx(0.4, rel=0.1)  # .2 of it, as .002 of .01


@pytest.mark.parametrize(("per_sample", "samples"), [(-1e-6, 4), (1e-6, 0)])
def test_rates_that_are_none_are_refused(per_sample, samples):
    with pytest.raises(ValueError, match="no learning rate"):
        learning_rate(config("SOLVER.LR_PER_SAMPLE", per_sample), samples)


@pytest.mark.parametrize(
    ("base", "end"),
    [
        (4e-5, 5e-5),  # BASE_LR was lowered, in the belief that it is the learning rate
        (0.0, 0.0),
        (1e-3, -1e-4),
    ],
)
def test_an_end_that_is_no_part_of_the_rate_is_refused(base, end):
    cfg = config("SOLVER.BASE_LR", base, "SOLVER.BASE_LR_END", end, "SOLVER.LR_PER_SAMPLE", 1e-6)
    with pytest.raises(DataError, match=r"BASE_LR_END: .* change SOLVER\.LR_PER_SAMPLE"):
        with_learning_rate(cfg, 32)


@pytest.mark.parametrize(
    ("key", "value"),
    [("BIAS_LR_FACTOR", 2.0), ("WEIGHT_DECAY_NORM", 0.01), ("WEIGHT_DECAY_BIAS", 0.0)],
)
def test_keys_that_adamw_does_not_obey_are_refused_and_sgd_takes_them(key, value):
    options = (f"SOLVER.{key}", value, "SOLVER.WEIGHT_DECAY", 0.05)
    with pytest.raises(DataError, match=rf"SOLVER\.{key}: is {value}, .* or use 'SGD'"):
        Trainer.build_optimizer(config(*options, "SOLVER.OPTIMIZER", "AdamW"), nn.Linear(2, 2))
    Trainer.build_optimizer(config(*options, "SOLVER.OPTIMIZER", "SGD"), nn.Linear(2, 2))


def test_keys_that_ask_for_what_adamw_does_anyway_are_taken():
    options = ("SOLVER.WEIGHT_DECAY_NORM", 0.05, "SOLVER.WEIGHT_DECAY_BIAS", 0.05)
    cfg = config(*options, "SOLVER.WEIGHT_DECAY", 0.05, "SOLVER.OPTIMIZER", "AdamW")
    optimizer = Trainer.build_optimizer(cfg, nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05]
