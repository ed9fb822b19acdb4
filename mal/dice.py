"""Soft dice distance with squared denominators, shared by both losses of MAL.

Legend: B batch, ... any shape.
"""

from __future__ import annotations

from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def dice_loss(
    prob: Tensor, target: Tensor, smooth: float = 1e-3, reduction: str = "mean"
) -> Tensor:
    """1 - 2 sum(p t) / (sum(p^2) + sum(t^2) + 2 smooth), per sample.

    Computed in float32 whatever the input precision. The smoothing stands in the denominator
    only, so two empty masks are at distance 1.

    Args:
        prob: (B, ...), values in [0, 1].
        target: (B, ...), same shape, values in [0, 1].
        smooth: added to each of the two squared sums.
        reduction: "none" gives (B,), "mean" and "sum" a scalar; an empty batch gives 0.

    Raises:
        ValueError: the shapes differ, or the reduction is unknown.
    """
    if prob.shape != target.shape:
        raise ValueError(f"shapes differ: {tuple(prob.shape)} and {tuple(target.shape)}")
    p, t = prob.float().flatten(1), target.float().flatten(1)
    overlap = (p * t).sum(dim=1)
    mass = p.square().sum(dim=1) + t.square().sum(dim=1) + 2.0 * smooth
    return reduce_loss(1.0 - 2.0 * overlap / mass, reduction)


def reduce_loss(values: Tensor, reduction: str) -> Tensor:
    """Reduce per-sample losses (B,); the mean of an empty batch is 0 and keeps its gradient."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if reduction == "none":
        return values
    total = values.sum()
    return total / max(len(values), 1) if reduction == "mean" else total
