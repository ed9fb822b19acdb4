"""From the model's input resolution back to the resolution that was asked for."""

import torch
import torch.nn.functional as F
from detectron2.structures import Instances, ROIMasks

__all__ = ["detector_postprocess", "sem_seg_postprocess"]


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Rescale raw detections to ``output_height`` x ``output_width`` and paste their masks.

    Args:
        results: N raw detections in the frame of ``results.image_size``; its ``pred_boxes`` (or
            ``proposal_boxes``) are required, ``pred_masks`` may be (N, 1, m, m) probabilities.
        mask_threshold: probability from which a pixel belongs to the mask.

    Returns:
        A new `Instances` without the boxes that are empty after clipping; ``pred_masks`` are
        (N, output_height, output_width) bool.
    """
    old_height, old_width = results.image_size
    ratio_x, ratio_y = output_width / old_width, output_height / old_height
    size = (int(output_height), int(output_width))
    scaled = Instances(size, **results.get_fields())

    box_field = next((f for f in ("pred_boxes", "proposal_boxes") if scaled.has(f)), None)
    assert box_field is not None, "predictions must contain boxes"
    boxes = scaled.get(box_field).clone()  # the caller's boxes stay as they are
    boxes.scale(ratio_x, ratio_y)
    boxes.clip(size)
    scaled.set(box_field, boxes)
    scaled = scaled[boxes.nonempty()]

    if scaled.has("pred_masks"):
        soft = scaled.pred_masks
        if not isinstance(soft, ROIMasks):
            soft = ROIMasks(soft[:, 0])
        scaled.pred_masks = soft.to_bitmasks(scaled.get(box_field), *size, mask_threshold).tensor
    if scaled.has("pred_keypoints"):
        factor = scaled.pred_keypoints.new_tensor([ratio_x, ratio_y])
        points = scaled.pred_keypoints.clone()
        points[..., :2] *= factor
        scaled.pred_keypoints = points
    return scaled


def sem_seg_postprocess(
    result: torch.Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> torch.Tensor:
    """Cut the padding off (C, H, W) logits and resize them to (C, output_height, output_width)."""
    height, width = img_size
    valid = result[None, :, :height, :width]
    wanted = output_height, output_width
    (resized,) = F.interpolate(valid, wanted, mode="bilinear", align_corners=False)
    return resized
