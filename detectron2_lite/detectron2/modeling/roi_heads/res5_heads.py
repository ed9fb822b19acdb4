"""The heads of the C4 models, where the last ResNet stage runs on regions (Faster R-CNN, C4)."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.env import not_in_lite
from torch import nn

from ..backbone.resnet import BottleneckBlock, ResNet
from ..poolers import ROIPooler
from .fast_rcnn import FastRCNNOutputLayers
from .mask_head import build_mask_head
from .roi_heads import (
    ROI_HEADS_REGISTRY,
    Features,
    ROIHeads,
    _pooler_from,
    select_foreground_proposals,
)

__all__ = ["Res5ROIHeads"]


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """Pooled regions go through res5 once; box and mask branch share the result."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: ROIPooler,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs,
    ):
        """
        Args:
            in_features: name of the one map that regions are pooled from.
            res5: halves the side of a pooled region.
            box_predictor: works on the mean over the region.
            mask_head: works on the region; None for no mask branch.
            kwargs: of `ROIHeads`.
        """
        super().__init__(**kwargs)
        self.in_features, self.mask_on = in_features, mask_head is not None
        self.pooler = pooler
        self.res5 = res5 if isinstance(res5, nn.Module) else nn.Sequential(*res5)
        self.box_predictor = box_predictor
        if self.mask_on:
            self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.KEYPOINT_ON:
            not_in_lite("MODEL.KEYPOINT_ON")
        names, node = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD
        assert len(names) == 1, f"Res5ROIHeads pools from one map, not from {names}"
        res5, channels = cls._build_res5_block(cfg)
        arguments = super().from_config(cfg) | {
            "in_features": names,
            "pooler": _pooler_from(node, names, input_shape),
            "res5": res5,
            "box_predictor": FastRCNNOutputLayers(cfg, ShapeSpec(channels=channels)),
        }
        if cfg.MODEL.MASK_ON:
            side = node.POOLER_RESOLUTION
            shape = ShapeSpec(channels=channels, height=side, width=side)
            arguments["mask_head"] = build_mask_head(cfg, shape)
        return arguments

    @classmethod
    def _build_res5_block(cls, cfg) -> tuple[nn.Module, int]:
        """The stage, as ``MODEL.RESNETS`` describes it, and its number of output channels."""
        node = cfg.MODEL.RESNETS
        if node.DEFORM_ON_PER_STAGE[-1]:
            not_in_lite("MODEL.RESNETS.DEFORM_ON_PER_STAGE")
        channels = 8 * node.RES2_OUT_CHANNELS
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            in_channels=channels // 2,
            out_channels=channels,
            stride_per_block=[2, 1, 1],
            bottleneck_channels=8 * node.NUM_GROUPS * node.WIDTH_PER_GROUP,
            num_groups=node.NUM_GROUPS,
            stride_in_1x1=node.STRIDE_IN_1X1,
            norm=node.NORM,
        )
        return nn.Sequential(*blocks), channels

    def _shared_roi_transform(
        self, features: list[torch.Tensor], boxes: list[Boxes]
    ) -> torch.Tensor:
        """(N, C, h, h) of all boxes of the batch."""
        return self.res5(self.pooler(features, boxes))

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """In training [] and the losses, else the detections and {}."""
        if self.training:
            assert targets is not None, "ROI heads need targets in training"
            proposals = self.label_and_sample_proposals(proposals, targets)
        maps = [features[name] for name in self.in_features]
        regions = self._shared_roi_transform(maps, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(regions.mean(dim=(2, 3)))
        if not self.training:
            detections = self.box_predictor.inference(predictions, proposals)[0]
            return self.forward_with_given_boxes(features, detections), {}
        box_losses = self.box_predictor.losses(predictions, proposals)
        return [], box_losses | self._mask_losses(regions, proposals)

    def _mask_losses(
        self, regions: torch.Tensor, sampled: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Losses of the mask branch on the foreground among the (N, C, h, h) regions."""
        if not self.mask_on:
            return {}
        foreground, chosen = select_foreground_proposals(sampled, self.num_classes)
        return self.mask_head(regions[cat(chosen)], foreground)

    def forward_with_given_boxes(
        self, features: Features, instances: list[Instances]
    ) -> list[Instances]:
        """Add "pred_masks" to detections with "pred_boxes" and "pred_classes"."""
        assert not self.training, "given boxes are for inference"
        for name in ("pred_boxes", "pred_classes"):
            assert all(i.has(name) for i in instances), f"{name} is needed"
        if not self.mask_on:
            return instances
        maps = [features[name] for name in self.in_features]
        regions = self._shared_roi_transform(maps, [i.pred_boxes for i in instances])
        return self.mask_head(regions, instances)
