"""Ground truth as the criterion takes it.

Shape legend: n instances of one image, (h, w) its size, (H, W) the padded size of the batch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pseudolabel.errors import DataError
from pseudolabel.masks import decode_segmentation


def ground_truth(sample: dict, classes: int, device: torch.device) -> Any:
    """The `Instances` of a training sample on the device.

    Args:
        sample: of the mapper.
        classes: K; the class logits' index K stands for "no object".

    Raises:
        DataError: there is none, it lacks a field, or a class is none of the model's.
    """
    truth = sample.get("instances")
    if truth is None:
        raise _unusable(sample, "has no instances", "train with a mapper that gives them")
    # Detectron2's mapper gives an image without instances no masks.
    lacking = [f for f in ("gt_classes", "gt_masks") if len(truth) and not truth.has(f)]
    if lacking:
        raise _unusable(sample, f"has no {' and '.join(lacking)}", "label every instance")
    truth = truth.to(device)
    if len(truth) and not bool(((truth.gt_classes >= 0) & (truth.gt_classes < classes)).all()):
        problem = f"has classes {truth.gt_classes.tolist()}, the model 0 to {classes - 1}"
        raise _unusable(sample, problem, "let MODEL.ROI_HEADS.NUM_CLASSES be that of the data")
    return truth


def float_masks(masks: Any, size: tuple[int, int], canvas: tuple[int, int]) -> Tensor:
    """Ground truth masks on the padded canvas, which is what points are drawn on.

    Args:
        masks: `BitMasks`, a tensor (n, h, w), or a sequence of n COCO segmentations.
        size: (h, w) of the image.
        canvas: (H, W).

    Returns:
        float32 (n, H, W) of 0 and 1: the library cannot sample bool.

    Raises:
        DataError: polygon masks of Detectron2, or masks of another size.
    """
    if hasattr(masks, "polygons"):
        raise DataError(
            "INPUT.MASK_FORMAT",
            "the ground truth holds polygons, but masks are compared at points",
            "set it to 'bitmask'",
        )
    if not torch.is_tensor(masks):
        masks = masks.tensor if hasattr(masks, "tensor") else _decode(masks, size)
    if tuple(masks.shape[1:]) != tuple(size):
        raise DataError(
            "gt_masks",
            f"are of {tuple(masks.shape[1:])} pixels, their image of {tuple(size)}",
            "let the mapper transform image and masks together",
        )
    padded = masks.new_zeros((len(masks), *canvas), dtype=torch.float32)
    padded[:, : size[0], : size[1]] = masks
    return padded


def instance_weights(sample: dict, instances: Any, device: torch.device) -> Tensor:
    """`gt_weights` of one image as float32 (n,); 1 where there are none.

    Raises:
        DataError: a weight is negative or not finite.
    """
    if not instances.has("gt_weights"):
        return torch.ones(len(instances), device=device)
    weights = torch.as_tensor(instances.gt_weights, dtype=torch.float32, device=device)
    check_weights(weights, sample, "annotation")
    return weights


def image_weights(samples: Sequence[dict], device: torch.device) -> Tensor:
    """`weight` of each dataset dict as float32 (B,); 1 where there is none.

    Raises:
        DataError: a weight is no number, negative or not finite.
    """
    weights = [sample.get("weight", 1.0) for sample in samples]
    for weight, sample in zip(weights, samples):
        if weight is None:
            raise _unusable(sample, "has the weight None", "give a number >= 0, or no weight")
        check_weights(torch.tensor(float(weight)), sample, "image")
    return torch.tensor([float(w) for w in weights], dtype=torch.float32, device=device)


def check_weights(weights: Tensor, sample: dict, kind: str) -> None:
    """Refuses a weight that would turn a loss around or into NaN.

    Raises:
        DataError: naming the image.
    """
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        whose = "the weight of the image" if kind == "image" else "the weight of an annotation"
        problem = f"{whose} is negative or not finite: {weights.tolist()}"
        raise _unusable(sample, problem, "give a number >= 0")


def _unusable(sample: dict, problem: str, remedy: str) -> DataError:
    place = sample.get("file_name", "DATASETS.TRAIN")
    return DataError(place, problem, remedy, f"image {sample.get('image_id')}")


def _decode(masks: Sequence[Any], size: tuple[int, int]) -> Tensor:
    if len(masks) == 0:
        return torch.zeros((0, *size), dtype=torch.bool)
    return torch.from_numpy(np.stack([decode_segmentation(mask, *size) for mask in masks]))
