"""Mean-field refinement: the colour-aware target of MAL's CRF loss (Lan et al. 2023).

Legend: B batch, H, W map size, K = kernel_size^2 neighbours in row-major order, centre included.
Nothing here has a gradient, and everything is float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6


@torch.no_grad()
def initial_state(student_prob: Tensor, teacher_prob: Tensor, box_mask: Tensor) -> Tensor:
    """Average of both predictions inside the box, (B, H, W); 0 outside, not yet clamped."""
    return box_mask.float() * (student_prob.float() + teacher_prob.float()) / 2.0


@torch.no_grad()
def mean_field_kernel(
    guidance: Tensor, zeta: float = 0.1, kernel_size: int = 3, omega: float = 1.0
) -> Tensor:
    """Colour similarity of every pixel to its neighbours.

    k_ij = omega * exp(-||I_i - I_j||^2 / (2 zeta^2)); 0 where j lies outside the map. There is no
    spatial term.

    Args:
        guidance: (B, 3, H, W), normalised RGB at map resolution.
        zeta: colour bandwidth, in units of the normalised image.
        kernel_size: odd side of the neighbourhood, in map pixels.
        omega: strength of the messages; scales every exponent of the update.

    Returns:
        (B, K, H, W), float32.

    Raises:
        ValueError: an even kernel size or a bandwidth of 0.
    """
    if kernel_size % 2 == 0 or kernel_size < 1 or zeta <= 0:
        raise ValueError(f"odd kernel_size and zeta > 0 required, got {kernel_size}, {zeta}")
    image = guidance.float()
    height, width = image.shape[-2:]
    padded = _pad(image, kernel_size, 0.0)
    inside = _pad(torch.ones_like(image[:1, :1]), kernel_size, 0.0)
    weights = [
        (neighbour - image).square().sum(dim=1).mul_(-0.5 / zeta**2).exp_() * valid[:, 0]
        for neighbour, valid in zip(
            _shifts(padded, kernel_size, height, width), _shifts(inside, kernel_size, height, width)
        )
    ]
    return torch.stack(weights, dim=1).mul_(omega)


@torch.no_grad()
def mean_field(
    initial: Tensor,
    box_mask: Tensor,
    kernel: Tensor,
    iterations: int = 100,
    low: float = 0.1,
    high: float = 0.9,
    hard: bool = True,
) -> Tensor:
    """Iterate foreground probabilities to a colour-consistent mask inside the box.

    One step, with q clamped to [low, high] before and after:
    fg_i = b_i prod_j q_j^k_ij, bg_i = prod_j (1 - q_j)^k_ij, q_i = fg_i / (fg_i + bg_i + 1e-6).
    The constant decides near ties for the background and is part of the definition, which rules
    out the shorter log-odds recursion. The products are evaluated as exp(sum k log q): the same
    numbers up to rounding, without a power per neighbour.

    Args:
        initial: (B, H, W), from `initial_state`.
        box_mask: (B, H, W), values in [0, 1]; pixels at 0 never become foreground.
        kernel: (B, K, H, W), from `mean_field_kernel`.
        iterations: number of parallel updates.
        low, high: bounds of q.
        hard: return the mask q > 0.5 instead of q.

    Returns:
        (B, H, W), float32; 0 and 1 if `hard`.
    """
    side = math.isqrt(kernel.shape[1])
    height, width = initial.shape[-2:]
    box, radius = box_mask.float(), side // 2
    q = initial.float().clamp(low, high)
    weights = kernel.float().unbind(dim=1)
    # both classes side by side; the border stays 0 = log 1, and its weights are 0 anyway
    logs = q.new_zeros(2, q.shape[0], height + 2 * radius, width + 2 * radius)
    centre = logs[..., radius : radius + height, radius : radius + width]
    total = torch.empty_like(centre)
    for _ in range(iterations):
        centre[0].copy_(q.log())
        centre[1].copy_((1.0 - q).log_())
        total.zero_()
        for weight, neighbour in zip(weights, _shifts(logs, side, height, width)):
            total.addcmul_(neighbour, weight)
        foreground, background = total.exp().unbind(0)
        foreground = foreground * box
        q = (foreground / (foreground + background + EPSILON)).clamp_(low, high)
    return (q > 0.5).float() if hard else q


def _pad(maps: Tensor, kernel_size: int, value: float) -> Tensor:
    return F.pad(maps, [kernel_size // 2] * 4, value=value)


def _shifts(padded: Tensor, kernel_size: int, height: int, width: int) -> Iterator[Tensor]:
    """Views of a padded map, one per neighbour, each (..., H, W)."""
    for row in range(kernel_size):
        for column in range(kernel_size):
            yield padded[..., row : row + height, column : column + width]
