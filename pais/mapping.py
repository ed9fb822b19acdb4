"""From one view of an image to another: matrices of transforms, boxes and masks through them.

A matrix is 3 x 3 and maps continuous points (x, y, 1), the centre of the first pixel being
(0.5, 0.5). Sizes are (height, width) of views without padding; padding to the right and below
changes no coordinate. Legend: N instances; H, W and h, w rows and columns of source and target.
"""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import transforms

# Points that a transform is tried at lie this far apart, so that rounding counts for little.
_REACH = 1024.0
# Pixels; a transform that is further from affine is none.
_TOLERANCE = 1e-3
# Masks that are warped at a time; bounds the memory.
_MASKS_AT_A_TIME = 32


def matrix_of(transform: transforms.Transform | transforms.TransformList) -> np.ndarray:
    """The matrix of an affine transform, found from where it moves three points.

    Returns:
        float64 (3, 3).

    Raises:
        ValueError: a fourth point shows that it is not affine.
    """
    corners = _REACH * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    # Some transforms write into what they are given.
    origin, right, below, opposite = transform.apply_coords(corners.copy()).astype(np.float64)
    if np.abs(right + below - origin - opposite).max() > _TOLERANCE:
        raise ValueError(f"{transform} is not affine, so that no matrix describes it")
    matrix = np.eye(3)
    matrix[:2, 0] = (right - origin) / _REACH
    matrix[:2, 1] = (below - origin) / _REACH
    matrix[:2, 2] = origin
    return matrix


def between_views(
    source: transforms.Transform | transforms.TransformList,
    target: transforms.Transform | transforms.TransformList,
) -> np.ndarray:
    """The matrix from one view to another of the same image: target x source^-1.

    Args:
        source, target: what made the views of the image.

    Returns:
        float64 (3, 3).
    """
    return matrix_of(target) @ np.linalg.inv(matrix_of(source))


@torch.no_grad()
def map_boxes(boxes: torch.Tensor, matrix: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Upright hulls of the boxes' mapped corners, clipped to the target.

    After a rotation or a shear such a box is looser than the object, as in PAIS.

    Args:
        boxes: (N, 4) XYXY in the source.
        matrix: (3, 3), source -> target; its inverse goes the other way.
        size: (h, w) of the target.

    Returns:
        (N, 4), of the type and on the device of `boxes`. The area is 0 where nothing is left.
    """
    # In double precision: RoIs go there and back.
    matrix = matrix.to(boxes.device, torch.float64)
    x0, y0, x1, y1 = boxes.double().unbind(1)
    corners = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], dim=1).reshape(-1, 4, 2)
    moved = corners @ matrix[:2, :2].T + matrix[:2, 2]
    limits = moved.new_tensor([size[1], size[0]])
    low = moved.amin(dim=1).clamp(min=moved.new_zeros(2), max=limits)
    high = moved.amax(dim=1).clamp(min=moved.new_zeros(2), max=limits)
    return torch.cat([low, high], dim=1).to(boxes.dtype)


@torch.no_grad()
def map_masks(masks: torch.Tensor, matrix: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Masks warped bilinearly onto the target, above one half; outside of the source is empty.

    Args:
        masks: (N, H, W), bool or probabilities.
        matrix: (3, 3), source -> target.
        size: (h, w) of the target.

    Returns:
        bool (N, h, w). A mask that has left the target is empty.
    """
    if not len(masks):
        return masks.new_zeros((0, *size), dtype=torch.bool)
    grid = _sampling_grid(matrix, masks.shape[1:], size).to(masks.device, torch.float32)
    parts = [
        F.grid_sample(part[None].float(), grid, padding_mode="zeros", align_corners=False)[0] > 0.5
        for part in masks.split(_MASKS_AT_A_TIME)
    ]
    return torch.cat(parts)


def _sampling_grid(
    matrix: torch.Tensor, source: tuple[int, int], target: tuple[int, int]
) -> torch.Tensor:
    """Where each target pixel's centre lies in the source, from -1 to 1; float64 (1, h, w, 2)."""
    back = torch.linalg.inv(matrix.cpu().double())
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in target)
    across = x[None, :, None] * back[:2, 0] + back[:2, 2]
    points = across + y[:, None, None] * back[:2, 1]
    sides = points.new_tensor([source[1], source[0]])
    return (2 * points / sides - 1)[None]
