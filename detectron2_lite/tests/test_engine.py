"""Trainer loop, hooks, resume, DefaultTrainer on a generated data set."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.checkpoint import Checkpointer
from detectron2.config import get_cfg
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    default_argument_parser,
    hooks,
    launch,
)
from detectron2.utils.events import CommonMetricPrinter, JSONWriter
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import nn


class _Quadratic(nn.Module):
    """Loss = mean((w x)^2); `bad_at` makes the loss of that call NaN."""

    def __init__(self, bad_at: int | None = None):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.calls = 0
        self.bad_at = bad_at

    def forward(self, x):
        scale = math.nan if self.calls == self.bad_at else 1.0
        self.calls += 1
        return {"loss_a": self.fc(x).square().mean() * scale, "loss_b": x.sum() * 0 + 0.5}


class _Loader:
    """Endless batches that counts how often it was iterated."""

    def __init__(self):
        self.started = 0

    def __iter__(self):
        self.started += 1
        while True:
            yield torch.ones(2, 3)


def _trainer(**kwargs):
    model = _Quadratic(kwargs.pop("bad_at", None))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return SimpleTrainer(model, _Loader(), optimizer, **kwargs)


class _Log(HookBase):
    def __init__(self, calls):
        self.calls = calls

    def before_train(self):
        self.calls.append("before_train")

    def before_step(self):
        self.calls.append("before_step")

    def after_backward(self):
        self.calls.append("after_backward")

    def after_step(self):
        self.calls.append("after_step")

    def after_train(self):
        self.calls.append("after_train")


def test_hooks_are_called_in_order():
    calls, trainer = [], _trainer()
    trainer.register_hooks([None, _Log(calls)])
    trainer.train(0, 2)
    step = ["before_step", "after_backward", "after_step"]
    assert calls == ["before_train", *step, *step, "after_train"]
    assert trainer.iter == trainer.max_iter == 2


def test_after_train_runs_after_a_failure_and_iter_tells():
    calls, trainer = [], _trainer(bad_at=1)
    trainer.register_hooks([_Log(calls)])
    with pytest.raises(FloatingPointError):
        trainer.train(0, 3)
    assert calls[-1] == "after_train"
    assert trainer.iter == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_non_finite_loss_names_iteration_and_losses(asynchronous):
    trainer = _trainer(bad_at=2, async_write_metrics=asynchronous)
    with pytest.raises(FloatingPointError, match=r"iteration=2; loss_dict = .*'loss_b': 0\.5"):
        trainer.train(0, 4)


def test_weights_are_not_updated_by_a_non_finite_loss():
    trainer = _trainer(bad_at=0)
    before = trainer.model.fc.weight.detach().clone()
    with pytest.raises(FloatingPointError):
        trainer.train(0, 1)
    assert torch.equal(trainer.model.fc.weight, before)


def test_loader_is_iterated_lazily_and_can_be_reset():
    trainer = _trainer()
    first = trainer.data_loader
    assert first.started == 0  # a resumed run may still reposition its sampler
    trainer.train(0, 2)
    assert first.started == 1
    trainer.reset_data_loader(_Loader)
    assert trainer.data_loader is not first
    trainer.train(2, 3)
    assert trainer.data_loader.started == 1


@pytest.mark.parametrize("period", [1, 3])
def test_metrics_are_written_each_gather_period(period, tmp_path):
    trainer = _trainer(gather_metric_period=period)
    writer = JSONWriter(str(tmp_path / "metrics.json"), window_size=1)
    trainer.register_hooks([hooks.PeriodicWriter([writer], 1)])
    trainer.train(0, 6)
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = {row["iteration"]: row for row in rows if "loss_a" in row}
    assert sorted(losses) == list(range(period - 1, 6, period))
    row = losses[5]
    assert row["total_loss"] == pytest.approx(row["loss_a"] + 0.5)
    assert row["data_time"] >= 0


def test_single_loss_tensor_counts_as_total_loss():
    class Model(_Quadratic):
        def forward(self, x):
            return super().forward(x)["loss_a"]

    model = Model()
    trainer = SimpleTrainer(model, _Loader(), torch.optim.SGD(model.parameters(), 0.1))
    trainer.train(0, 1)
    assert trainer.storage.latest()["total_loss"][0] > 0


def test_resume_restores_iteration_lr_and_scheduler(tmp_path):
    model = _Quadratic()

    def build(lr):
        optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
        trainer = SimpleTrainer(model, _Loader(), optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        checkpointer = Checkpointer(model, str(tmp_path), trainer=trainer)
        return trainer, optimizer, scheduler, checkpointer

    trainer, optimizer, scheduler, checkpointer = build(0.1)
    trainer.register_hooks(
        [
            hooks.LRScheduler(scheduler=scheduler),
            hooks.PeriodicCheckpointer(checkpointer, 10),
        ]
    )
    trainer.train(0, 12)
    assert scheduler.last_epoch == 12
    buffer = optimizer.state_dict()["state"][0]["momentum_buffer"]

    trainer, optimizer, scheduler, checkpointer = build(999.0)  # this LR must not survive
    trainer.register_hooks([hooks.LRScheduler(scheduler=scheduler)])
    checkpointer.resume_or_load("does_not_exist.pth")
    assert trainer.iter == 11  # the last finished iteration
    assert scheduler.last_epoch == 12
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    assert torch.equal(optimizer.state_dict()["state"][0]["momentum_buffer"], buffer)


def test_state_of_an_unknown_hook_is_reported(caplog):
    trainer = _trainer()
    with caplog.at_level(logging.WARNING):
        TrainerBase.load_state_dict(trainer, {"iteration": 4, "hooks": {"Gone": {"a": 1}}})
    assert trainer.iter == 4
    assert "Gone" in caplog.text


def test_lr_hook_writes_the_rate_and_builds_a_multiplier():
    trainer = _trainer()
    trainer.register_hooks([hooks.LRScheduler(scheduler=ConstantParamScheduler(0.25))])
    trainer.train(0, 2)
    assert trainer.storage.latest()["lr"][0] == pytest.approx(0.025)


# (sizes and LRs of the groups, index of the representative one)
BEST_GROUP = [
    (((1, 0.1), (4, 0.2)), 1),  # the largest
    (((1, 0.1), (1, 0.2), (1, 0.2)), 1),  # all of size one: the commonest LR
]


@pytest.mark.parametrize(("groups", "expected"), BEST_GROUP)
def test_representative_parameter_group(groups, expected):
    optimizer = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.zeros(1)) for _ in range(size)], "lr": lr}
            for size, lr in groups
        ],
        lr=1.0,
    )
    assert hooks.LRScheduler.get_best_param_group_id(optimizer) == expected


# (period, iterations after which an evaluation ran, of 5)
EVAL = [(0, [5]), (2, [1, 3, 5]), (5, [5])]  # 5: after training, storage past the last one


@pytest.mark.parametrize(("period", "expected"), EVAL)
def test_eval_hook_period_and_flattening(period, expected):
    trainer, ran = _trainer(), []

    def evaluate():
        ran.append(trainer.iter)
        return {"bbox": {"AP": 10.0, "by_size": {"s": 1}}, "n": np.float64(3)}

    trainer.register_hooks([hooks.EvalHook(period, evaluate)])
    trainer.train(0, 5)
    assert ran == expected
    latest = {k: v[0] for k, v in trainer.storage.latest().items()}
    assert (latest["bbox/AP"], latest["bbox/by_size/s"], latest["n"]) == (10.0, 1.0, 3.0)


def test_eval_hook_refuses_what_is_no_number():
    trainer = _trainer()
    trainer.register_hooks([hooks.EvalHook(1, lambda: {"bbox": {"AP": "high"}})])
    with pytest.raises(ValueError, match="bbox/AP"):
        trainer.train(0, 2)


# (mode, metrics of three evaluations, best)
BEST = [("max", [1.0, 3.0, 2.0], 3.0), ("min", [2.0, math.nan, 5.0], 2.0)]


@pytest.mark.parametrize(("mode", "values", "best"), BEST)
def test_best_checkpointer(mode, values, best, tmp_path):
    trainer, left = _trainer(), iter(values)
    checkpointer = Checkpointer(trainer.model, str(tmp_path))
    keeper = hooks.BestCheckpointer(1, checkpointer, "m", mode)
    trainer.register_hooks([hooks.EvalHook(1, lambda: {"m": next(left)}), keeper])
    trainer.train(0, 3)
    assert keeper.best_metric == best
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["iteration"] == keeper.best_iter == values.index(best)


def test_writers_write_at_period_and_end(tmp_path):
    trainer = _trainer()
    path = tmp_path / "m.json"
    trainer.register_hooks(
        [
            hooks.IterationTimer(warmup_iter=1),
            hooks.EvalHook(0, lambda: {"x": 1.0}),
            hooks.PeriodicWriter([JSONWriter(str(path)), CommonMetricPrinter(5)], period=3),
        ]
    )
    trainer.train(0, 5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["iteration"] for row in rows} >= {2, 4}
    assert any(row.get("x") == 1.0 for row in rows)  # written by a hook after the last step
    assert "time" in rows[0]


def test_upstream_only_parts_say_so():
    with pytest.raises(NotImplementedError, match="upstream"):
        hooks.PreciseBN(1, None, None, 10)
    with pytest.raises(NotImplementedError, match="TorchProfiler"):
        _ = hooks.TorchProfiler


def test_amp_needs_cuda():
    if torch.cuda.is_available():
        pytest.skip("checks the refusal on a CPU")
    model = _Quadratic()
    with pytest.raises(RuntimeError, match=r"SOLVER\.AMP"):
        AMPTrainer(model, _Loader(), torch.optim.SGD(model.parameters(), 0.1))


def test_launch_of_one_process_returns_the_result():
    assert launch(lambda a, b: a + b, 1, args=(1, 2)) == 3


def test_launch_refuses_auto_url_for_several_machines():
    with pytest.raises(ValueError, match="auto"):
        launch(print, 1, num_machines=2, dist_url="auto")


def test_argument_parser():
    args = default_argument_parser().parse_args(
        ["--config-file", "a.yaml", "--eval-only", "SOLVER.MAX_ITER", "3"]
    )
    assert (args.config_file, args.eval_only, args.resume) == ("a.yaml", True, False)
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert args.opts == ["SOLVER.MAX_ITER", "3"]


def test_auto_scale_workers():
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 16, 0.1, 5000
    cfg.SOLVER.STEPS, cfg.SOLVER.REFERENCE_WORLD_SIZE = (1000,), 8
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg
    scaled = DefaultTrainer.auto_scale_workers(cfg, 16)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.MAX_ITER) == (32, 2500)
    assert pytest.approx(0.2) == scaled.SOLVER.BASE_LR
    assert tuple(scaled.SOLVER.STEPS) == (500,)
    assert cfg.SOLVER.MAX_ITER == 5000
    cfg.SOLVER.IMS_PER_BATCH = 15
    with pytest.raises((ValueError, AssertionError), match="REFERENCE_WORLD_SIZE"):
        DefaultTrainer.auto_scale_workers(cfg, 16)


def test_hooks_are_names_of_the_package():
    import detectron2.engine as package

    for name in package.hooks.__all__:
        assert getattr(package, name) is getattr(package.hooks, name)
