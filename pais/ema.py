"""The teacher's moving average: short-sighted at first, then ever slower."""

import torch
from torch import nn

from pseudolabel.ema import update_ema


def momentum_at(step: int, limit: float) -> float:
    """m = min(limit, 1 - 1 / (step + 1)): a copy at step 0, the plain mean of what has been since.

    Args:
        step: optimizer steps that have been made.
        limit: largest momentum, in [0, 1].
    """
    return min(limit, 1.0 - 1.0 / (step + 1))


@torch.no_grad()
def average_with_buffers(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum x teacher + (1 - momentum) x student, buffers of floats included.

    Integer buffers, such as counters, are copied. All are matched by name.

    Args:
        teacher: changed in place.
        student: same names and shapes.
        momentum: in [0, 1].

    Raises:
        ValueError: as of `pseudolabel.ema.update_ema`.
    """
    # The shared utility copies buffers; these are small (normalisation statistics).
    before = {
        name: buffer.clone()
        for name, buffer in teacher.named_buffers()
        if buffer.is_floating_point()
    }
    update_ema(teacher, student, momentum)
    for name, buffer in teacher.named_buffers():
        if name in before:
            buffer.copy_(before[name].lerp(buffer, 1.0 - momentum))
