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
        DataError: a weight is negative or not finite.
    """
    weights = [float(sample.get("weight", 1.0)) for sample in samples]
    for weight, sample in zip(weights, samples):
        check_weights(torch.tensor(weight), sample, "image")
    return torch.tensor(weights, dtype=torch.float32, device=device)


def check_weights(weights: Tensor, sample: dict, kind: str) -> None:
    """Refuses a weight that would turn a loss around or into NaN.

    Raises:
        DataError: naming the image.
    """
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise DataError(
            sample.get("file_name", "DATASETS.TRAIN"),
            f"the weight of {'the' if kind == 'image' else 'an'} {kind} is negative or not finite: "
            f"{weights.tolist()}",
            "give a number >= 0",
            f"image {sample.get('image_id')}",
        )


def _decode(masks: Sequence[Any], size: tuple[int, int]) -> Tensor:
    if len(masks) == 0:
        return torch.zeros((0, *size), dtype=torch.bool)
    return torch.from_numpy(np.stack([decode_segmentation(mask, *size) for mask in masks]))
