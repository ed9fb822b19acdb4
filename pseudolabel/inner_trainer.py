"""The optimizer step of every training; over several batches and in mixed precision if asked."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pseudolabel.ema import unwrap
from pseudolabel.loader import TrainLoader

NAMED = 3
"""Parameters that a message names."""


class InnerTrainer(SimpleTrainer):
    """Detectron2's training step, extended by accumulation, by autocast on any device and by a
    look at the gradients.

    The gradient of a step is the mean over its batches. Mixed precision is bfloat16 on a CPU,
    which needs no loss scaling, and float16 with Detectron2's dynamic scaling elsewhere; weights
    and optimizer stay in float32.

    Args:
        model: maps a batch to a dict of scalar losses, or to one loss.
        data_loader: endless batches; `accumulate` of them make a step.
        optimizer: of the model's parameters.
        accumulate: batches of a step.
        mixed_precision: run the model under autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        mixed_precision: bool = False,
    ):
        super().__init__(model, data_loader, optimizer)
        self.accumulate, self.mixed_precision = accumulate, mixed_precision
        self.device_type = next(model.parameters()).device.type
        self.precision = torch.bfloat16 if self.device_type == "cpu" else torch.float16
        scaled = mixed_precision and self.precision == torch.float16
        # Does nothing where it is not enabled.
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=scaled)
        self._batches = None
        wrapped = isinstance(model, DistributedDataParallel)
        if mixed_precision and self.device_type == "cpu" and not wrapped:
            # Convolutions in bfloat16 take about half the time in it. Wrapped, the layout of the
            # gradients is settled already.
            model.to(memory_format=torch.channels_last)

    def run_step(self) -> None:
        """One optimizer step.

        Raises:
            FloatingPointError: the mean of a loss, or a gradient, is not finite; the weights stay
                as they were.
        """
        if self._batches is None:
            # Not before: a resumed run moves its loader first.
            self._batches = iter(self.data_loader)
        self.optimizer.zero_grad()
        rows, waited = [], 0.0
        for index in range(self.accumulate):
            begin = time.perf_counter()
            batch = next(self._batches)
            waited += time.perf_counter() - begin
            with self._exchange_of_gradients(index == self.accumulate - 1):
                rows.append(self._backward(batch))
        self.after_backward()
        means = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
        self.write_metrics(means, waited, self.iter)
        self._check_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _backward(self, batch: list[dict]) -> dict[str, Tensor]:
        """Adds this batch's part to the gradients; the losses by name, float32."""
        with torch.autocast(self.device_type, self.precision, enabled=self.mixed_precision):
            losses = self.model(batch)
        losses = losses if isinstance(losses, Mapping) else {"total_loss": losses}
        total = sum(losses.values()) / self.accumulate
        self.scaler.scale(total).backward()
        return {name: loss.detach().float() for name, loss in losses.items()}

    def _check_gradients(self) -> None:
        """Stops a step that would ruin the weights, though every loss was finite.

        All processes have the same gradients, so all of them stop.

        Raises:
            FloatingPointError: naming parameters.
        """
        if self.scaler.is_enabled():
            # It leaves such a step out by itself and goes on with a smaller factor.
            return
        weights = [w for group in self.optimizer.param_groups for w in group["params"]]
        weights = [w for w in weights if w.grad is not None and w.grad.numel() > 0]
        if not weights:
            return
        # The largest entry of each overflows in no sum, and is NaN where there is one.
        largest = torch._foreach_norm([w.grad for w in weights], float("inf"))
        finite = torch.stack(largest).isfinite()
        if finite.all():
            return
        names = {id(weight): name for name, weight in unwrap(self.model).named_parameters()}
        wrong = [names.get(id(w), "?") for w, sound in zip(weights, finite.tolist()) if not sound]
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise FloatingPointError(
            f"The gradient is not finite at iteration={self.iter}, although the losses are; "
            f"{len(wrong)} of {len(weights)} parameters: {', '.join(wrong[:NAMED])}{more}"
        )

    def _exchange_of_gradients(self, due: bool) -> AbstractContextManager:
        """The processes average their gradients once per step, after the last batch."""
        if due or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def state_dict(self) -> dict[str, Any]:
        """Detectron2's, and the scaler's state under its name where it is in use."""
        state = super().state_dict()
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes `state_dict` back; a checkpoint without a scaler leaves it at its start."""
        super().load_state_dict(state_dict)
        if self.scaler.is_enabled() and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
