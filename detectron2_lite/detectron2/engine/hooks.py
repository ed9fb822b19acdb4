"""The stock hooks: timing, learning rate, checkpoints, evaluation, writers."""

from __future__ import annotations

import datetime
import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.env import not_in_lite
from detectron2.utils.events import EventWriter
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer

from .train_loop import HookBase

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
]

logger = logging.getLogger(__name__)

_UPSTREAM_ONLY = ("AutogradProfiler", "TorchMemoryStats", "TorchProfiler")


def __getattr__(name: str) -> Any:
    if name in _UPSTREAM_ONLY:
        not_in_lite(f"detectron2.engine.hooks.{name}")
    raise AttributeError(f"module {__name__} has no attribute {name}")


class CallbackHook(HookBase):
    """A hook from functions, each called with the trainer; released after training."""

    def __init__(
        self,
        *,
        before_train: Callable[[Any], None] | None = None,
        after_train: Callable[[Any], None] | None = None,
        before_step: Callable[[Any], None] | None = None,
        after_step: Callable[[Any], None] | None = None,
    ) -> None:
        self._functions = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, event: str) -> None:
        function = self._functions.get(event)
        if function is not None:
            function(self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def after_train(self) -> None:
        self._call("after_train")
        # The functions may close over the trainer: let them go, or neither is ever freed.
        self._functions = {}

    def before_step(self) -> None:
        self._call("before_step")

    def after_step(self) -> None:
        self._call("after_step")


class IterationTimer(HookBase):
    """Writes the scalar ``time`` (seconds per iteration) and logs a summary at the end.

    Args:
        warmup_iter: so many first iterations are left out of all times. Time spent in the other
            hooks counts for the total only, so this hook should come first.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._step_timer, self._total_timer = Timer(), Timer()
        self._start_time = 0.0
        self._warmup_iter = warmup_iter

    def _restart(self) -> None:
        """Count nothing of what has been; the total stands still until the next step."""
        self._total_timer = Timer()
        self._total_timer.pause()
        self._start_time = time.perf_counter()

    def before_train(self) -> None:
        self._restart()

    def before_step(self) -> None:
        self._total_timer.resume()
        self._step_timer.reset()

    def _finished(self) -> int:
        """Iterations of this run, the present one included."""
        trainer = self.trainer
        return trainer.storage.iter - trainer.start_iter + 1

    def after_step(self) -> None:
        if self._finished() < self._warmup_iter:
            self._restart()
            return
        self._total_timer.pause()
        self.trainer.storage.put_scalars(time=self._step_timer.seconds())

    def after_train(self) -> None:
        total = time.perf_counter() - self._start_time
        stepping = self._total_timer.seconds()
        timed = self._finished() - self._warmup_iter
        if timed > 0 and stepping > 0:
            logger.info(
                "%d iterations in %s (%.4f s / it)",
                timed,
                datetime.timedelta(seconds=int(stepping)),
                stepping / timed,
            )
        logger.info(
            "Total training time: %s (%s in hooks)",
            datetime.timedelta(seconds=int(total)),
            datetime.timedelta(seconds=int(max(total - stepping, 0))),
        )


class PeriodicWriter(HookBase):
    """Lets event writers write every ``period`` iterations, and after the last one."""

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"not an EventWriter: {type(writer).__name__}")
        self._writers = list(writers)
        self._period = period

    def _write(self) -> None:
        for each in self._writers:
            each.write()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._write()

    def after_train(self) -> None:
        # Hooks that ran after the last step, such as an evaluation, left scalars behind.
        self._write()
        for each in self._writers:
            each.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's ``PeriodicCheckpointer(checkpointer, period, ...)`` as a hook.

    Must come after every hook whose state it is to save.
    """

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


def _due_within(trainer: Any, period: int) -> bool:
    """Whether a period ends with this iteration, and it is not the last (`after_train` is that)."""
    finished = 1 + trainer.iter
    return period > 0 and not finished % period and finished != trainer.max_iter


def _ran_to_the_end(trainer: Any) -> bool:
    """Whether training was not broken off: in `after_train`, a failed run has a smaller `iter`."""
    return trainer.iter >= trainer.max_iter - 1


class BestCheckpointer(HookBase):
    """Saves ``<file_prefix>.pth`` whenever a metric reaches a new best; goes after EvalHook.

    Args:
        eval_period: the EvalHook's period. val_metric: name of the scalar, e.g. "segm/AP".
        mode: "max" or "min". Values that are not finite are never the best.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min", got {mode!r}')
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        name, written = self._val_metric, self.trainer.storage.latest()
        if name not in written:
            logger.warning("The metric %s was not written; BestCheckpointer saves nothing", name)
            return
        value, iteration = written[name]
        if not math.isfinite(value):
            return
        if self.best_metric is not None and not self._better(value, self.best_metric):
            return
        self.best_metric, self.best_iter = value, iteration
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        logger.info("Best %s so far: %.5f at iteration %d", name, value, iteration)

    def after_step(self) -> None:
        if _due_within(self.trainer, self._period):
            self._check()

    def after_train(self) -> None:
        if _ran_to_the_end(self.trainer):
            self._check()


class LRScheduler(HookBase):
    """Steps a torch scheduler each iteration and writes the scalar ``lr``.

    Args:
        optimizer: None takes ``trainer.optimizer``.
        scheduler: a torch scheduler, or an fvcore ParamScheduler (a multiplier of the base
            LR); None takes ``trainer.scheduler``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | ParamScheduler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._group = 0

    @property
    def scheduler(self) -> torch.optim.lr_scheduler.LRScheduler:
        """The scheduler in use."""
        return self.trainer.scheduler if self._scheduler is None else self._scheduler

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Index of the group whose LR stands for all: the largest, or of the commonest LR."""
        groups = optimizer.param_groups
        count, lowest = max((len(group["params"]), -i) for i, group in enumerate(groups))
        if count > 1:
            return -lowest
        # One parameter per group says nothing about importance; the usual LR does.
        rates = list(map(operator.itemgetter("lr"), groups))
        return rates.index(Counter(rates).most_common(1)[0][0])

    def before_train(self) -> None:
        trainer = self.trainer
        self._optimizer = trainer.optimizer if self._optimizer is None else self._optimizer
        curve = self.scheduler
        if isinstance(curve, ParamScheduler):
            before = trainer.iter - 1
            self._scheduler = LRMultiplier(self._optimizer, curve, trainer.max_iter, before)
        self._group = self.get_best_param_group_id(self._optimizer)

    def after_step(self) -> None:
        group = self._optimizer.param_groups[self._group]
        self.trainer.storage.put_scalars(lr=group["lr"], smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The torch scheduler's state; a bare ParamScheduler has none."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            return self.scheduler.state_dict()
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the torch scheduler's counters."""
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            logger.info("The learning rate schedule goes on from the checkpoint")
            counters = dict(state_dict)
            self.scheduler.load_state_dict(counters)


class EvalHook(HookBase):
    """Runs an evaluation every ``eval_period`` iterations and after the last one.

    Args:
        eval_period: 0 evaluates only after training.
        eval_function: returns None or a nested dict of numbers, written as "bbox/AP" and so on.
            It runs on every rank.
        eval_after_train: whether to evaluate at the end.

    Raises:
        ValueError: when a result is not a number.
    """

    def __init__(
        self,
        eval_period: int,
        eval_function: Callable[[], Mapping[str, Any] | None],
        eval_after_train: bool = True,
    ) -> None:
        self._period = eval_period
        self._func: Callable[[], Mapping[str, Any] | None] | None = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            if not isinstance(results, Mapping):
                raise TypeError(f"an eval function must return a dict, got {results!r}")
            scalars = {}
            for name, value in flatten_results_dict(results).items():
                try:
                    scalars[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"the evaluation result {name} = {value!r} is not a number"
                    ) from error
            self.trainer.storage.put_scalars(**scalars, smoothing_hint=False)
        # Ranks differ in how long they evaluate; apart, the next all-reduce could time out.
        comm.synchronize()

    def after_step(self) -> None:
        if _due_within(self.trainer, self._period):
            self._do_eval()

    def after_train(self) -> None:
        if _ran_to_the_end(self.trainer) and self._eval_after_train:
            self._do_eval()
        # Usually a closure over the trainer: released so that both can be freed.
        self._func = None


class PreciseBN(HookBase):
    """Not provided: recomputing batch-norm statistics needs upstream Detectron2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        not_in_lite("detectron2.engine.hooks.PreciseBN (TEST.PRECISE_BN.ENABLED)")
