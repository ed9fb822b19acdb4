"""Exponential moving average of a student in a teacher module.

Policy, the same for every method: entries are matched by name, never by position; parameters are
averaged; buffers of every dtype are copied, since a running statistic is already an average and a
counter has no mean. A method that averages its statistics asks for it (`average_buffers`). The
teacher keeps its own dtype; keep it in float32, where steps of (1 - momentum) do not vanish.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

Pair = tuple[Tensor, Tensor]


@torch.no_grad()
def init_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Copy all parameters and buffers of the student and take the teacher out of training.

    Args:
        teacher: changed in place; its parameters get `requires_grad = False`.
        student: same names and shapes; may be wrapped for data parallelism.

    Raises:
        ValueError: names or shapes differ.
    """
    parameters, buffers = _pairs(teacher, student)
    _copy(parameters + buffers)
    unwrap(teacher).requires_grad_(False)


@torch.no_grad()
def update_ema(
    teacher: nn.Module, student: nn.Module, momentum: float, average_buffers: bool = False
) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, after an optimiser step.

    Args:
        teacher: changed in place.
        student: same names and shapes; may be wrapped for data parallelism.
        momentum: in [0, 1]; 0 copies, 1 keeps the teacher's parameters.
        average_buffers: average buffers of floats too; others are copied all the same.

    Raises:
        ValueError: names or shapes differ, or the momentum is out of range.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
    averaged, copied = _pairs(teacher, student)
    if average_buffers:
        averaged += [pair for pair in copied if pair[0].is_floating_point()]
        copied = [pair for pair in copied if not pair[0].is_floating_point()]
    if averaged:
        own = [pair[0] for pair in averaged]
        torch._foreach_lerp_(own, [other.to(ours) for ours, other in averaged], 1.0 - momentum)
    _copy(copied)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel or DataParallel, else the module itself."""
    while isinstance(module, DistributedDataParallel | DataParallel):
        module = module.module
    return module


def _copy(pairs: list[Pair]) -> None:
    if pairs:
        torch._foreach_copy_([own for own, _ in pairs], [other for _, other in pairs])


def _pairs(teacher: nn.Module, student: nn.Module) -> tuple[list[Pair], list[Pair]]:
    """Matching (teacher, student) parameters and buffers; both are checked before any is used."""
    modules = unwrap(teacher), unwrap(student)
    parameters = _match("parameters", *(dict(m.named_parameters()) for m in modules))
    return parameters, _match("buffers", *(dict(m.named_buffers()) for m in modules))


def _match(kind: str, own: dict[str, Tensor], other: dict[str, Tensor]) -> list[Pair]:
    wrong = sorted(own.keys() ^ other.keys()) or [
        f"{name} {tuple(own[name].shape)} / {tuple(other[name].shape)}"
        for name in own
        if own[name].shape != other[name].shape
    ]
    if wrong:
        raise ValueError(
            f"teacher and student differ in these {kind}: {', '.join(wrong)};"
            " build both from one config"
        )
    return [(own[name], other[name]) for name in own]
