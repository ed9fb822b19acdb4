"""Multiple-instance loss: rows and columns of a crop are bags, labelled by the box.

Legend: B batch, H, W map size.
"""

from __future__ import annotations

from torch import Tensor

from .dice import dice_loss, reduce_loss


def mil_loss(prob: Tensor, box_mask: Tensor, reduction: str = "mean") -> Tensor:
    """Dice between the projections of a mask and of its box (Lan et al. 2023).

    A row through the box holds at least one object pixel, a row beside it none; the row's maximum
    is its prediction. The same holds for columns. Gradient reaches the maximal pixels only.

    Args:
        prob: (B, H, W), values in [0, 1].
        box_mask: (B, H, W), the filled box; fractional at its edge after down-sampling.
        reduction: "none" gives (B,), "mean" and "sum" a scalar. The loss weight is the caller's.

    Returns:
        Row distance + column distance, each in [0, 1].
    """
    per_sample = sum(
        dice_loss(prob.max(dim=axis).values, box_mask.max(dim=axis).values, reduction="none")
        for axis in (1, 2)
    )
    return reduce_loss(per_sample, reduction)


def warmup(step: int, steps: int) -> float:
    """Loss weight factor: linear from 0 to 1 over `steps` global steps; no warm-up for 0."""
    return min(1.0, step / steps) if steps > 0 else 1.0
