"""From one view of an image to another: matrices of transforms, boxes and masks through them.

A matrix is 3 x 3 and maps continuous points (x, y, 1), the centre of the first pixel being
(0.5, 0.5). Sizes are (height, width) of views without padding; padding to the right and below
changes no coordinate. Legend: N instances; H, W and h, w rows and columns of source and target.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import transforms

# Points that a transform is tried at lie this far apart, so that rounding counts for little.
_REACH = 1024.0
# Pixels; a transform that is further from affine is none.
_TOLERANCE = 1e-3


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
    back = torch.linalg.inv(matrix.cpu().double())
    mapped = masks.new_zeros((len(masks), *size), dtype=torch.bool)
    # Instances are small next to their image: only what one of them can reach is sampled.
    for mask, target, extent in zip(masks, mapped, _extents(masks)):
        x0, y0, x1, y1 = extent
        # A pixel counts at points up to one pixel from its centre.
        support = torch.tensor([[x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5]])
        left, top, right, bottom = map_boxes(support, matrix.cpu(), size)[0].tolist()
        columns = slice(math.floor(left), math.ceil(right))
        rows = slice(math.floor(top), math.ceil(bottom))
        if x1 > x0 and columns.stop > columns.start and rows.stop > rows.start:
            # Outside of its extent the mask is 0, as the sampling takes it to be.
            part = mask[y0:y1, x0:x1].float()
            target[rows, columns] = _sample(part, (x0, y0), back, rows, columns) > 0.5
    return mapped


def _extents(masks: torch.Tensor) -> list[list[int]]:
    """x0, y0, x1, y1 of the non-zero pixels of each mask, the last two excluded; 0 if none."""
    found = masks if masks.dtype == torch.bool else masks > 0
    extents = []
    for columns, rows in zip(found.any(dim=1).cpu(), found.any(dim=2).cpu()):
        x, y = columns.nonzero().flatten(), rows.nonzero().flatten()
        if len(x):
            extents.append([int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1])
        else:
            extents.append([0] * 4)
    return extents


def _sample(
    part: torch.Tensor, corner: tuple[int, int], back: torch.Tensor, rows: slice, columns: slice
) -> torch.Tensor:
    """Values of a part of the source at the centres of some pixels of the target.

    Args:
        part: float (H', W'); 0 is assumed around it.
        corner: x, y of its first pixel in the source.
        back: float64 (3, 3) on the CPU, target -> source.
        rows, columns: of the target.

    Returns:
        float (rows, columns).
    """
    x = torch.arange(columns.start, columns.stop, dtype=torch.float64) + 0.5
    y = torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5
    # Where a pixel comes from is a term of its column and one of its row; the sum alone is as large
    # as the target. From -1 to 1 over the part.
    unit = 2 / torch.tensor([part.shape[1], part.shape[0]], dtype=torch.float64)
    of_column = x[:, None] * back[:2, 0] * unit
    of_row = (y[:, None] * back[:2, 1] + back[:2, 2] - torch.tensor(corner)) * unit - 1
    grid = of_row.to(part.device)[:, None] + of_column.to(part.device)
    values = F.grid_sample(
        part[None, None], grid[None].float(), padding_mode="zeros", align_corners=False
    )
    return values[0, 0]
