"""ROI heads whose losses on unlabelled images weigh every region by what the teacher thinks of it.

Shape legend: R_i sampled regions of image i, N_i its pseudo-labels or detections.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from pais.box_iou import CLASS_WEIGHTS, WeightedOutputLayers
from pais.daloss import DALoss
from pais.mask_iou_head import MASK_WEIGHTS

Features = dict[str, Tensor]
# Sampled regions of each image to the teacher's probabilities of background there, (R_i,).
BackgroundProbability = Callable[[list[Instances]], list[Tensor]]


def rank_by_quality(detections: Instances, gamma: float) -> Instances:
    """Detections in the order of score x quality^gamma, which becomes their score.

    The class score goes to the field "class_scores". A gamma of 0 leaves all as it is.

    Args:
        detections: with "scores" and "pred_quality" (N,).
        gamma: exponent, 0 or more.
    """
    if gamma == 0:
        return detections
    ranked = detections.scores * detections.pred_quality**gamma
    order = ranked.argsort(descending=True, stable=True)
    result = detections[order]
    result.class_scores, result.scores = result.scores, ranked[order]
    return result


@ROI_HEADS_REGISTRY.register()
class SemiSupervisedROIHeads(StandardROIHeads):
    """Stock heads on labelled images; on unlabelled ones the losses of DALoss.

    Args:
        weighting: what a pseudo-label weighs.
        rank_gamma: of `rank_by_quality`, for the detections of `forward`.
        kwargs: of `StandardROIHeads`.
    """

    @configurable
    def __init__(self, *, weighting: DALoss, rank_gamma: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.weighting, self.rank_gamma = weighting, rank_gamma

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        pais = cfg.MODEL.PAIS
        own = {"weighting": DALoss.from_config(pais), "rank_gamma": pais.RANK_GAMMA}
        return super().from_config(cfg, input_shape) | own

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Detectron2's seam for another box predictor."""
        arguments = super()._init_box_head(cfg, input_shape)
        shape = arguments["box_head"].output_shape
        return arguments | {"box_predictor": WeightedOutputLayers(cfg, shape)}

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Labelled images: sampled regions and losses; in evaluation ranked detections and {}."""
        found, losses = super().forward(images, features, proposals, targets)
        if not self.training and self.rank_gamma > 0:
            found = [rank_by_quality(each, self.rank_gamma) for each in found]
        return found, losses

    def detect_boxes(self, features: Features, proposals: list[Instances]) -> list[Instances]:
        """Boxes with class scores, whatever the ranking, as a teacher needs them.

        Those that are kept get masks and qualities from `forward_with_given_boxes`.

        Args:
            features: maps by name, of the heads in evaluation mode.
            proposals: per image, with "proposal_boxes".
        """
        return self._forward_box(features, proposals)

    @torch.no_grad()
    def background_probability(self, features: Features, boxes: list[Boxes]) -> list[Tensor]:
        """Probability of background in given boxes, (R_i,) for each image, float32.

        Args:
            features: maps by name.
            boxes: per image, in the frame of the image that the maps were made from.
        """
        maps = [features[name] for name in self.box_in_features]
        logits = self.box_predictor(self.box_head(self.box_pooler(maps, boxes)))[0]
        background = logits.float().softmax(dim=1)[:, -1]
        return list(background.split([len(each) for each in boxes]))

    def losses_unlabelled(
        self,
        features: Features,
        proposals: list[Instances],
        pseudo_labels: list[Instances],
        background_probability: BackgroundProbability,
    ) -> dict[str, Tensor]:
        """Class, box and mask losses on strong views; the quality branches are left out.

        Args:
            features: of the strong views.
            proposals: of the student on the strong views.
            pseudo_labels: per image the N_i above the floor, in the frame of the strong view, with
                "gt_boxes", "gt_classes", "gt_masks", "gt_scores" and "gt_quality".
            background_probability: called with the sampled regions, unless
                MODEL.PAIS.NEGATIVE_WEIGHT does without it.

        Returns:
            {"loss_cls", "loss_box_reg", "loss_mask"}, without the factor of unlabelled images.
        """
        # Under names of their own, or they would stand among those of the labelled images.
        with get_event_storage().name_scope("unlabelled"):
            sampled = self.label_and_sample_proposals(proposals, pseudo_labels)
            self._weigh(sampled, background_probability)
            losses = self._forward_box(features, sampled)
            losses.update(self._forward_mask(features, sampled))
        return losses

    @torch.no_grad()
    def _weigh(self, sampled: list[Instances], background: BackgroundProbability) -> None:
        """Sets the fields "class_weights" and "mask_weights" (R_i,) of sampled regions."""
        like = [torch.ones(len(regions), device=regions.gt_classes.device) for regions in sampled]
        negative = background(sampled) if self.weighting.asks_teacher else like
        for regions, ones, probability in zip(sampled, like, negative):
            # Without a pseudo-label on the image there are neither fields nor positives.
            scores = regions.gt_scores if regions.has("gt_scores") else ones
            quality = regions.gt_quality if regions.has("gt_quality") else ones
            positive = regions.gt_classes < self.num_classes
            regions.set(
                CLASS_WEIGHTS,
                torch.where(
                    positive,
                    self.weighting.positives(scores),
                    self.weighting.negatives_of(probability),
                ),
            )
            regions.set(MASK_WEIGHTS, self.weighting.masks(quality))
        self._log_weights(sampled)

    def _log_weights(self, sampled: list[Instances]) -> None:
        classes = torch.cat([regions.gt_classes for regions in sampled])
        positive = classes < self.num_classes
        fields = {
            "class weight of positives": (CLASS_WEIGHTS, positive),
            "mask weight of positives": (MASK_WEIGHTS, positive),
            "class weight of negatives": (CLASS_WEIGHTS, ~positive),
        }
        for name, (field, chosen) in fields.items():
            values = torch.cat([regions.get(field) for regions in sampled])[chosen]
            if len(values) > 0:
                get_event_storage().put_scalar(name, float(values.mean()))
