"""Box predictor with weighted class loss and an auxiliary branch for the IoU of its boxes.

Shape legend: R sampled regions of a batch, P of them positive, K classes, C box features.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from pais.daloss import weighted_class_loss
from pseudolabel.errors import DataError

# A sampled region with this field comes from an unlabelled image.
CLASS_WEIGHTS = "class_weights"

# Class logits (R, K + 1), deltas (R, 4K or 4), and quality logits (R,) where there is the branch.
Predictions = tuple[Tensor, ...]


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(P,) IoU of each box with its partner; both (P, 4) XYXY. Empty unions give 0."""
    low, high = torch.maximum(boxes, others), torch.minimum(boxes, others)
    overlap = (high[:, 2:] - low[:, :2]).clamp(min=0).prod(dim=1)
    areas = sum((b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=1) for b in (boxes, others))
    union = areas - overlap
    return torch.where(union > 0, overlap / union.clamp(min=1e-6), torch.zeros_like(union))


class WeightedOutputLayers(FastRCNNOutputLayers):
    """Stock box predictor, but for regions of unlabelled images, whose class loss is weighted.

    Args:
        input_shape: as of `FastRCNNOutputLayers`.
        iou_weight: weight of the branch's loss; None: no branch. It learns the IoU of the box that
            is decoded for a positive's true class, on labelled images alone, and nothing reads it:
            it is there for what it does to the features (`pais.md`, section 2).
        kwargs: of `FastRCNNOutputLayers`.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec | int, *, iou_weight: float | None = None, **kwargs):
        super().__init__(input_shape, **kwargs)
        self.iou_weight = iou_weight
        self.iou_score: nn.Linear | None = None
        if iou_weight is not None:
            self.iou_score = nn.Linear(self.cls_score.in_features, 1)
            nn.init.normal_(self.iou_score.weight, std=0.01)
            nn.init.zeros_(self.iou_score.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | int) -> dict:
        if cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
            raise DataError(
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True",
                "leaves no probability of background, by which PAIS weighs negatives",
                "set it False",
            )
        branch = cfg.MODEL.PAIS.BOX_IOU
        own = {"iou_weight": branch.WEIGHT if branch.ENABLED else None}
        return super().from_config(cfg, input_shape) | own

    def forward(self, x: Tensor) -> Predictions:
        """Box features (R, C, ...) to `Predictions`."""
        both = super().forward(x)
        if self.iou_score is None:
            return both
        return (*both, self.iou_score(x.flatten(1)).squeeze(1))

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Stock losses and "loss_box_iou", or weighted classes and no quality.

        Args:
            predictions: of `forward`.
            proposals: sampled regions, all with the field `class_weights` (R_i,) or none.
        """
        losses = super().losses(predictions[:2], proposals)
        if proposals and all(p.has(CLASS_WEIGHTS) for p in proposals):
            classes, weights = (
                torch.cat([p.get(name) for p in proposals])
                for name in ("gt_classes", CLASS_WEIGHTS)
            )
            loss = weighted_class_loss(predictions[0], classes, weights)
            losses["loss_cls"] = loss * self.loss_weight.get("loss_cls", 1.0)
        elif self.iou_score is not None:
            losses["loss_box_iou"] = self.iou_weight * self._iou_loss(predictions, proposals)
        return losses

    def _iou_loss(self, predictions: Predictions, proposals: list[Instances]) -> Tensor:
        """Mean BCE of the positives' quality with the IoU of their decoded boxes."""
        _, deltas, quality = predictions
        classes = torch.cat([p.gt_classes for p in proposals])
        rows = ((classes >= 0) & (classes < self.num_classes)).nonzero().squeeze(1)
        if len(rows) == 0:
            return quality.float().sum() * 0
        # Images without an object have no such field, and no positive either.
        source, truth = (
            torch.cat(
                [(p.get(name) if p.has(name) else p.proposal_boxes).tensor for p in proposals]
            )
            for name in ("proposal_boxes", "gt_boxes")
        )
        with torch.no_grad():
            own = deltas[rows].float()
            if own.shape[1] > 4:
                own = own.view(len(rows), self.num_classes, 4)
                own = own[torch.arange(len(rows), device=own.device), classes[rows]]
            boxes = self.box2box_transform.apply_deltas(own, source[rows])
            target = paired_iou(boxes, truth[rows])
        return F.binary_cross_entropy_with_logits(quality[rows].float(), target)

    def inference(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """As the stock predictor: the score is the class's alone."""
        return super().inference(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> list[Tensor]:
        """As the stock predictor."""
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)
