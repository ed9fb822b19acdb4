"""torch layers with the extra arguments and the empty-batch safety that detection needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "cat",
    "cross_entropy",
    "empty_input_loss_func_wrapper",
    "interpolate",
    "move_device_like",
    "nonzero_tuple",
    "shapes_to_tensor",
]

# torch's own versions have accepted empty batches since 1.x; the names stay for compatibility.
BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` followed by an optional norm and activation.

    Args:
        norm: a module applied to the output; its parameters are saved under `norm.`.
        activation: a callable applied last.
        Everything else goes to `nn.Conv2d`.
    """

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # Both run in forward, in this order; the norm is a module with parameters of its own.
        self.norm, self.activation = norm, activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        if self.training and x.numel() == 0 and isinstance(self.norm, nn.SyncBatchNorm):
            raise ValueError("SyncBatchNorm cannot be trained on an empty batch")
        for stage in (super().forward, self.norm, self.activation):
            x = x if stage is None else stage(x)
        return x


def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that returns a single tensor itself, without a copy."""
    if not isinstance(tensors, list | tuple):
        raise TypeError(f"cat needs a list or tuple, got {type(tensors).__name__}")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a mean-reduced `loss_func(input, target, ...)` give 0, not NaN, on an empty batch.

    The zero depends on `input`, so that every parameter still receives a gradient (DDP waits
    for all of them).
    """

    @wraps(loss_func)
    def guarded(input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any) -> Tensor:
        empty_mean = not target.numel() and reduction == "mean"
        kwargs["reduction"] = reduction
        return 0.0 * input.sum() if empty_mean else loss_func(input, target, **kwargs)

    return guarded


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Indices of the non-zero elements, one (K,) tensor per dimension (1 for a scalar)."""
    return torch.nonzero(x, as_tuple=True)


def move_device_like(src: Tensor, dst: Tensor) -> Tensor:
    """Return `src` on the device of `dst`."""
    return src.to(dst.device)


def shapes_to_tensor(x: list[int], device: torch.device | None = None) -> Tensor:
    """A list of sizes as an int64 tensor (N,)."""
    return torch.as_tensor(x, dtype=torch.int64, device=device)
