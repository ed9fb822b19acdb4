"""Losses of training on human masks: the ceiling that training on boxes is compared with.

Legend: B crops, M map side.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .dice import dice_loss


def mask_losses(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Dice and binary cross-entropy, each of weight 1, over all pixels of the crop.

    Args:
        logits: (B, M, M).
        target: (B, M, M), values in [0, 1]; fractional at outlines after down-sampling.

    Returns:
        {"loss_dice", "loss_bce"}, float32; means over samples, and over pixels for the second. An
        empty batch gives 0.
    """
    logits, target = logits.float(), target.float()
    pixels = max(logits.numel(), 1)
    total = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return {"loss_dice": dice_loss(logits.sigmoid(), target), "loss_bce": total / pixels}
