"""From box-sized masks to image-sized masks.

Legend: N masks of M x M samples, an image of H x W pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["paste_masks_in_image"]

# Sampling grids of float32 pairs are the peak of memory: 8 bytes a pixel, and as much again
# for the sampled values and the comparison.
_BYTES_PER_PIXEL = 16
_GPU_BUDGET = 1 << 30

Window = tuple[int, int, int, int]


@torch.no_grad()
def paste_masks_in_image(
    masks: Tensor, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Resize each mask to its box and place it on an empty image.

    Args:
        masks: (N, M, M) or (N, 1, M, M) probabilities in [0, 1].
        boxes: (N, 4) tensor or Boxes, XYXY in pixels of the image; may exceed it.
        image_shape: (H, W).
        threshold: a pixel is set where the probability reaches it. Negative: no threshold,
            probabilities come back as uint8 in 0..255.

    Returns:
        (N, H, W) bool, or uint8 with a negative threshold.
    """
    xyxy: Tensor = boxes if isinstance(boxes, Tensor) else boxes.tensor
    if masks.dim() == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must be square, (N, M, M), got {tuple(masks.shape)}")
    if len(xyxy) != len(masks):
        raise ValueError(f"{len(masks)} masks but {len(xyxy)} boxes")
    height, width = (int(side) for side in image_shape)
    soft = threshold < 0
    dtype = torch.uint8 if soft else torch.bool
    canvas = torch.zeros((len(masks), height, width), dtype=dtype, device=masks.device)
    for rows, window in _plan(xyxy, height, width):
        top, left, bottom, right = window
        values = _sample(masks[rows], xyxy[rows], window)
        pasted = (255 * values).to(dtype) if soft else values >= threshold
        canvas[rows, top:bottom, left:right] = pasted
    return canvas


def _plan(xyxy: Tensor, height: int, width: int) -> list[tuple[slice, Window]]:
    """Split the work into (masks, window of the image) jobs.

    On a CPU one job per mask with the smallest window wins; on an accelerator few large jobs
    do, as many masks at once as the memory budget allows.
    """
    if xyxy.device.type == "cpu":
        return _small_windows(xyxy.tolist(), height, width)
    return _large_batches(len(xyxy), height, width)


def _small_windows(xyxy: list[list[float]], height: int, width: int) -> list[tuple[slice, Window]]:
    jobs = []
    for i, corners in enumerate(xyxy):
        if not all(map(math.isfinite, corners)):
            continue
        x0, y0, x1, y1 = corners
        top, left = max(math.floor(y0) - 1, 0), max(math.floor(x0) - 1, 0)
        bottom, right = min(math.ceil(y1) + 1, height), min(math.ceil(x1) + 1, width)
        if bottom > top and right > left:
            jobs.append((slice(i, i + 1), (top, left, bottom, right)))
    return jobs


def _large_batches(count: int, height: int, width: int) -> list[tuple[slice, Window]]:
    step = max(1, _GPU_BUDGET // max(1, height * width * _BYTES_PER_PIXEL))
    whole = (0, 0, height, width)
    return [(slice(i, min(i + step, count)), whole) for i in range(0, count, step)]


def _sample(masks: Tensor, xyxy: Tensor, window: Window) -> Tensor:
    """Bilinear values of N masks at the pixel centres of a window, zero outside the boxes.

    Returns:
        (N, bottom - top, right - left) float.
    """
    top, left, bottom, right = window
    dtype = masks.dtype if masks.is_floating_point() else torch.float32
    origin, extent = xyxy[:, None, :2], (xyxy[:, 2:] - xyxy[:, :2])[:, None]

    def axis(start: int, stop: int, column: int) -> Tensor:
        centres = torch.arange(start, stop, dtype=torch.float32, device=masks.device) + 0.5
        return (centres - origin[..., column]) / extent[..., column] * 2 - 1

    x, y = axis(left, right, 0), axis(top, bottom, 1)
    size = (len(masks), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None].expand(size), y[:, :, None].expand(size)], dim=-1)
    # A degenerate box gives 0 / 0 or x / 0; far outside samples as nothing at all.
    grid = torch.nan_to_num(grid, nan=2.0, posinf=2.0, neginf=-2.0)
    return F.grid_sample(masks[:, None].to(dtype), grid.to(dtype), align_corners=False)[:, 0]
