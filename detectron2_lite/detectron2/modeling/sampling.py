"""Balanced random sampling of positive and negative examples."""

import torch

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw up to ``num_samples`` examples, at most ``positive_fraction`` of them positive.

    Missing positives are made up by negatives, never the other way round.

    Args:
        labels: (N,) integers; -1 is ignored, ``bg_label`` is negative, the rest is positive.

    Returns:
        Two (n,) int64 index tensors into ``labels``: the positives and the negatives drawn.
    """
    is_negative = labels == bg_label
    pools = ((labels != -1) & ~is_negative, is_negative)
    room = int(num_samples * positive_fraction)
    picked = []
    for pool in pools:
        index = pool.nonzero().flatten()
        order = torch.randperm(index.numel(), device=index.device)[:room]
        picked.append(index[order])
        room = num_samples - order.numel()
    return picked[0], picked[1]
