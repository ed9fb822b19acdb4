"""Mask head that predicts how good its masks are.

Shape legend: N regions of a batch, N_i of image i, K classes, C channels, S side of the pooled
regions (14), M = 2S side of the masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from pais.daloss import weighted_mask_loss

# A positive region with this field comes from an unlabelled image.
MASK_WEIGHTS = "mask_weights"


def crop_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """(N,) IoU of masks inside their regions; what lies outside a region does not count.

    Args:
        predicted: (N, M, M) bool.
        target: (N, M, M), bool or soft in [0, 1].
    """
    ours, theirs = predicted.flatten(1).float(), target.flatten(1).float()
    overlap = (ours * theirs).sum(dim=1)
    return overlap / (ours.sum(dim=1) + theirs.sum(dim=1) - overlap + 1e-6)


@dataclass
class CroppedMasks:
    """Masks that have been cropped to their regions, (N_i, M, M), in place of whole ones."""

    tensor: Tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """The crops themselves; they were made for just these arguments."""
        if (len(boxes), mask_size) != (len(self.tensor), self.tensor.shape[-1]):
            raise ValueError(f"{tuple(self.tensor.shape)} are no crops of {len(boxes)} regions")
        return self.tensor


def crop_masks(instances: list[Instances], side: int) -> list[Instances]:
    """The regions, with every mask cropped once for all losses.

    Args:
        instances: per image N_i positives with "proposal_boxes" and, unless N_i = 0, "gt_masks".
        side: M.
    """
    cropped = []
    for regions in instances:
        each = Instances(regions.image_size, **regions.get_fields())
        if len(regions) > 0:
            boxes = regions.proposal_boxes.tensor
            masks = regions.gt_masks.crop_and_resize(boxes, side).to(boxes.device)
            each.remove("gt_masks")
            each.gt_masks = CroppedMasks(masks)
        cropped.append(each)
    return cropped


@ROI_MASK_HEAD_REGISTRY.register()
class MaskQualityHead(MaskRCNNConvUpsampleHead):
    """Stock mask head and a branch for the IoU of its masks, fed by its last convolution.

    The branch is class-agnostic, learns on labelled images alone, and its gradient goes into the
    shared convolutions. Unlike Mask Scoring R-CNN it does not look at the predicted mask.

    Args:
        input_shape: of a pooled region, with height and width.
        quality_dim: width of the hidden layer.
        quality_weight: of "loss_mask_iou".
        kwargs: of `MaskRCNNConvUpsampleHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        quality_dim: int = 1024,
        quality_weight: float = 0.25,
        **kwargs,
    ):
        super().__init__(input_shape, **kwargs)
        # What the stock head runs in a row, before the branch joins its children.
        names = [name for name, _ in self.named_children()]
        cut = names.index("deconv")
        self._shared, self._mask_layers = names[:cut], names[cut:]
        channels = self.deconv.in_channels
        # Initialised as PyTorch does by default, like the released code.
        self.quality = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * input_shape.height * input_shape.width, quality_dim),
            nn.ReLU(),
            nn.Linear(quality_dim, 1),
        )
        self.quality_weight = quality_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        branch = cfg.MODEL.PAIS.MASK_IOU
        own = {"quality_dim": branch.FC_DIM, "quality_weight": branch.WEIGHT}
        return super().from_config(cfg, input_shape) | own

    def features(self, x: Tensor) -> Tensor:
        """Pooled regions (N, C, S, S) after the convolutions, which mask and quality share."""
        return self._run(self._shared, x)

    def layers(self, x: Tensor) -> Tensor:
        """(N, C, S, S) to mask logits (N, K, M, M), as of the stock head."""
        return self._run(self._mask_layers, self.features(x))

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, else the detections with masks and qualities.

        Args:
            x: (N, C, S, S) pooled regions.
            instances: training: per image N_i positives, all with the field "mask_weights" (N_i,)
                where they come from unlabelled images; evaluation: N_i detections.

        Returns:
            {"loss_mask", "loss_mask_iou"}, {"loss_mask"} for weighted regions, or the detections
            with "pred_masks" (N_i, 1, M, M) and "pred_quality" (N_i,) in [0, 1], changed in place.
        """
        shared = self.features(x)
        logits = self._run(self._mask_layers, shared)
        if not self.training:
            mask_rcnn_inference(logits, instances)
            qualities = self.quality(shared).squeeze(1).float().sigmoid()
            for found, quality in zip(instances, qualities.split([len(i) for i in instances])):
                found.pred_quality = quality
            return instances
        regions = crop_masks(instances, logits.shape[-1])
        if instances and all(i.has(MASK_WEIGHTS) for i in instances):
            return {"loss_mask": self.loss_weight * _weighted_loss(logits, regions)}
        loss = mask_rcnn_loss(logits, regions, self.vis_period)
        quality = self.quality(shared).squeeze(1)
        quality_loss = self.quality_weight * _quality_loss(quality, logits.detach(), regions)
        return {"loss_mask": self.loss_weight * loss, "loss_mask_iou": quality_loss}

    def _run(self, names: list[str], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x


def _own_masks(logits: Tensor, regions: list[Instances]) -> tuple[Tensor, Tensor]:
    """Logits of each region's class, and its target; both (N, M, M), N > 0."""
    classes = torch.cat([r.gt_classes for r in regions])
    channel = torch.zeros_like(classes) if logits.shape[1] == 1 else classes
    target = torch.cat([r.gt_masks.tensor for r in regions if len(r) > 0])
    return logits[torch.arange(len(logits), device=logits.device), channel], target


def _weighted_loss(logits: Tensor, regions: list[Instances]) -> Tensor:
    if len(logits) == 0:
        return logits.float().sum() * 0
    weights = torch.cat([r.get(MASK_WEIGHTS) for r in regions])
    return weighted_mask_loss(*_own_masks(logits, regions), weights)


def _quality_loss(quality: Tensor, logits: Tensor, regions: list[Instances]) -> Tensor:
    """Mean BCE of quality logits (N,) with the IoU of the predicted masks."""
    if len(logits) == 0:
        return quality.float().sum() * 0
    own, target = _own_masks(logits, regions)
    return F.binary_cross_entropy_with_logits(quality.float(), crop_iou(own >= 0, target))
