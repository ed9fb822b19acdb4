"""Crops into the network and probabilities out of it, on the network's device.

Legend: B crops, S crop side, M map side, (h, w) pixels of one box, G grid side.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mal.crops import Window, border_index, resize_image

_RESIZE = {"mode": "bicubic", "align_corners": False, "antialias": True}


def cut_and_resize(image: Tensor, window: Window, size: int, border: str = "wrap") -> Tensor:
    """A window of the image as a square; what lies outside comes from the image too.

    On the CPU the crop is exactly that of training, by Pillow; elsewhere torch resizes float
    values, one grey level off here and there (more where noise makes the filter overshoot).

    Args:
        image: uint8 (H, W, 3).
        window: any position.
        size: S.
        border: what stands outside, see `mal.crops.border_index`.

    Returns:
        uint8 (3, S, S) on the image's device.

    Raises:
        ValueError: an unknown border.
    """
    # Whole rows first: several times faster than picking pixels by both indices at once.
    rows = _cut(image, 0, window.y0, window.y1, border)
    crop = _cut(rows, 1, window.x0, window.x1, border)
    if image.device.type == "cpu":
        resized = resize_image(np.ascontiguousarray(crop.numpy()), size)
        return torch.from_numpy(resized.copy()).permute(2, 0, 1)
    return resize_on_device(crop, size)


def resize_on_device(crop: Tensor, size: int) -> Tensor:
    """A crop (h, w, 3) as uint8 (3, S, S), without a way over the CPU."""
    resized = F.interpolate(crop.permute(2, 0, 1)[None].float(), (size, size), **_RESIZE)
    return resized[0].round_().clamp_(0, 255).byte()


def _cut(image: Tensor, axis: int, start: int, stop: int, border: str) -> Tensor:
    length = image.shape[axis]
    if start >= 0 and stop <= length:
        return image.narrow(axis, start, stop - start)
    index = torch.from_numpy(border_index(start, stop, length, border))
    return image.index_select(axis, index.to(image.device))


def resize_maps(maps: Tensor, side: int) -> Tensor:
    """Maps (B, C, S, S) of any type as float32 (B, C, side, side), bilinear."""
    return F.interpolate(maps.float(), (side, side), mode="bilinear", align_corners=False)


def sample_pixels(probability: Tensor, window: Window, rows: slice, columns: slice) -> Tensor:
    """The values of a window's map at some pixels of the image, bilinear, and at no others.

    Equals the map resized to the whole window (`F.interpolate`, align_corners=False), cut out.

    Args:
        probability: (S, S), any square map of the window.
        rows, columns: image pixels (h, w) inside the window.

    Returns:
        (h, w) on the map's device.
    """
    upright = _blend(probability, window.y0, window.height, rows)
    # Rows again, since whole rows are gathered fastest; run-length codes read columns anyway.
    return _blend(upright.T.contiguous(), window.x0, window.width, columns).T


def _blend(values: Tensor, origin: int, extent: int, pixels: slice) -> Tensor:
    """Rows of `values` (S, n), which cover `extent` pixels from `origin` on, at `pixels`."""
    size = values.shape[0]
    centres = torch.arange(pixels.start - origin, pixels.stop - origin, dtype=torch.float64) + 0.5
    place = (centres * (size / extent) - 0.5).clamp_(0, size - 1)
    low = place.floor()
    share = (place - low).to(values)[:, None]
    low = low.long().to(values.device)
    return torch.lerp(values[low], values[(low + 1).clamp_(max=size - 1)], share)


def sample_boxes(maps: Tensor, windows: list[Window], boxes: np.ndarray, side: int) -> Tensor:
    """Each crop's map at the same evenly spaced points of its box, whatever its window.

    Args:
        maps: (B, M, M), map b covers windows[b].
        boxes: (B, 4), XYXY, absolute.
        side: G.

    Returns:
        (B, G, G): bilinear values at the centres of G x G equal parts of each box.
    """
    frames = np.array(windows, dtype=np.float64).reshape(-1, 4)
    parts = (np.arange(side) + 0.5) / side
    axes = []
    for low, high, start, stop in ((0, 2, 1, 3), (1, 3, 0, 2)):
        points = boxes[:, low, None] + parts * (boxes[:, high] - boxes[:, low])[:, None]
        origin, extent = frames[:, start, None], (frames[:, stop] - frames[:, start])[:, None]
        axes.append(torch.from_numpy(2 * (points - origin) / extent - 1).to(maps))
    shape = (len(maps), side, side)
    grid = torch.stack([axes[0][:, None].expand(shape), axes[1][:, :, None].expand(shape)], -1)
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False}
    return F.grid_sample(maps[:, None], grid, **options)[:, 0]


def box_maps(windows: list[Window], boxes: np.ndarray, size: int) -> Tensor:
    """Which pixels of each crop have their centre inside the box.

    Args:
        windows: of B crops.
        boxes: (B, 4), XYXY, absolute.
        size: S.

    Returns:
        float32 (B, S, S) on the CPU, 0 and 1.
    """
    frames = np.array(windows, dtype=np.float64).reshape(-1, 4)
    parts = (np.arange(size) + 0.5) / size
    sides = []
    for start, stop, low, high in ((0, 2, 1, 3), (1, 3, 0, 2)):
        extent = (frames[:, stop] - frames[:, start])[:, None]
        centres = frames[:, start, None] + parts * extent
        sides.append((centres >= boxes[:, low, None]) & (centres < boxes[:, high, None]))
    return torch.from_numpy(sides[0][:, :, None] & sides[1][:, None, :]).float()
