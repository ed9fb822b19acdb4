"""Second stage: label proposals, pool their features, run the heads."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.env import not_in_lite, upstream_only
from detectron2.utils.events import get_event_storage
from fvcore.common.registry import Registry
from torch import nn

from .._absent import resolve
from ..matcher import Matcher
from ..poolers import ROIPooler
from ..proposal_generator.proposal_utils import add_ground_truth_to_proposals
from ..sampling import subsample_labels
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import build_mask_head

__all__ = [
    "ROI_HEADS_REGISTRY",
    "ROIHeads",
    "StandardROIHeads",
    "build_roi_heads",
    "select_foreground_proposals",
]

ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
ROI_HEADS_REGISTRY.__doc__ = """
Modules built from ``(cfg, input_shape: dict of ShapeSpec)``; called with images, features,
proposals and, in training, targets, they return one `Instances` per image and a dict of losses.
"""

_keypoints_elsewhere = upstream_only(__name__, ["select_proposals_with_visible_keypoints"])


def __getattr__(name: str):
    if name == "Res5ROIHeads":  # its documented address; the class itself builds on this module
        from .res5_heads import Res5ROIHeads

        return Res5ROIHeads
    return _keypoints_elsewhere(name)


Features = dict[str, torch.Tensor]


def build_roi_heads(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build ``MODEL.ROI_HEADS.NAME``."""
    return resolve(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[torch.Tensor]]:
    """The proposals whose "gt_classes" are neither background nor ignored (-1).

    Returns:
        Per image the selection and the (R_i,) bool mask that made it.
    """
    masks = [(p.gt_classes != bg_label) & (p.gt_classes != -1) for p in proposals]
    return [p[mask] for p, mask in zip(proposals, masks)], masks


class ROIHeads(nn.Module):
    """Base class: matches proposals to targets and samples them; `forward` is the subclass's."""

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ):
        """
        Args:
            num_classes: K, without the background, whose label is K.
            batch_size_per_image: regions sampled for training.
            positive_fraction: at most this part of them is foreground.
            proposal_append_gt: let the ground truth be proposals too.
        """
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.ROI_HEADS
        matcher = Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=False)
        return {
            "num_classes": node.NUM_CLASSES,
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "proposal_matcher": matcher,
            "proposal_append_gt": node.PROPOSAL_APPEND_GT,
        }

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the regions that are trained on.

        Args:
            matched_idxs: (R,) index of each proposal's best target, in [0, M).
            matched_labels: (R,) the matcher's verdict: -1, 0, 1.
            gt_classes: (M,).

        Returns:
            (S,) index of the samples, foreground first, and their (S,) classes in [0, K].
        """
        label = torch.full_like(matched_idxs, self.num_classes)
        if gt_classes.numel() > 0:
            own = gt_classes[matched_idxs]
            label = torch.where(matched_labels == 0, label, own)
            label[matched_labels == -1] = -1
        drawn = torch.cat(
            subsample_labels(
                label,
                self.batch_size_per_image,
                self.positive_fraction,
                bg_label=self.num_classes,
            )
        )
        return drawn, label[drawn]

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Match proposals to targets, sample, and attach the training targets.

        Args:
            proposals: with "proposal_boxes" (and "objectness_logits").
            targets: with "gt_boxes" and "gt_classes".

        Returns:
            Per image the sampled proposals with "gt_classes" (K is background) and, if the image
            has ground truth, every other target field whose name starts with "gt_", taken from
            the best-overlapping target, for background samples too.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled, foreground, background = [], 0, 0
        for candidates, target in zip(proposals, targets):
            quality = pairwise_iou(target.gt_boxes, candidates.proposal_boxes)
            partner, verdict = self.proposal_matcher(quality)
            index, classes = self._sample_proposals(partner, verdict, target.gt_classes)
            chosen = candidates[index]
            chosen.gt_classes = classes
            if len(target) > 0:
                for name, value in target.get_fields().items():
                    if name.startswith("gt_") and not chosen.has(name):
                        chosen.set(name, value[partner[index]])
            empty = int((classes == self.num_classes).sum())
            foreground, background = foreground + len(classes) - empty, background + empty
            sampled.append(chosen)
        for kind, count in (("fg", foreground), ("bg", background)):
            per_image = count / max(len(sampled), 1)
            get_event_storage().put_scalar(f"roi_head/num_{kind}_samples", per_image)
        return sampled

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """In training the sampled proposals and the losses, else the detections and {}."""
        raise NotImplementedError


def _pooler_from(node, features: Sequence[str], shapes: dict[str, ShapeSpec]) -> ROIPooler:
    """The pooler that a ``MODEL.ROI_*_HEAD`` node describes."""
    return ROIPooler(
        output_size=node.POOLER_RESOLUTION,
        scales=[1.0 / shapes[name].stride for name in features],
        sampling_ratio=node.POOLER_SAMPLING_RATIO,
        pooler_type=node.POOLER_TYPE,
    )


def _pooled_shape(node, features: Sequence[str], shapes: dict[str, ShapeSpec]) -> ShapeSpec:
    """Shape of one region after pooling; all levels must have the same channels."""
    channels = {shapes[name].channels for name in features}
    assert len(channels) == 1, f"ROI heads need equal channels on all levels, got {channels}"
    side = node.POOLER_RESOLUTION
    return ShapeSpec(channels=channels.pop(), height=side, width=side)


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """Independent box and mask branches, each with its own pooling (FPN and Mask R-CNN)."""

    @configurable
    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: Sequence[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs,
    ):
        """
        Args:
            box_in_features: names of the maps for the box branch, fine to coarse.
            mask_in_features: likewise; None for no mask branch.
            mask_pooler: None hands the maps themselves, by name, to the mask head.
            train_on_pred_boxes: train the mask branch on the box branch's output.
            kwargs: of `ROIHeads`.
        """
        super().__init__(**kwargs)
        self.keypoint_on, self.mask_on = False, mask_in_features is not None
        self.box_in_features = self.in_features = box_in_features
        self.box_pooler, self.box_head = box_pooler, box_head
        self.box_predictor = box_predictor
        if self.mask_on:
            self.mask_in_features = mask_in_features
            self.mask_pooler = mask_pooler
            self.mask_head = mask_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.KEYPOINT_ON:
            not_in_lite("MODEL.KEYPOINT_ON")
        arguments = super().from_config(cfg)
        arguments["train_on_pred_boxes"] = cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
        # Each branch is built by a classmethod of its own, for subclasses to replace.
        for build_branch in (cls._init_box_head, cls._init_mask_head):
            arguments.update(build_branch(cfg, input_shape))
        return arguments

    @classmethod
    def _init_box_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        """The box_* arguments of the constructor; a predictor of another class is made here."""
        node, names = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler = _pooler_from(node, names, input_shape)
        head = build_box_head(cfg, _pooled_shape(node, names, input_shape))
        return {
            "box_in_features": names,
            "box_pooler": pooler,
            "box_head": head,
            "box_predictor": FastRCNNOutputLayers(cfg, head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        """The mask_* arguments of the constructor; {} if ``MODEL.MASK_ON`` is false."""
        if not cfg.MODEL.MASK_ON:
            return {}
        node, names = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
        if not node.POOLER_TYPE:
            whole = {name: input_shape[name] for name in names}
            return {
                "mask_in_features": names,
                "mask_pooler": None,
                "mask_head": build_mask_head(cfg, whole),
            }
        return {
            "mask_in_features": names,
            "mask_pooler": _pooler_from(node, names, input_shape),
            "mask_head": build_mask_head(cfg, _pooled_shape(node, names, input_shape)),
        }

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See `ROIHeads.forward`."""
        if not self.training:
            detections = self._forward_box(features, proposals)
            # The masks are predicted for the final boxes only: fewer, and better placed.
            return self.forward_with_given_boxes(features, detections), {}
        assert targets is not None, "ROI heads need targets in training"
        sampled = self.label_and_sample_proposals(proposals, targets)
        losses = self._box_losses(features, sampled, targets)
        # After the box branch, which may replace the proposals' boxes (train_on_pred_boxes).
        return sampled, losses | self._forward_mask(features, sampled)

    def forward_with_given_boxes(
        self, features: Features, instances: list[Instances]
    ) -> list[Instances]:
        """Add every per-region output beyond the box ("pred_masks") to given detections.

        Args:
            instances: per image, with "pred_boxes" and "pred_classes". Inference only.
        """
        assert not self.training, "given boxes are for inference"
        for name in ("pred_boxes", "pred_classes"):
            assert all(i.has(name) for i in instances), f"{name} is needed"
        return self._forward_mask(features, instances)

    def _box_losses(
        self, features: Features, sampled: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Losses of the box branch; the targets are for branches that label their boxes again."""
        return self._forward_box(features, sampled)

    def _forward_box(self, features: Features, proposals: list[Instances]):
        """Losses of the box branch in training, else the list of detections."""
        maps = [features[name] for name in self.box_in_features]
        regions = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
        predictor = self.box_predictor
        predictions = predictor(self.box_head(regions))
        del regions  # by far the largest tensor of the branch in inference
        if not self.training:
            return predictor.inference(predictions, proposals)[0]
        losses = predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            self._move_proposals(predictions, proposals)
        return losses

    @torch.no_grad()
    def _move_proposals(self, predictions: tuple, proposals: list[Instances]) -> None:
        """Replace each proposal by the box predicted for its true class."""
        moved = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
        for proposal, boxes in zip(proposals, moved):
            proposal.proposal_boxes = Boxes(boxes)

    def _forward_mask(self, features: Features, instances: list[Instances]):
        """Losses of the mask branch in training, else ``instances`` with "pred_masks".

        Args:
            instances: sampled proposals in training, else detections with "pred_boxes".
        """
        if not self.mask_on:
            return {} if self.training else instances
        box_field = "pred_boxes"
        if self.training:
            box_field = "proposal_boxes"
            instances = select_foreground_proposals(instances, self.num_classes)[0]
        regions = {name: features[name] for name in self.mask_in_features}
        if self.mask_pooler is not None:
            boxes = [each.get(box_field) for each in instances]
            regions = self.mask_pooler(list(regions.values()), boxes)
        return self.mask_head(regions, instances)
