"""IoU losses between paired boxes, computed by torchvision.

Legend: N pairs. Boxes are XYXY in any one unit. Sources: DIoU and CIoU, Zheng et al.,
AAAI 2020 (arXiv:1911.08287), equations 7 and 10.
"""

from __future__ import annotations

from torch import Tensor
from torchvision import ops

__all__ = ["ciou_loss", "diou_loss"]


def diou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """1 - IoU + squared centre distance over squared diagonal of the enclosing box.

    Args:
        boxes1: (N, 4) predictions.
        boxes2: (N, 4) targets.
        reduction: "none", "mean" (0 for N = 0) or "sum".
        eps: guards the divisions.

    Returns:
        (N,) or a scalar.
    """
    return ops.distance_box_iou_loss(boxes1, boxes2, reduction=reduction, eps=eps)


def ciou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    """The DIoU loss plus a penalty on unequal aspect ratios; arguments as `diou_loss`."""
    return ops.complete_box_iou_loss(boxes1, boxes2, reduction=reduction, eps=eps)
