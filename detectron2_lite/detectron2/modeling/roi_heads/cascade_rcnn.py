"""Cascade R-CNN (Cai and Vasconcelos, CVPR 2018): box heads in a row, each stricter."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn

from ..box_regression import Box2BoxTransform
from ..matcher import Matcher
from ..poolers import ROIPooler
from .box_head import build_box_head
from .fast_rcnn import FastRCNNOutputLayers, Predictions, fast_rcnn_inference
from .roi_heads import (
    ROI_HEADS_REGISTRY,
    Features,
    StandardROIHeads,
    _pooled_shape,
    _pooler_from,
)

__all__ = ["CascadeROIHeads"]


@ROI_HEADS_REGISTRY.register()
class CascadeROIHeads(StandardROIHeads):
    """Box heads of which each refines the boxes of the one before; the mask branch is stock.

    In training, a stage's boxes are matched to the targets anew, with its own IoU threshold and
    without sampling. In inference the boxes are the last stage's, the scores the mean over all.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_pooler: ROIPooler,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        proposal_matchers: Sequence[Matcher],
        **kwargs,
    ):
        """
        Args:
            box_pooler: shared by the stages.
            box_heads, box_predictors, proposal_matchers: one of each per stage. The first matcher
                labels the proposals that are sampled.
            kwargs: of `StandardROIHeads`, without "proposal_matcher".
        """
        counts = {len(parts) for parts in (box_heads, box_predictors, proposal_matchers)}
        assert len(counts) == 1, f"heads, predictors and matchers differ in number: {counts}"
        assert "proposal_matcher" not in kwargs, "a cascade has proposal_matchers, one per stage"
        super().__init__(
            proposal_matcher=proposal_matchers[0],
            box_in_features=box_in_features,
            box_head=nn.ModuleList(box_heads),
            box_predictor=nn.ModuleList(box_predictors),
            box_pooler=box_pooler,
            **kwargs,
        )
        self.num_cascade_stages = counts.pop()
        self.proposal_matchers = proposal_matchers

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        arguments = super().from_config(cfg, input_shape)
        del arguments["proposal_matcher"]
        return arguments

    @classmethod
    def _init_box_head(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        """The box_* arguments and the matchers, from ``MODEL.ROI_BOX_CASCADE_HEAD``."""
        node, stages = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_BOX_CASCADE_HEAD
        names, first_iou = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0]
        assert node.CLS_AGNOSTIC_BBOX_REG, (
            "CascadeROIHeads needs MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True: the next stage "
            "takes one box per region"
        )
        assert len(stages.IOUS) == len(stages.BBOX_REG_WEIGHTS), (
            f"MODEL.ROI_BOX_CASCADE_HEAD: {len(stages.IOUS)} IOUS and "
            f"{len(stages.BBOX_REG_WEIGHTS)} BBOX_REG_WEIGHTS; a stage needs one of each"
        )
        assert stages.IOUS[0] == first_iou, (
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS starts at {stages.IOUS[0]}, but the proposals are "
            f"sampled at MODEL.ROI_HEADS.IOU_THRESHOLDS {first_iou}"
        )
        pooled = _pooled_shape(node, names, input_shape)
        heads = [build_box_head(cfg, pooled) for _ in stages.IOUS]
        predictors = [
            FastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weights)
            )
            for head, weights in zip(heads, stages.BBOX_REG_WEIGHTS)
        ]
        return {
            "box_in_features": names,
            "box_pooler": _pooler_from(node, names, input_shape),
            "box_heads": heads,
            "box_predictors": predictors,
            "proposal_matchers": [Matcher([iou], [0, 1]) for iou in stages.IOUS],
        }

    def _box_losses(
        self, features: Features, sampled: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Their names end in "_stage0", "_stage1", ..."""
        return self._forward_box(features, sampled, targets)

    def _forward_box(
        self,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ):
        """Losses of all stages in training, else the list of detections."""
        sizes = [p.image_size for p in proposals]
        losses, probabilities, boxes = {}, [], []
        for stage, predictor in enumerate(self.box_predictor):
            regions = proposals if stage == 0 else self._create_proposals_from_boxes(boxes, sizes)
            if stage > 0 and self.training:
                regions = self._match_and_label_boxes(regions, stage, targets)
            output = self._run_stage(features, regions, stage)
            boxes = predictor.predict_boxes(output, regions)
            if self.training:
                with get_event_storage().name_scope(f"stage{stage}"):
                    own = predictor.losses(output, regions)
                losses |= {f"{name}_stage{stage}": value for name, value in own.items()}
            else:
                probabilities.append(predictor.predict_probs(output, regions))
        if self.training:
            return losses
        scores = [torch.stack(per_stage).mean(dim=0) for per_stage in zip(*probabilities)]
        last = self.box_predictor[-1]
        return fast_rcnn_inference(
            boxes,
            scores,
            sizes,
            last.test_score_thresh,
            last.test_nms_thresh,
            last.test_topk_per_image,
        )[0]

    def _run_stage(self, features: Features, proposals: list[Instances], stage: int) -> Predictions:
        """Logits and deltas of one stage."""
        maps = [features[name] for name in self.box_in_features]
        regions = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
        if regions.requires_grad:
            # All stages pull at the same backbone; together they weigh as much as one head.
            regions.register_hook(lambda gradient: gradient / self.num_cascade_stages)
        return self.box_predictor[stage](self.box_head[stage](regions))

    def _create_proposals_from_boxes(
        self, boxes: list[torch.Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Proposals without gradient from (R_i, 4) boxes; in training without the empty ones."""
        refined = []
        for moved, size in zip(boxes, image_sizes):
            inside = Boxes(moved.detach())
            inside.clip(size)
            # Not in inference: scores are averaged, so the rows of all stages must correspond.
            inside = inside[inside.nonempty()] if self.training else inside
            refined.append(Instances(size, proposal_boxes=inside))
        return refined

    @torch.no_grad()
    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """Give every proposal the "gt_classes" and "gt_boxes" of its best target, in place.

        Without a target in the image the boxes are zeros, which nothing reads.
        """
        foreground = total = 0
        for found, target in zip(proposals, targets):
            quality = pairwise_iou(target.gt_boxes, found.proposal_boxes)
            partner, verdict = self.proposal_matchers[stage](quality)
            if len(target) > 0:
                background = torch.full_like(partner, self.num_classes)
                found.gt_classes = torch.where(verdict == 1, target.gt_classes[partner], background)
                found.gt_boxes = target.gt_boxes[partner]
            else:
                found.gt_classes = torch.full_like(partner, self.num_classes)
                found.gt_boxes = Boxes(torch.zeros_like(found.proposal_boxes.tensor))
            foreground += int((verdict == 1).sum())
            total += len(found)
        storage, images = get_event_storage(), max(len(proposals), 1)
        storage.put_scalar(f"stage{stage}/roi_head/num_fg_samples", foreground / images)
        storage.put_scalar(f"stage{stage}/roi_head/num_bg_samples", (total - foreground) / images)
        return proposals
