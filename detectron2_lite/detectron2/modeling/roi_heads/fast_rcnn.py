"""Box predictor of the second stage: scores, deltas, their losses and the final suppression."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, cat, cross_entropy
from detectron2.layers.weight_init import normal_fill
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ..box_regression import Box2BoxTransform, box_loss_sum

__all__ = ["FastRCNNOutputLayers", "fast_rcnn_inference"]

# Shape legend. R regions of a batch, R_i of image i; K classes, the background is class K, so
# scores have K + 1 columns; deltas have 4K columns, or 4 if class-agnostic.

Predictions = tuple[torch.Tensor, torch.Tensor]


def fast_rcnn_inference(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Final detections of each image.

    Args:
        boxes: per image (R_i, 4K) or (R_i, 4).
        scores: per image (R_i, K + 1) probabilities.
        image_shapes: (height, width).
        score_thresh: a detection must score more.
        nms_thresh: IoU above which the weaker box of the same class is dropped.
        topk_per_image: the best that are kept; negative for all.

    Returns:
        Per image `Instances` with "pred_boxes", "scores", "pred_classes", best first; and per
        image the index, below R_i, of the region that each comes from.
    """
    results = [
        fast_rcnn_inference_single_image(b, s, shape, score_thresh, nms_thresh, topk_per_image)
        for b, s, shape in zip(boxes, scores, image_shapes)
    ]
    return [found for found, _ in results], [origin for _, origin in results]


def fast_rcnn_inference_single_image(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """`fast_rcnn_inference` for one image. Regions with a non-finite value are dropped."""
    origin = (boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)).nonzero().flatten()
    scores = scores[origin, :-1]
    clipped = Boxes(boxes[origin].reshape(-1, 4))
    clipped.clip(image_shape)
    per_region = clipped.tensor.view(len(origin), boxes.shape[1] // 4, 4)

    row, classes = (scores > score_thresh).nonzero(as_tuple=True)
    column = classes if per_region.shape[1] > 1 else torch.zeros_like(classes)
    candidates, confidence = per_region[row, column], scores[row, classes]
    kept = batched_nms(candidates, confidence, classes, nms_thresh)
    if topk_per_image >= 0:
        kept = kept[:topk_per_image]
    found = Instances(image_shape)
    found.pred_boxes = Boxes(candidates[kept])
    found.scores = confidence[kept]
    found.pred_classes = classes[kept]
    return found, origin[row[kept]]


def _log_classification_stats(
    pred_logits: torch.Tensor, gt_classes: torch.Tensor, prefix: str = "fast_rcnn"
) -> None:
    """Store accuracy over all and over foreground regions, and the share lost to background.

    Args:
        pred_logits: (R, K + 1).
        gt_classes: (R,) in [0, K].
    """
    if gt_classes.numel() == 0:
        return
    background = pred_logits.shape[1] - 1
    guess = pred_logits.argmax(dim=1)
    correct = guess == gt_classes
    foreground = (gt_classes >= 0) & (gt_classes < background)
    storage = get_event_storage()
    storage.put_scalar(f"{prefix}/cls_accuracy", correct.float().mean().item())
    if foreground.any():
        missed = guess[foreground] == background
        storage.put_scalar(f"{prefix}/fg_cls_accuracy", correct[foreground].float().mean().item())
        storage.put_scalar(f"{prefix}/false_negative", missed.float().mean().item())


def _fed_loss_weights(cfg) -> Callable[[], torch.Tensor]:
    """Class weights of the federated loss, read from the data set when the model is built."""

    def load() -> torch.Tensor:
        from detectron2.data.detection_utils import get_fed_loss_cls_weights

        power = cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER
        return get_fed_loss_cls_weights(cfg.DATASETS.TRAIN, power)

    return load


def _feature_count(shape: ShapeSpec | int) -> int:
    """Numbers that describe one region."""
    if isinstance(shape, int):
        return shape
    return shape.channels * (shape.height or 1) * (shape.width or 1)


def _source_boxes(proposals: list[Instances]) -> torch.Tensor:
    """(R, 4): the boxes that deltas are relative to."""
    return Boxes.cat([regions.proposal_boxes for regions in proposals]).tensor


def _split(values: torch.Tensor, proposals: list[Instances]) -> list[torch.Tensor]:
    """(R, ...) to one (R_i, ...) for each image."""
    return list(values.split([len(regions) for regions in proposals]))


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers, ``cls_score`` and ``bbox_pred``, with losses and inference."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable[[], torch.Tensor] | None = None,
        fed_loss_num_classes: int = 50,
    ):
        """
        Args:
            input_shape: of the features of one region, or their number.
            num_classes: K.
            test_*: see `fast_rcnn_inference`.
            box_reg_loss_type: "smooth_l1", "giou", "diou" or "ciou".
            loss_weight: for both losses or by name, "loss_cls" and "loss_box_reg".
            use_sigmoid_ce: K independent binary losses instead of one softmax.
            use_fed_loss: of these, count per batch only the classes present and some sampled ones
                (CenterNet2, section 5); needs ``use_sigmoid_ce`` and ``get_fed_loss_cls_weights``.
            fed_loss_num_classes: how many classes count.
        """
        super().__init__()
        inputs, box_sets = _feature_count(input_shape), 1 if cls_agnostic_bbox_reg else num_classes
        self.num_classes = num_classes
        self.cls_score = nn.Linear(inputs, 1 + num_classes)
        self.bbox_pred = nn.Linear(inputs, box_sets * len(box2box_transform.weights))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            normal_fill(layer, std)

        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image
        self.box_reg_loss_type = box_reg_loss_type
        if not isinstance(loss_weight, dict):
            loss_weight = dict.fromkeys(("loss_cls", "loss_box_reg"), loss_weight)
        self.loss_weight = loss_weight
        self.use_fed_loss, self.use_sigmoid_ce = use_fed_loss, use_sigmoid_ce
        self.fed_loss_num_classes = fed_loss_num_classes
        if use_fed_loss:
            assert use_sigmoid_ce, "the federated loss needs the sigmoid cross-entropy"
            weights = get_fed_loss_cls_weights()
            assert len(weights) == num_classes, f"{len(weights)} weights for {num_classes} classes"
            self.register_buffer("fed_loss_cls_weights", weights)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec) -> dict:
        head, roi = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_HEADS
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": roi.NUM_CLASSES,
            "test_score_thresh": roi.SCORE_THRESH_TEST,
            "test_nms_thresh": roi.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
            "get_fed_loss_cls_weights": _fed_loss_weights(cfg),
            "fed_loss_num_classes": head.FED_LOSS_NUM_CLASSES,
        }

    def forward(self, x: torch.Tensor) -> Predictions:
        """(R, ...) features to (R, K + 1) class logits and (R, 4K or 4) deltas."""
        flat = x.flatten(1) if x.dim() > 2 else x
        return self.cls_score(flat), self.bbox_pred(flat)

    def losses(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            predictions: as `forward` returns them.
            proposals: per image the sampled regions, with "proposal_boxes", "gt_classes" and,
                where the image has ground truth, "gt_boxes".
        """
        logits, deltas = predictions
        device = logits.device
        classes = torch.zeros(0, device=device, dtype=torch.int64)
        source = wanted = torch.zeros(0, 4, device=device)
        if proposals:
            classes = cat([p.gt_classes for p in proposals])
            source = _source_boxes(proposals)
            assert not source.requires_grad, "proposals must be detached from the first stage"
            # Without ground truth all is background and the target is never read.
            fields = ["gt_boxes" if p.has("gt_boxes") else "proposal_boxes" for p in proposals]
            wanted = Boxes.cat([p.get(field) for p, field in zip(proposals, fields)]).tensor
        _log_classification_stats(logits, classes)
        if self.use_sigmoid_ce:
            class_loss = self.sigmoid_cross_entropy_loss(logits, classes)
        else:
            class_loss = cross_entropy(logits, classes, reduction="mean")
        values = {
            "loss_cls": class_loss,
            "loss_box_reg": self.box_reg_loss(source, wanted, deltas, classes),
        }
        return {name: value * self.loss_weight.get(name, 1.0) for name, value in values.items()}

    def get_fed_loss_classes(
        self,
        gt_classes: torch.Tensor,
        num_fed_loss_classes: int,
        num_classes: int,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Classes that the federated loss counts: the present ones, filled up by sampling.

        Args:
            gt_classes: (R,) in [0, K].
            weight: (K,) relative chance of each absent class.

        Returns:
            At least ``num_fed_loss_classes`` distinct classes in [0, K].
        """
        present = gt_classes.unique()
        lacking = num_fed_loss_classes - len(present)
        if lacking <= 0:
            return present
        chance = F.pad(weight.float(), (0, 1))  # background is never sampled
        chance[present] = 0
        return torch.cat([present, torch.multinomial(chance, lacking)])

    def sigmoid_cross_entropy_loss(
        self, pred_class_logits: torch.Tensor, gt_classes: torch.Tensor
    ) -> torch.Tensor:
        """Binary losses of K classes, summed and divided by R; background has no positive."""
        if pred_class_logits.numel() == 0:
            return 0 * pred_class_logits.sum()
        regions, classes = pred_class_logits.shape[0], self.num_classes
        logits = pred_class_logits[:, :classes]
        target = F.one_hot(gt_classes, classes + 1)[:, :classes].to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if self.use_fed_loss:
            counted = self.get_fed_loss_classes(
                gt_classes, self.fed_loss_num_classes, classes, self.fed_loss_cls_weights
            )
            loss = loss[:, counted[counted < classes]]
        return loss.sum() / regions

    def box_reg_loss(
        self,
        proposal_boxes: torch.Tensor,
        gt_boxes: torch.Tensor,
        pred_deltas: torch.Tensor,
        gt_classes: torch.Tensor,
    ) -> torch.Tensor:
        """Regression loss of the foreground, divided by all regions.

        The divisor makes each region of the batch weigh the same, however many are foreground
        (Fast R-CNN, section 2.3, with the mini-batch's size as normaliser).

        Args:
            proposal_boxes, gt_boxes: (R, 4).
            pred_deltas: (R, 4K or 4).
            gt_classes: (R,) in [0, K].
        """
        foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero().flatten()
        box_dim = proposal_boxes.shape[1]
        own = pred_deltas[foreground]
        if pred_deltas.shape[1] != box_dim:
            picked = torch.arange(len(foreground), device=own.device), gt_classes[foreground]
            own = own.unflatten(1, (self.num_classes, box_dim))[picked]
        total = box_loss_sum(
            self.box2box_transform,
            proposal_boxes[foreground],
            own,
            gt_boxes[foreground],
            self.box_reg_loss_type,
            self.smooth_l1_beta,
        )
        return total / max(gt_classes.numel(), 1)

    def inference(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Detections of each image, as `fast_rcnn_inference` returns them."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes_for_gt_classes(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Per image (R_i, 4): the box predicted for each region's "gt_classes"."""
        boxes = self.predict_boxes(predictions, proposals)
        if not boxes or boxes[0].shape[1] == 4:
            return boxes
        chosen = []
        for candidates, p in zip(boxes, proposals):
            # Background has no box of its own; any class's box does for it.
            index = p.gt_classes.clamp(0, self.num_classes - 1)
            rows = torch.arange(len(index), device=index.device)
            chosen.append(candidates.unflatten(1, (self.num_classes, 4))[rows, index])
        return chosen

    def predict_boxes(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Per image the decoded boxes, (R_i, 4K or 4)."""
        if not proposals:
            return []
        decoded = self.box2box_transform.apply_deltas(predictions[1], _source_boxes(proposals))
        return _split(decoded, proposals)

    def predict_probs(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Per image the class probabilities, (R_i, K + 1)."""
        logits = predictions[0]
        probs = logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=-1)
        return _split(probs, proposals)
