"""Non-maximum suppression, as torchvision implements it."""

from __future__ import annotations

from torch import Tensor
from torchvision import ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Suppress within each group of boxes.

    Args:
        boxes: (N, 4) XYXY, any float type; compared in float32, half precision would merge
            the groups, which are kept apart by large offsets.
        scores: (N,).
        idxs: (N,) group of each box, such as its class or feature level.
        iou_threshold: a box is dropped when it overlaps a better one by more than this.

    Returns:
        (K,) int64 indices of the kept boxes, best first.
    """
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be (N, 4), got {tuple(boxes.shape)}")
    return ops.batched_nms(boxes.float(), scores.float(), idxs, iou_threshold)
