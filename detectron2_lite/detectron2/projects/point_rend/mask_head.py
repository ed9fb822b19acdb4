"""Which points of an instance mask are uncertain; PointRend's mask heads are upstream's."""

import torch
from detectron2.utils.env import upstream_only

__all__ = ["calculate_uncertainty"]

__getattr__ = upstream_only(__name__, ["ImplicitPointRendMaskHead", "PointRendMaskHead"])


def calculate_uncertainty(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Nearness of the logit of each mask's class to 0, where the outline runs.

    Args:
        logits: (R, K, ...), or (R, 1, ...) if class-agnostic.
        classes: (R,) in [0, K).

    Returns:
        (R, 1, ...), at most 0.
    """
    if logits.shape[1] > 1:
        rows = torch.arange(len(logits), device=logits.device)
        logits = logits[rows, classes].unsqueeze(1)
    return logits.abs().neg()
