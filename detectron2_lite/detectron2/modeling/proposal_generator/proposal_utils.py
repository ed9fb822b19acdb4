"""Selection of the best proposals, and ground truth as further proposals."""

import math
from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms, cat
from detectron2.structures import Boxes, Instances

__all__ = [
    "add_ground_truth_to_proposals",
    "add_ground_truth_to_proposals_single_image",
    "find_top_rpn_proposals",
]

# Ground truth is a proposal of probability (almost) 1; the exact 1 has no finite logit.
_GT_PROBABILITY = 1.0 - 1e-10
_GT_LOGIT = math.log(_GT_PROBABILITY / (1 - _GT_PROBABILITY))


def find_top_rpn_proposals(
    proposals: list[torch.Tensor],
    pred_objectness_logits: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """The best proposals of each image: top k per level, NMS within levels, top k over all.

    L levels, B images, R_l proposals on level l.

    Args:
        proposals: L tensors (B, R_l, 4).
        pred_objectness_logits: L tensors (B, R_l).
        nms_thresh: IoU above which the weaker box is dropped.
        pre_nms_topk, post_nms_topk: kept per level and image before, and per image after NMS.
        min_box_size: smaller sides (in px of the input) are dropped.
        training: non-finite proposals raise in training and are dropped in inference.

    Returns:
        B `Instances` with "proposal_boxes" and "objectness_logits", best first.

    Raises:
        FloatingPointError: non-finite proposal in training.
    """
    boxes, logits, level_of = [], [], []
    for level_boxes, level_logits in zip(proposals, pred_objectness_logits):
        count = min(pre_nms_topk, level_logits.shape[1])
        best, index = level_logits.topk(count, dim=1)
        boxes.append(level_boxes.gather(1, index[..., None].expand(-1, -1, 4)))
        logits.append(best)
        level_of.append(index.new_full((count,), len(level_of)))
    candidates = zip(image_sizes, cat(boxes, dim=1), cat(logits, dim=1))
    levels = cat(level_of)
    return [
        _select(Boxes(b), s, levels, size, nms_thresh, post_nms_topk, min_box_size, training)
        for size, b, s in candidates
    ]


def _select(
    boxes: Boxes,
    scores: torch.Tensor,
    levels: torch.Tensor,
    image_size: tuple[int, int],
    nms_thresh: float,
    keep_most: int,
    min_size: float,
    training: bool,
) -> Instances:
    """Clean and suppress the R candidates of one image."""
    finite = scores.isfinite() & boxes.tensor.isfinite().all(dim=1)
    if training and not finite.all():
        raise FloatingPointError("Training has diverged: Inf or NaN among the proposals")
    boxes, scores, levels = boxes[finite], scores[finite], levels[finite]
    boxes.clip(image_size)
    large = boxes.nonempty(threshold=min_size)
    boxes, scores, levels = boxes[large], scores[large], levels[large]
    kept = batched_nms(boxes.tensor, scores, levels, nms_thresh)[:keep_most]
    return Instances(image_size, proposal_boxes=boxes[kept], objectness_logits=scores[kept])


def add_ground_truth_to_proposals(
    gt: Sequence[Instances] | Sequence[Boxes], proposals: list[Instances]
) -> list[Instances]:
    """Append the ground truth of each image to its proposals.

    Args:
        gt: per image, `Boxes`, or `Instances` with "gt_boxes" and every other field that the
            proposals have beyond boxes and logits.
    """
    assert len(gt) == len(proposals), f"{len(gt)} targets for {len(proposals)} proposal sets"
    if not proposals:
        return proposals
    return [add_ground_truth_to_proposals_single_image(g, p) for g, p in zip(gt, proposals)]


def add_ground_truth_to_proposals_single_image(
    gt: Instances | Boxes, proposals: Instances
) -> Instances:
    """Like `add_ground_truth_to_proposals`, for one image."""
    target = Instances(proposals.image_size, gt_boxes=gt) if isinstance(gt, Boxes) else gt
    logits = proposals.objectness_logits
    extra = Instances(proposals.image_size)
    extra.proposal_boxes = target.gt_boxes.to(logits.device)
    extra.objectness_logits = logits.new_full((len(target.gt_boxes),), _GT_LOGIT)
    for name in proposals.get_fields():
        if extra.has(name):
            continue
        assert target.has(name), f"the ground truth lacks the proposals' field {name!r}"
        extra.set(name, target.get(name))
    return Instances.cat([proposals, extra])
