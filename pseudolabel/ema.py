"""Exponential moving average of a student in a teacher module.

Policy, the same for every method: entries are matched by name, never by position; parameters are
averaged; buffers of every dtype are copied, since a running statistic is already an average and a
counter has no mean. The teacher keeps its own dtype; keep it in float32, where steps of
(1 - momentum) do not vanish.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


@torch.no_grad()
def init_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Copy all parameters and buffers of the student and take the teacher out of training.

    Args:
        teacher: changed in place; its parameters get `requires_grad = False`.
        student: same names and shapes; may be wrapped for data parallelism.

    Raises:
        ValueError: names or shapes differ.
    """
    for own, other in (*_pairs(teacher, student, "parameter"), *_pairs(teacher, student, "buffer")):
        own.copy_(other)
    unwrap(teacher).requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, after an optimiser step.

    Args:
        teacher: changed in place.
        student: same names and shapes; may be wrapped for data parallelism.
        momentum: in [0, 1]; 0 copies, 1 keeps the teacher's parameters.

    Raises:
        ValueError: names or shapes differ, or the momentum is out of range.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    pairs = _pairs(teacher, student, "parameter")
    if pairs:
        averages = [own for own, _ in pairs]
        values = [other.to(own.dtype) for own, other in pairs]
        torch._foreach_lerp_(averages, values, 1.0 - momentum)
    for own, other in _pairs(teacher, student, "buffer"):
        own.copy_(other)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel or DataParallel, else the module itself."""
    while isinstance(module, DistributedDataParallel | DataParallel):
        module = module.module
    return module


def _pairs(teacher: nn.Module, student: nn.Module, kind: str) -> list[tuple[Tensor, Tensor]]:
    """Matching (teacher, student) tensors of one kind, checked by name and shape."""
    own, other = (
        dict(module.named_parameters() if kind == "parameter" else module.named_buffers())
        for module in (unwrap(teacher), unwrap(student))
    )
    wrong = sorted(own.keys() ^ other.keys()) or [
        f"{name} {tuple(own[name].shape)} / {tuple(other[name].shape)}"
        for name in own
        if own[name].shape != other[name].shape
    ]
    if wrong:
        raise ValueError(
            f"teacher and student differ in these {kind}s: {', '.join(wrong)};"
            " build both from one config"
        )
    return [(own[name], other[name]) for name in own]
