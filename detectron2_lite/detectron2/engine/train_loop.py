"""The training loop: hooks, a bare loop, and its single-optimizer implementations."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Callbacks around a trainer; ``self.trainer`` is set (weakly) on registration.

    One training run calls, in this order: ``before_train``, then for every iteration
    ``before_step``, ``after_backward`` (between backward pass and optimizer step), ``after_step``,
    and finally ``after_train``, which also runs when training failed. ``trainer.iter`` is the
    0-based iteration in progress; in ``after_train`` it equals ``trainer.max_iter`` only if
    every iteration succeeded.
    """

    trainer: TrainerBase = None

    def before_train(self) -> None:
        """Called before the first iteration."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called between backward pass and optimizer step, by the trainer that runs them."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def after_train(self) -> None:
        """Called after the last iteration, or after a failure."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this hook; an empty dict is not stored."""
        return {}


class TrainerBase:
    """A loop of ``run_step`` with hooks; knows neither model nor data.

    Attributes:
        iter: the current iteration; start_iter, max_iter: the half-open range of this run.
        storage: the :class:`EventStorage` that is open while training.
    """

    def __init__(self) -> None:
        self.iter = self.start_iter = self.max_iter = 0
        self.storage: EventStorage | None = None
        self._hooks: list[HookBase] = []

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Append hooks; None is skipped. They run in the order of registration."""
        given = [hook for hook in hooks if hook is not None]
        # Weak, or trainer and hooks would keep each other (and the GPU memory) alive.
        myself = weakref.proxy(self)
        for hook in given:
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook must derive from HookBase, got {type(hook).__name__}")
            hook.trainer = myself
        self._hooks.extend(given)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter .. max_iter - 1`` inside an event storage."""
        logger.info("Training from iteration %d to %d", start_iter, max_iter)
        self.start_iter, self.max_iter = start_iter, max_iter
        self.iter = start_iter
        with EventStorage(start_iter) as self.storage, contextlib.ExitStack() as at_the_end:
            at_the_end.callback(self.after_train)
            try:
                self._loop()
            except Exception:
                logger.exception("Training stopped at iteration %d", self.iter)
                raise

    def _loop(self) -> None:
        phases = (self.before_step, self.run_step, self.after_step)
        self.before_train()
        while self.iter < self.max_iter:
            for phase in phases:
                phase()
            self.iter += 1

    def _call_hooks(self, event: str) -> None:
        for hook in self._hooks:
            getattr(hook, event)()

    def before_train(self) -> None:
        """Run the hooks' ``before_train``."""
        self._call_hooks("before_train")

    def before_step(self) -> None:
        """Move the event storage to this iteration, then run the hooks."""
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_backward(self) -> None:
        """Run the hooks' ``after_backward``."""
        self._call_hooks("after_backward")

    def after_step(self) -> None:
        """Run the hooks' ``after_step``."""
        self._call_hooks("after_step")

    def after_train(self) -> None:
        """Move the event storage past the last iteration, then run the hooks."""
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def run_step(self) -> None:
        """One iteration; subclasses must define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define run_step()")

    def state_dict(self) -> dict[str, Any]:
        """``{"iteration": int, "hooks": {hook class name: state}}``."""
        states: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            # Two hooks of one class would need two names; the first one wins, as it is first asked.
            if state and type(hook).__qualname__ not in states:
                states[type(hook).__qualname__] = state
        out: dict[str, Any] = {"iteration": self.iter}
        if states:
            out["hooks"] = states
        return out

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; afterwards ``iter`` is the last *finished* iteration."""
        self.iter = state_dict["iteration"]
        by_name: dict[str, HookBase] = {}
        for hook in self._hooks:
            by_name.setdefault(type(hook).__qualname__, hook)
        saved = state_dict.get("hooks") or {}
        for name, state in saved.items():
            if name in by_name:
                by_name[name].load_state_dict(state)
            else:
                logger.warning("No hook named %s is registered; its saved state is ignored", name)


class SimpleTrainer(TrainerBase):
    """One model, one loader, one optimizer: forward, sum the losses, backward, step.

    The model maps a batch to a dict of scalar losses (or one loss). The loader's iterator is made
    at the first step, not here, so that a resumed run can first reposition its sampler.

    Args:
        gather_metric_period: losses are read back (a device sync) and checked to be finite
            every so many iterations.
        zero_grad_before_forward: clear gradients before the forward pass, which lowers the
            peak memory but leaves no gradients to look at during it.
        async_write_metrics: read losses back in a thread. A non-finite loss then raises
            one or more iterations late.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        self._data_loader_iter_obj: Iterator | None = None
        self._pool = ThreadPoolExecutor(max_workers=1) if async_write_metrics else None
        self._pending: list[Future] = []

    @property
    def _data_loader_iter(self) -> Iterator:
        running = self._data_loader_iter_obj
        if running is None:
            running = self._data_loader_iter_obj = iter(self.data_loader)
        return running

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Drop the loader (and its worker processes) before building the next one."""
        self.data_loader = self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        """One iteration in full precision.

        Raises:
            FloatingPointError: when the summed loss is not finite; the weights are not updated.
        """
        parts, waited = self._forward()
        total = sum(parts.values())
        self._clear_gradients(before_forward=False)
        total.backward()
        self.after_backward()
        self._record(parts, waited)
        self.optimizer.step()

    def _clear_gradients(self, before_forward: bool) -> None:
        """Clear them if this is the moment that `zero_grad_before_forward` asks for."""
        if before_forward == bool(self.zero_grad_before_forward):
            self.optimizer.zero_grad()

    def _forward(self) -> tuple[dict[str, torch.Tensor], float]:
        """Next batch through the model: losses by name, and the seconds spent waiting for data."""
        assert self.model.training, f"{type(self).__name__}: the model was left in eval mode"
        clock = time.perf_counter()
        batch = next(self._data_loader_iter)
        waited = time.perf_counter() - clock
        self._clear_gradients(before_forward=True)
        losses = self._compute_losses(batch)
        named = losses if isinstance(losses, Mapping) else {"total_loss": losses}
        return named, waited

    def _compute_losses(self, batch: Any) -> dict[str, torch.Tensor] | torch.Tensor:
        return self.model(batch)

    def after_train(self) -> None:
        """Wait for metrics still being written, then run the hooks."""
        try:
            if self._pool is not None:
                self._pool.shutdown(wait=True)
                self._collect(wait=True)
        finally:
            super().after_train()

    def _collect(self, wait: bool = False) -> None:
        """Raise what a background write raised, so that a NaN loss is not swallowed."""
        done = [f for f in self._pending if wait or f.done()]
        self._pending = [f for f in self._pending if f not in done]
        for future in done:
            future.result()

    def _record(self, loss_dict: Mapping[str, torch.Tensor], data_time: float) -> None:
        if self._pool is None:
            self._write_metrics(loss_dict, data_time)
            return
        self._collect()
        held = {name: loss.detach() for name, loss in loss_dict.items()}
        self._pending.append(
            self._pool.submit(self._write_metrics, held, data_time, iter=self.iter)
        )

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        cur_iter = self.iter if iter is None else iter
        if (cur_iter + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(loss_dict, data_time, cur_iter, prefix)

    @staticmethod
    def write_metrics(
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        cur_iter: int,
        prefix: str = "",
    ) -> None:
        """Average losses over the ranks and put them into the event storage of rank 0.

        Args:
            loss_dict: scalar losses by name. data_time: seconds; the slowest rank's is kept.
            cur_iter: the iteration they belong to. prefix: goes before ``total_loss``.

        Raises:
            FloatingPointError: naming the iteration and all losses, when their sum is not finite.
        """
        row = {name: float(loss.detach()) for name, loss in loss_dict.items()}
        ranks = comm.gather({**row, "data_time": data_time})
        if not comm.is_main_process():
            return
        mean = {name: sum(r[name] for r in ranks) / len(ranks) for name in row}
        total = sum(mean.values())
        if not math.isfinite(total):
            raise FloatingPointError(
                f"The loss is not finite at iteration={cur_iter}; loss_dict = {mean}"
            )
        storage = get_event_storage()
        storage.put_scalar("data_time", max(r["data_time"] for r in ranks), cur_iter=cur_iter)
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(mean) >= 2:
            storage.put_scalars(**mean, cur_iter=cur_iter)

    def state_dict(self) -> dict[str, Any]:
        """Adds the optimizer to the base state."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore iteration, hooks and optimizer."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        super().load_state_dict(state_dict)


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with mixed precision on CUDA.

    Args:
        grad_scaler: None makes one. precision: autocast dtype.
        log_grad_scaler: write the scale as the scalar ``[metric]grad_scaler``.

    Raises:
        RuntimeError: when there is no CUDA device, or the model is not on one.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            devices = model.device_ids
            if devices is not None and len(devices) > 1:
                raise RuntimeError("AMPTrainer needs one device per process")
        if not torch.cuda.is_available() or next(model.parameters()).device.type != "cuda":
            raise RuntimeError("AMPTrainer needs CUDA: set SOLVER.AMP.ENABLED False on a CPU")
        super().__init__(
            model,
            data_loader,
            optimizer,
            gather_metric_period,
            zero_grad_before_forward,
            async_write_metrics,
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def _compute_losses(self, batch: Any) -> dict[str, torch.Tensor] | torch.Tensor:
        with torch.autocast("cuda", dtype=self.precision):
            return self.model(batch)

    def run_step(self) -> None:
        """One iteration under autocast; the scaler skips steps whose gradients overflowed."""
        scaler = self.grad_scaler
        parts, waited = self._forward()
        with torch.autocast("cuda", dtype=self.precision):
            total = sum(parts.values())
        self._clear_gradients(before_forward=False)
        scaler.scale(total).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", scaler.get_scale())
        self.after_backward()
        self._record(parts, waited)
        scaler.step(self.optimizer)
        scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Adds the scaler, when it is in use."""
        scaler, state = self.grad_scaler, super().state_dict()
        return {**state, "grad_scaler": scaler.state_dict()} if scaler.is_enabled() else state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore, including the scaler when one was saved."""
        super().load_state_dict(state_dict)
        saved = state_dict.get("grad_scaler")
        if saved is not None and self.grad_scaler.is_enabled():
            self.grad_scaler.load_state_dict(saved)
