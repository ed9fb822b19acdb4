"""What the teacher finds on the weak views, as targets on the strong ones.

Shape legend: B unlabelled images of a batch; H, W rows and columns of a weak view and h, w of a
strong one, without padding; N detections of an image; R_i regions sampled on image i.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from pais.mapping import map_boxes, map_masks


@dataclass(frozen=True)
class WeakViews:
    """What a teacher knows of the weak views of a batch; nothing in it has a gradient.

    Attributes:
        teacher: in evaluation mode.
        features: maps of the views, by name.
        to_strong: B matrices (3, 3), weak -> strong.
        found: B times the boxes found, with class "scores", "pred_classes" and "pred_boxes"; their
            image_size is (H, W).
    """

    teacher: GeneralizedRCNN
    features: dict[str, Tensor]
    to_strong: list[Tensor]
    found: list[Instances]

    @classmethod
    @torch.no_grad()
    def look(cls, teacher: GeneralizedRCNN, samples: list[dict]) -> WeakViews:
        """The teacher's view of samples with "weak" and "weak_to_strong" (`UnlabelledMapper`)."""
        images = teacher.preprocess_image([sample["weak"] for sample in samples])
        features = teacher.backbone(images.tensor)
        proposals, _ = teacher.proposal_generator(images, features, None)
        found = teacher.roi_heads.detect_boxes(features, proposals)
        return cls(teacher, features, [sample["weak_to_strong"] for sample in samples], found)

    @torch.no_grad()
    def pseudo_labels(
        self, floor: float, sizes: list[tuple[int, int]], tight_boxes: bool = False
    ) -> list[Instances]:
        """The detections above a floor, with masks and qualities, in the frames of strong views.

        What has left the view is dropped.

        Args:
            floor: that class scores must exceed.
            sizes: (h, w) of the B strong views.
            tight_boxes: see `carry`.

        Returns:
            B times "gt_boxes", "gt_classes", "gt_masks", "gt_scores" and "gt_quality".
        """
        kept = [keep_above(each, "scores", floor) for each in self.found]
        kept = self.teacher.roi_heads.forward_with_given_boxes(self.features, kept)
        return [
            carry(each, matrix, size, tight_boxes)
            for each, matrix, size in zip(kept, self.to_strong, sizes, strict=True)
        ]

    @torch.no_grad()
    def background_probability(self, sampled: list[Instances]) -> list[Tensor]:
        """(R_i,) probability of background that the teacher sees in regions of the strong views.

        Args:
            sampled: B times regions with "proposal_boxes" in the frame of the strong view.
        """
        boxes = [
            Boxes(
                map_boxes(regions.proposal_boxes.tensor, torch.linalg.inv(matrix), weak.image_size)
            )
            for regions, matrix, weak in zip(sampled, self.to_strong, self.found, strict=True)
        ]
        return self.teacher.roi_heads.background_probability(self.features, boxes)


def keep_above(instances: Instances, field: str, floor: float) -> Instances:
    """Those with more than the floor in a field (N,)."""
    return instances[instances.get(field) > floor]


def carry(
    found: Instances, matrix: Tensor, size: tuple[int, int], tight_boxes: bool = False
) -> Instances:
    """Detections of a weak view as targets on the strong one.

    Boxes and masks are mapped each by itself, and after a rotation the hull of a box is looser than
    the mask: that of a disc has an IoU of about .7 with the disc's box.

    Args:
        found: with "pred_boxes", "pred_masks" (N, 1, M, M), "pred_classes", "scores" and
            "pred_quality".
        matrix: (3, 3), weak -> strong.
        size: (h, w) of the strong view.
        tight_boxes: boxes of the mapped masks, where there is anything left of them.
    """
    # Under autocast the masks may be of a type in which nothing can be resampled.
    found.pred_masks = found.pred_masks.float()
    # At the view's own size this only pastes the masks, and drops boxes without an area.
    whole = detector_postprocess(found, *found.image_size)
    boxes = map_boxes(whole.pred_boxes.tensor, matrix, size)
    masks = BitMasks(map_masks(whole.pred_masks, matrix, size))
    if tight_boxes:
        of_masks = masks.get_bounding_boxes().to(boxes.device)
        boxes = torch.where(of_masks.nonempty()[:, None], of_masks.tensor.to(boxes), boxes)
    boxes = Boxes(boxes)
    targets = Instances(
        size,
        gt_boxes=boxes,
        gt_classes=whole.pred_classes,
        gt_masks=masks,
        gt_scores=whole.scores.float(),
        # A mask that is empty has nothing to teach.
        gt_quality=whole.pred_quality.float() * masks.nonempty().to(whole.scores.device),
    )
    return targets[boxes.nonempty()]
