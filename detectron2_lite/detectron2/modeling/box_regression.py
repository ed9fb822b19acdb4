"""Boxes as offsets from reference boxes (R-CNN, appendix C), and the regression losses on them."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import cat, ciou_loss, diou_loss
from detectron2.structures import Boxes
from detectron2.utils.env import upstream_only
from torchvision.ops import generalized_box_iou_loss

__all__ = ["Box2BoxTransform"]
__getattr__ = upstream_only(__name__, ["Box2BoxTransformRotated", "Box2BoxTransformLinear"])

# A predicted side may grow at most to 1000 px from a 16 px reference before exp() is cut.
_DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)


def _center_size(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., 4) XYXY to centres (..., 2) and sizes (..., 2)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    return low + 0.5 * size, size


class Box2BoxTransform:
    """Offsets (dx, dy, dw, dh): centre shift in units of the source's size, log ratio of sizes."""

    def __init__(
        self,
        weights: tuple[float, float, float, float],
        scale_clamp: float = _DEFAULT_SCALE_CLAMP,
    ):
        """
        Args:
            weights: factors on (dx, dy, dw, dh), which bring them to about unit variance.
            scale_clamp: upper limit of dw and dh (after division by the weights).
        """
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Offsets (N, 4) that move ``src_boxes`` (N, 4) onto ``target_boxes`` (N, 4)."""
        for name, boxes in (("src_boxes", src_boxes), ("target_boxes", target_boxes)):
            assert isinstance(boxes, torch.Tensor), f"{name} is {type(boxes)}, not a tensor"
        center, size = _center_size(src_boxes)
        assert (size[..., 0] > 0).all(), "source boxes must have a positive width"
        goal_center, goal_size = _center_size(target_boxes)
        raw = torch.cat([(goal_center - center) / size, torch.log(goal_size / size)], dim=-1)
        return raw * raw.new_tensor(self.weights)

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Move ``boxes`` (N, 4) by ``deltas`` (N, 4k): k predictions for each; (N, 4k) float."""
        # Half precision cannot hold pixel coordinates, so deltas from AMP are widened first.
        raw = deltas.float().unflatten(1, (-1, 4))
        raw = raw / raw.new_tensor(self.weights)
        center, size = _center_size(boxes.to(raw.dtype).unsqueeze(1))
        center = center + raw[..., :2] * size
        half = 0.5 * size * raw[..., 2:].clamp(max=self.scale_clamp).exp()
        return torch.cat([center - half, center + half], dim=-1).reshape(deltas.shape)


def _dense_box_regression_loss(
    anchors: Sequence[Boxes | torch.Tensor],
    box2box_transform: Box2BoxTransform,
    pred_anchor_deltas: Sequence[torch.Tensor],
    gt_boxes: Sequence[torch.Tensor],
    fg_mask: torch.Tensor,
    box_reg_loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> torch.Tensor:
    """Sum of the regression loss over the foreground anchors of a batch.

    B images, R anchors over all levels.

    Args:
        anchors: one (R_i, 4) set per level, the same for every image.
        pred_anchor_deltas: one (B, R_i, 4) tensor per level.
        gt_boxes: B tensors (R, 4), the box wanted of each anchor (read on the foreground only).
        fg_mask: (B, R) bool.
        box_reg_loss_type: "smooth_l1" on the deltas; "giou", "diou", "ciou" on decoded boxes.
        smooth_l1_beta: where L2 turns to L1; 0 means L1.
    """
    image_index, anchor_index = fg_mask.nonzero(as_tuple=True)
    flat = cat([a.tensor if isinstance(a, Boxes) else a for a in anchors])
    source = flat[anchor_index]
    wanted = torch.stack(list(gt_boxes))[image_index, anchor_index]
    predicted = cat(list(pred_anchor_deltas), dim=1)[image_index, anchor_index]
    return box_loss_sum(
        box2box_transform, source, predicted, wanted, box_reg_loss_type, smooth_l1_beta
    )


def box_loss_sum(
    transform: Box2BoxTransform,
    source: torch.Tensor,
    deltas: torch.Tensor,
    wanted: torch.Tensor,
    loss_type: str,
    beta: float,
    reduction: str = "sum",
) -> torch.Tensor:
    """Regression loss between ``source`` moved by ``deltas`` and ``wanted``, all (N, 4)."""
    if loss_type == "smooth_l1":
        target = transform.get_deltas(source, wanted)
        return F.smooth_l1_loss(deltas, target, reduction=reduction, beta=beta)
    overlap_losses = {"giou": generalized_box_iou_loss, "diou": diou_loss, "ciou": ciou_loss}
    if loss_type not in overlap_losses:
        raise ValueError(f"Invalid dense box regression loss type {loss_type!r}")
    moved = transform.apply_deltas(deltas, source)
    return overlap_losses[loss_type](moved, wanted, reduction=reduction)
