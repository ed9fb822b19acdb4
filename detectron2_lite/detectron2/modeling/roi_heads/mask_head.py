"""Mask branch (Mask R-CNN, section 3)."""

import itertools
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, cat
from detectron2.layers.weight_init import c2_msra_fill, normal_fill
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from fvcore.common.registry import Registry
from torch import nn

from .._absent import resolve
from .._conv import conv_norm as make_conv

__all__ = [
    "ROI_MASK_HEAD_REGISTRY",
    "BaseMaskRCNNHead",
    "MaskRCNNConvUpsampleHead",
    "build_mask_head",
    "mask_rcnn_inference",
    "mask_rcnn_loss",
]

ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
ROI_MASK_HEAD_REGISTRY.__doc__ = """
Modules built from ``(cfg, input_shape: ShapeSpec)`` that predict masks of pooled regions.
"""

# Shape legend. N regions of a batch, N_i of image i; K classes (1 if class-agnostic); m the side
# of a predicted mask.


def _own_channel(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(N, K, m, m) to the (N, m, m) channel of each region's class; K = 1 serves all classes."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(len(logits), device=logits.device), classes]


def _log_mask_stats(logits: torch.Tensor, truth: torch.Tensor) -> None:
    """Pixel accuracy and error rates of (N, m, m) logits against (N, m, m) bool."""
    wrong = (logits > 0) != truth
    positives = truth.sum().item()
    rates = {
        "accuracy": 1 - wrong.sum().item() / max(wrong.numel(), 1),
        "false_positive": (wrong & ~truth).sum().item() / max(truth.numel() - positives, 1),
        "false_negative": (wrong & truth).sum().item() / max(positives, 1),
    }
    for name, rate in rates.items():
        get_event_storage().put_scalar(f"mask_rcnn/{name}", rate)


def mask_rcnn_loss(
    pred_mask_logits: torch.Tensor, instances: list[Instances], vis_period: int = 0
) -> torch.Tensor:
    """Mean binary cross-entropy on the channel of the true class (Mask R-CNN, section 3).

    Args:
        pred_mask_logits: (N, K, m, m).
        instances: per image N_i foreground regions with "proposal_boxes", "gt_classes" and
            "gt_masks", in the order of the logits.
        vis_period: if positive, store prediction and target as images every so many iterations.

    Returns:
        A scalar; 0, with a gradient, where there is no region.
    """
    side = pred_mask_logits.shape[-1]
    assert pred_mask_logits.shape[-2] == side, "mask predictions must be square"
    filled = [x for x in instances if len(x) > 0]
    if not filled:
        return 0 * pred_mask_logits.sum()
    device = pred_mask_logits.device
    truth = cat(
        [x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, side).to(device) for x in filled]
    )
    logits = _own_channel(pred_mask_logits, cat([x.gt_classes for x in filled]).to(torch.int64))
    _log_mask_stats(logits, truth.to(torch.bool))
    storage = get_event_storage()
    if vis_period > 0 and not storage.iter % vis_period:
        pairs = torch.cat([logits.detach().sigmoid(), truth.to(logits.dtype)], dim=1)
        for index, pair in enumerate(pairs):
            storage.put_image(f"Left: mask prediction;   Right: mask GT ({index})", pair[None])
    return F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="mean")


def mask_rcnn_inference(pred_mask_logits: torch.Tensor, pred_instances: list[Instances]) -> None:
    """Set "pred_masks", (N_i, 1, m, m) probabilities of the predicted class, on every image.

    Args:
        pred_mask_logits: (N, K, m, m).
        pred_instances: per image N_i detections with "pred_classes"; changed in place.
    """
    classes = cat([x.pred_classes for x in pred_instances])
    soft = _own_channel(pred_mask_logits, classes).sigmoid().unsqueeze(1)
    for instances, masks in zip(pred_instances, soft.split([len(x) for x in pred_instances])):
        instances.pred_masks = masks


class BaseMaskRCNNHead(nn.Module, metaclass=ABCMeta):
    """Loss and inference of Mask R-CNN around whatever `layers` predicts."""

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0):
        super().__init__()
        self.loss_weight = loss_weight
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        return {"vis_period": cfg.VIS_PERIOD}

    def forward(self, x: torch.Tensor, instances: list[Instances]):
        """
        Args:
            x: (N, C, h, w) pooled regions.
            instances: in training as for `mask_rcnn_loss`, else as for `mask_rcnn_inference`.

        Returns:
            In training {"loss_mask": scalar}, else ``instances`` with "pred_masks".
        """
        logits = self.layers(x)
        if not self.training:
            mask_rcnn_inference(logits, instances)
            return instances
        loss = mask_rcnn_loss(logits, instances, self.vis_period)
        return {"loss_mask": loss * self.loss_weight}

    @abstractmethod
    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) pooled regions to (N, K, m, m) logits."""


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):
    """3x3 convolutions mask_fcn1, ..., a deconvolution that doubles the side, a 1x1 predictor."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm="",
        **kwargs,
    ):
        """
        Args:
            num_classes: K; 1 predicts one mask for all classes.
            conv_dims: channels of the convolutions, and at last of the deconvolution.
            conv_norm: normalisation of the convolutions, which then have no bias.
            kwargs: of `BaseMaskRCNNHead`.
        """
        assert len(conv_dims) > 0, "conv_dims needs at least the deconvolution's channels"
        super().__init__(**kwargs)
        *body, up = conv_dims
        widths = [input_shape.channels, *body]
        for number, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
            conv = make_conv(inputs, outputs, 3, conv_norm, activation=nn.ReLU())
            self.add_module(f"mask_fcn{number}", conv)
        self.deconv = ConvTranspose2d(widths[-1], up, 2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(up, num_classes, 1)
        *hidden, _, predictor = self.children()
        for layer in hidden:
            c2_msra_fill(layer)
        normal_fill(predictor, std=0.001)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        node = cfg.MODEL.ROI_MASK_HEAD
        return super().from_config(cfg, input_shape) | {
            "input_shape": input_shape,
            "num_classes": 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [node.CONV_DIM] * (node.NUM_CONV + 1),
            "conv_norm": node.NORM,
        }

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, h) to (N, K, 2h, 2h)."""
        return nn.Sequential.forward(self, x)


def build_mask_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """Build the head named by ``MODEL.ROI_MASK_HEAD.NAME``."""
    return resolve(ROI_MASK_HEAD_REGISTRY, cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)
