"""Region proposal network (Faster R-CNN, section 3.1; on a pyramid: FPN, section 4.1)."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.layers.weight_init import normal_fill
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from fvcore.common.registry import Registry
from torch import nn

from .._absent import resolve
from .._conv import conv_norm
from ..anchor_generator import build_anchor_generator
from ..box_regression import Box2BoxTransform, _dense_box_regression_loss
from ..matcher import Matcher
from ..sampling import subsample_labels
from .build import PROPOSAL_GENERATOR_REGISTRY
from .proposal_utils import find_top_rpn_proposals

__all__ = ["RPN", "RPN_HEAD_REGISTRY", "StandardRPNHead", "build_rpn_head"]

RPN_HEAD_REGISTRY = Registry("RPN_HEAD")
RPN_HEAD_REGISTRY.__doc__ = """
Modules built from ``(cfg, input_shape: list of ShapeSpec)``; called with one feature map per
level, they return the objectness logits and the anchor deltas of each level.
"""

# Shape legend. B images; level l has H_l x W_l cells with A anchors each, R_l = H_l * W_l * A of
# them; R is the sum of R_l over the levels.


def build_rpn_head(cfg, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the head named by ``MODEL.RPN.HEAD_NAME``."""
    return resolve(RPN_HEAD_REGISTRY, cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


@RPN_HEAD_REGISTRY.register()
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then one 1x1 for objectness and one for deltas, shared by all levels."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        box_dim: int = 4,
        conv_dims: Sequence[int] = (-1,),
    ):
        """
        Args:
            num_anchors: A.
            conv_dims: channels of each 3x3 convolution; -1 keeps the number of channels.
        """
        super().__init__()
        width, hidden = in_channels, []
        for dim in conv_dims:
            wanted = width if dim == -1 else dim
            if wanted <= 0:
                raise ValueError(f"conv_dims must be -1 or positive, got {list(conv_dims)}")
            hidden.append(conv_norm(width, wanted, 3, norm="", activation=nn.ReLU()))
            width = wanted
        # Checkpoints call a single one "conv", several "conv.conv0", ...
        named = OrderedDict((f"conv{number}", layer) for number, layer in enumerate(hidden))
        self.conv = hidden[0] if len(hidden) == 1 else nn.Sequential(named)
        self.objectness_logits = nn.Conv2d(width, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(width, num_anchors * box_dim, 1)
        for layer in (*hidden, self.objectness_logits, self.anchor_deltas):
            normal_fill(layer, std=0.01)

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]) -> dict:
        widths = {shape.channels for shape in input_shape}
        assert len(widths) == 1, f"all levels must have the same channels, got {widths}"
        anchors = build_anchor_generator(cfg, input_shape)
        counts = set(anchors.num_anchors)
        assert len(counts) == 1, f"all levels must have the same number of anchors, got {counts}"
        return {
            "in_channels": widths.pop(),
            "num_anchors": counts.pop(),
            "box_dim": anchors.box_dim,
            "conv_dims": cfg.MODEL.RPN.CONV_DIMS,
        }

    def forward(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Per level (B, C, H_l, W_l) to (B, A, H_l, W_l) logits and (B, 4A, H_l, W_l) deltas."""
        hidden = [self.conv(feature) for feature in features]
        logits = [self.objectness_logits(h) for h in hidden]
        return logits, [self.anchor_deltas(h) for h in hidden]


def _per_anchor(output: torch.Tensor, numbers: int) -> torch.Tensor:
    """The head's (B, A * numbers, H_l, W_l) as (B, R_l, numbers), in the order of the anchors."""
    return output.movedim(1, -1).unflatten(-1, (-1, numbers)).flatten(1, 3)


@PROPOSAL_GENERATOR_REGISTRY.register()
class RPN(nn.Module):
    """Class-free detector whose boxes are the proposals of the second stage."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ):
        """
        Args:
            in_features: names of the feature maps, fine to coarse.
            batch_size_per_image, positive_fraction: anchors sampled for the losses.
            pre_nms_topk, post_nms_topk: (training, inference); see `find_top_rpn_proposals`.
            min_box_size: smallest side of a proposal, in pixels.
            anchor_boundary_thresh: if >= 0, anchors that leave the image by more are ignored.
            loss_weight: one for both losses or by name, "loss_rpn_cls" and "loss_rpn_loc".
        """
        super().__init__()
        self.rpn_head, self.in_features = head, in_features
        self.anchor_generator, self.box2box_transform = anchor_generator, box2box_transform
        # Targets
        self.anchor_matcher, self.anchor_boundary_thresh = anchor_matcher, anchor_boundary_thresh
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        # Proposals; the two counts are keyed by self.training
        modes = (True, False)
        self.min_box_size, self.nms_thresh = float(min_box_size), nms_thresh
        self.pre_nms_topk, self.post_nms_topk = (
            dict(zip(modes, counts)) for counts in (pre_nms_topk, post_nms_topk)
        )
        if not isinstance(loss_weight, dict):
            loss_weight = dict.fromkeys(("loss_rpn_cls", "loss_rpn_loc"), loss_weight)
        self.loss_weight = loss_weight
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        rpn = cfg.MODEL.RPN
        shapes = [input_shape[name] for name in rpn.IN_FEATURES]
        weight, box_weight = rpn.LOSS_WEIGHT, rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT
        return {
            "in_features": rpn.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "head": build_rpn_head(cfg, shapes),
            "anchor_matcher": Matcher(
                rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality_matches=True
            ),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": rpn.BOUNDARY_THRESH,
            "loss_weight": {"loss_rpn_cls": weight, "loss_rpn_loc": box_weight},
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        }

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        """Turn, in place, all of (R,) labels to -1 but a random sample of 1s and 0s."""
        count, share = self.batch_size_per_image, self.positive_fraction
        chosen = subsample_labels(label, count, share, bg_label=0)
        label.fill_(-1)
        for value, index in zip((1, 0), chosen):
            label[index] = value
        return label

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Targets of every anchor.

        Args:
            anchors: per level.
            gt_instances: per image, with "gt_boxes".

        Returns:
            Per image (R,) labels -1, 0, 1, and (R, 4) matched boxes (zeros without ground truth).
        """
        merged = Boxes.cat(anchors)
        labels, matched = [], []
        for target in gt_instances:
            gt = target.gt_boxes
            quality = retry_if_cuda_oom(pairwise_iou)(gt, merged)
            partner, label = retry_if_cuda_oom(self.anchor_matcher)(quality)
            label = label.to(gt.device)
            if self.anchor_boundary_thresh >= 0:
                inside = merged.inside_box(target.image_size, self.anchor_boundary_thresh)
                label[~inside] = -1
            labels.append(self._subsample_labels(label))
            has_any = len(gt) > 0
            matched.append(gt[partner].tensor if has_any else torch.zeros_like(merged.tensor))
        return labels, matched

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Both losses, summed over the sampled anchors and divided by the sample size asked for.

        Args:
            pred_objectness_logits: per level (B, R_l).
            gt_labels: per image (R,), as from `label_and_sample_anchors`.
            pred_anchor_deltas: per level (B, R_l, 4).
            gt_boxes: per image (R, 4).
        """
        labels = torch.stack(gt_labels)
        batch = len(gt_labels)
        positive, sampled = labels == 1, labels >= 0
        for sign, members in (("pos", positive), ("neg", labels == 0)):
            per_image = members.sum().item() / batch
            get_event_storage().put_scalar(f"rpn/num_{sign}_anchors", per_image)

        box_loss = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            fg_mask=positive,
            gt_boxes=gt_boxes,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        logits = torch.cat(pred_objectness_logits, dim=1)[sampled]
        class_loss = F.binary_cross_entropy_with_logits(
            logits, labels[sampled].to(logits.dtype), reduction="sum"
        )
        # The constant divisor weighs both losses alike and keeps images with few positives quiet.
        divisor = self.batch_size_per_image * batch
        sums = {"loss_rpn_cls": class_loss, "loss_rpn_loc": box_loss}
        weights = self.loss_weight
        return {name: weights.get(name, 1.0) * (s / divisor) for name, s in sums.items()}

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Proposals of each image ("proposal_boxes", "objectness_logits") and, in training,
        the losses; targets with "gt_boxes" are needed there."""
        maps = [features[name] for name in self.in_features]
        anchors = self.anchor_generator(maps)
        raw_logits, raw_deltas = self.rpn_head(maps)
        logits = [_per_anchor(level, 1).squeeze(-1) for level in raw_logits]
        deltas = [_per_anchor(level, self.anchor_generator.box_dim) for level in raw_deltas]
        losses = {}
        if self.training:
            assert gt_instances is not None, "RPN needs targets in training"
            labels, boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses |= self.losses(anchors, logits, labels, deltas, boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    @torch.no_grad()  # the second stage does not train the boxes that it is given
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Decode and select; shapes as for `losses`."""
        mode = self.training
        return find_top_rpn_proposals(
            proposals=self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits=pred_objectness_logits,
            image_sizes=image_sizes,
            nms_thresh=self.nms_thresh,
            min_box_size=self.min_box_size,
            pre_nms_topk=self.pre_nms_topk[mode],
            post_nms_topk=self.post_nms_topk[mode],
            training=mode,
        )

    def _decode_proposals(
        self, anchors: list[Boxes], pred_anchor_deltas: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Per level (B, R_l, 4) boxes."""
        decoded = []
        for level, deltas in zip(anchors, pred_anchor_deltas):
            source = level.tensor.repeat(len(deltas), 1)
            flat = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), source)
            decoded.append(flat.view(deltas.shape))
        return decoded
