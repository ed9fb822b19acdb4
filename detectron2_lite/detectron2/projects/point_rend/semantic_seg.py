"""Which points of a semantic map are uncertain; PointRend's semantic head is upstream's."""

import torch
from detectron2.utils.env import upstream_only

__all__ = ["calculate_uncertainty"]

__getattr__ = upstream_only(__name__, ["PointRendSemSegHead"])


def calculate_uncertainty(sem_seg_logits: torch.Tensor) -> torch.Tensor:
    """How far the second class is behind: (B, K, ...) logits to (B, 1, ...), at most 0."""
    first, second = sem_seg_logits.topk(2, dim=1).values.unbind(dim=1)
    return (second - first).unsqueeze(1)
