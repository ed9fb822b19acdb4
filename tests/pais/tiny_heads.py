"""Random heads, features, proposals and pseudo-labels on a canvas of 64 pixels."""

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances

import pais.roi_heads  # noqa: F401  (registers the heads)
from pais.config import add_pais_config

SIZE = (64, 64)
CLASSES = 3
SHAPES = {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}
# Two boxes that no proposal below overlaps by a half, but for the ones made around them.
BOXES = [[4, 4, 28, 24], [36, 30, 60, 58]]


def heads_config(*opts):
    """`opts` are KEY VALUE below MODEL."""
    cfg = get_cfg()
    add_pais_config(cfg)
    model = cfg.MODEL
    model.MASK_ON = True
    model.ROI_HEADS.NAME = "SemiSupervisedROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3"]
    model.ROI_HEADS.NUM_CLASSES = CLASSES
    model.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.FC_DIM = 1, 16
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    model.ROI_MASK_HEAD.NAME = "MaskQualityHead"
    model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.CONV_DIM = 2, 8
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 6
    model.PAIS.MASK_IOU.FC_DIM = 8
    cfg.merge_from_list([f"MODEL.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)])
    return cfg


def tiny_heads(*opts):
    torch.manual_seed(0)
    return build_roi_heads(heads_config(*opts), SHAPES)


def tiny_features(images=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            images, shape.channels, *(side // shape.stride for side in SIZE), generator=generator
        )
        for name, shape in SHAPES.items()
    }


def tiny_proposals(images=2, seed=2, count=12):
    """Squares of 12 pixels anywhere, and one around each of `BOXES`."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(images):
        corner = torch.rand(count, 2, generator=generator) * 50
        boxes = torch.cat([torch.cat([corner, corner + 12], dim=1), torch.tensor(BOXES) + 1.0])
        fields = {"proposal_boxes": Boxes(boxes), "objectness_logits": torch.zeros(len(boxes))}
        found.append(Instances(SIZE, **fields))
    return found


def targets(boxes=(), classes=(), scores=None, quality=None):
    """Objects whose masks are the ellipses in their boxes; pseudo-labels where scores are given."""
    found = Instances(SIZE, gt_boxes=Boxes(torch.tensor(boxes).float().view(-1, 4)))
    found.gt_classes = torch.tensor(classes, dtype=torch.int64)
    rows, columns = torch.meshgrid(*(torch.arange(side) + 0.5 for side in SIZE), indexing="ij")
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        x = (columns - (left + right) / 2) / ((right - left) / 2)
        y = (rows - (top + bottom) / 2) / ((bottom - top) / 2)
        mask[:] = x**2 + y**2 <= 1
    found.gt_masks = BitMasks(masks)
    if scores is not None:
        found.gt_scores, found.gt_quality = torch.tensor(scores), torch.tensor(quality)
    return found
