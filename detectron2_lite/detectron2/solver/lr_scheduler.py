"""Learning rate as a multiplier of the base LR over the course of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.utils.env import not_in_lite
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "LRMultiplier",
    "LRScheduler",
    "WarmupCosineLR",
    "WarmupMultiStepLR",
    "WarmupParamScheduler",
]


class WarmupParamScheduler(CompositeParamScheduler):
    """A warm-up phase in front of another schedule.

    Args:
        scheduler: the schedule proper, a function of progress in [0, 1].
        warmup_factor: the warm-up starts at this multiple of ``scheduler(0)``.
        warmup_length: its share of training, in [0, 1].
        warmup_method: "linear", up to where the schedule continues, or "constant".
        rescale_interval: squeeze the whole schedule into what is left after the warm-up,
            instead of hiding its beginning behind it.

    Raises:
        ValueError: for an unknown method.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        first = scheduler(0.0)
        # Where the schedule takes over decides where a linear warm-up has to arrive.
        joint = first if rescale_interval else scheduler(warmup_length)
        start = warmup_factor * first
        if warmup_method == "linear":
            warmup: ParamScheduler = LinearParamScheduler(start, joint)
        elif warmup_method == "constant":
            warmup = ConstantParamScheduler(start)
        else:
            raise ValueError(
                f'SOLVER.WARMUP_METHOD must be "linear" or "constant": {warmup_method}'
            )
        lengths = [warmup_length, 1.0 - warmup_length]
        # "fixed": the warm-up replaces the schedule's beginning and does not push it back.
        rest = "rescaled" if rescale_interval else "fixed"
        super().__init__([warmup, scheduler], lengths, ["rescaled", rest])


class LRMultiplier(LRScheduler):
    """Sets each group's LR to its base LR times a function of progress; step once an iteration.

    Args:
        multiplier: called with ``iteration / max_iter``.
        max_iter: length of the whole training.
        last_iter: the last finished iteration, -1 for none.

    Raises:
        TypeError: when the multiplier is not a ParamScheduler.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: ParamScheduler,
        max_iter: int,
        last_iter: int = -1,
    ) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise TypeError(
                f"LRMultiplier needs an fvcore ParamScheduler, got {type(multiplier).__name__}"
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def get_lr(self) -> list[float]:
        """The LR of every group at the current iteration."""
        # The step after the last iteration asks for progress 1, which some schedules refuse; it
        # would fail a finished training before its last checkpoint is written.
        progress = min(self.last_epoch / self._max_iter, math.nextafter(1.0, 0.0))
        factor = self._multiplier(progress)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Counter and base LRs; the schedule itself comes from the config."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; the LRs themselves are part of the optimizer's state."""
        self.__dict__.update(state_dict)


def _replaced(name: str) -> None:
    not_in_lite(f"detectron2.solver.{name} (replaced by LRMultiplier with WarmupParamScheduler)")


class WarmupMultiStepLR(LRScheduler):
    """Not provided: deprecated upstream in favour of :class:`LRMultiplier`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _replaced("WarmupMultiStepLR")


class WarmupCosineLR(LRScheduler):
    """Not provided: deprecated upstream in favour of :class:`LRMultiplier`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _replaced("WarmupCosineLR")
