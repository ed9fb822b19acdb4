"""The "poly" learning rate (DeepLab, Chen et al., TPAMI 2017, section 4.1) with a warm-up."""

import torch
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["WarmupPolyLR"]


def _warmup(method: str, share: float, start: float) -> float:
    """Factor of the warm-up at ``share`` in [0, 1) of its length."""
    if method == "constant":
        return start
    if method == "linear":
        return start + (1.0 - start) * share
    raise ValueError(f"Unknown warmup method: {method}; it must be linear or constant")


class WarmupPolyLR(LRScheduler):
    """base LR * (1 - iteration / max_iters) ** power, times the factor of the warm-up.

    Args:
        max_iters: length of the training, in iterations.
        warmup_factor: the warm-up starts at this multiple.
        warmup_iters: its length.
        warmup_method: "linear" or "constant".
        last_epoch: the last finished iteration, -1 for none.
        power: 1 is a straight line.
        constant_ending: after the warm-up, the least multiple of the base LR; 0 for none.

    Raises:
        ValueError: for an unknown method.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
        power: float = 0.9,
        constant_ending: float = 0.0,
    ) -> None:
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.power = power
        self.constant_ending = constant_ending
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The LR of every group at the current iteration."""
        # A step beyond the end must not fail a finished training.
        left = max(1.0 - self.last_epoch / self.max_iters, 0.0)
        factor = left**self.power
        if self.last_epoch < self.warmup_iters:
            share = self.last_epoch / self.warmup_iters
            factor *= _warmup(self.warmup_method, share, self.warmup_factor)
        else:
            factor = max(factor, self.constant_ending)
        return [base * factor for base in self.base_lrs]
