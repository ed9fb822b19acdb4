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
    unary: float = 0.0,
) -> Tensor:
    """Iterate foreground probabilities to a colour-consistent mask inside the box.

    One step, with q clamped to [low, high] before and after:
    fg_i = b_i prod_j q_j^k_ij, bg_i = prod_j (1 - q_j)^k_ij, q_i = fg_i / (fg_i + bg_i + 1e-6).
    With `unary` u, the start q0 speaks in every step: fg_i has the factor q0_i^u and bg_i
    (1 - q0_i)^u, the unary term of the paper's energy, which its code leaves out.
    The constant decides near ties for the background and is part of the definition, which rules
    out the shorter log-odds recursion. With 25 neighbours and more it outweighs both products: a
    region of one flat colour then erodes from its edge until it is background as a whole.

    Two rewritings make it fast without changing the result. The products are evaluated as
    exp(sum k log q), the same number up to rounding, without a power per neighbour. And a pixel
    with b = 0 and q = low stays at low for ever (fg = 0), so only the rectangle around all others
    is iterated, with low as its surroundings; on the CPU alone, where finding it costs no
    synchronisation.

    Args:
        initial: (B, H, W), from `initial_state`.
        box_mask: (B, H, W), values in [0, 1]; pixels at 0 never become foreground.
        kernel: (B, K, H, W), from `mean_field_kernel`; 0 towards neighbours outside the map.
        iterations: number of parallel updates.
        low, high: bounds of q, 0 < low <= high < 1.
        hard: return the mask q > 0.5 instead of q.
        unary: weight u >= 0 of the log of the clamped start.

    Returns:
        (B, H, W), float32; 0 and 1 if `hard`.

    Raises:
        ValueError: the bounds, a negative weight, or shapes that do not belong together.
    """
    side = math.isqrt(kernel.shape[1])
    batch, height, width = initial.shape
    if not 0 < low <= high < 1:
        raise ValueError(f"0 < low <= high < 1 required, got {low}, {high}")
    if unary < 0:
        raise ValueError(f"unary >= 0 required, got {unary}")
    if box_mask.shape != initial.shape or kernel.shape != (batch, side * side, height, width):
        raise ValueError(
            f"initial {tuple(initial.shape)}, box_mask {tuple(box_mask.shape)} and kernel"
            f" {tuple(kernel.shape)} do not belong together"
        )
    q, box, weights = initial.float().clamp(low, high), box_mask.float(), kernel.float()
    area = (slice(None), *_active_rectangle((box > 0) | (q > low)))
    weights = weights.transpose(0, 1)[(slice(None), *area)].contiguous()
    q[area] = _iterate(q[area], box[area], weights, side // 2, iterations, (low, high), unary)
    return (q > 0.5).float() if hard else q


def _iterate(
    q: Tensor,
    box: Tensor,
    weights: Tensor,
    radius: int,
    iterations: int,
    bounds: tuple[float, float],
    unary: float,
) -> Tensor:
    """All updates of (B, h, w) maps; weights (K, B, h, w). Around the maps, q is the low bound."""
    low, high = bounds
    side = 2 * radius + 1
    height, width = q.shape[-2:]
    pair = torch.stack([q, 1.0 - q])  # foreground, background
    surroundings = pair.new_tensor([low, 1.0 - low]).log()[:, None, None, None]
    logs = surroundings.repeat(1, len(q), height + 2 * radius, width + 2 * radius)
    centre = logs[..., radius : radius + height, radius : radius + width]
    neighbours = list(_shifts(logs, side, height, width))
    constant = unary * pair.log() if unary else None
    for _ in range(iterations):
        centre.copy_(pair.log_())
        torch.mul(neighbours[0], weights[0], out=pair)
        for neighbour, weight in zip(neighbours[1:], weights[1:]):
            pair.addcmul_(neighbour, weight)
        if constant is not None:
            pair += constant
        foreground, background = pair.exp_()
        foreground *= box
        background += foreground
        foreground /= background.add_(EPSILON)
        torch.sub(1.0, foreground.clamp_(low, high), out=background)
    return pair[0]


def _active_rectangle(active: Tensor) -> tuple[slice, slice]:
    """Rows and columns around all active pixels of a batch (B, H, W); everything on a GPU."""
    if active.device.type != "cpu":
        return slice(None), slice(None)
    spans = []
    for axis in ((0, 2), (0, 1)):
        hits = active.any(dim=axis).nonzero().flatten().tolist()
        spans.append(slice(hits[0], hits[-1] + 1) if hits else slice(0, 0))
    return spans[0], spans[1]


def _pad(maps: Tensor, kernel_size: int, value: float) -> Tensor:
    return F.pad(maps, [kernel_size // 2] * 4, value=value)


def _shifts(padded: Tensor, kernel_size: int, height: int, width: int) -> Iterator[Tensor]:
    """Views of a padded map, one per neighbour, each (..., H, W)."""
    for row in range(kernel_size):
        for column in range(kernel_size):
            yield padded[..., row : row + height, column : column + width]
