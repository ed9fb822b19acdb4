"""Deterministic transforms that fvcore lacks. Images are (H, W) or (H, W, C) arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

__all__ = ["ColorTransform", "ExtentTransform", "PILColorTransform", "ResizeTransform"]

# PIL's filters as arguments of torch's interpolation.
_TORCH_MODES = {
    Image.Resampling.NEAREST: {"mode": "nearest"},
    Image.Resampling.BILINEAR: {"mode": "bilinear", "align_corners": False},
    Image.Resampling.BICUBIC: {"mode": "bicubic", "align_corners": False},
}


def _through_pil(image: np.ndarray, operation: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply a PIL operation, which knows no (H, W, 1), to an array of any shape.

    PIL raises TypeError for types that it does not hold; of several channels it takes uint8 only.
    """
    single = image.ndim == 3 and image.shape[2] == 1
    # A copy: arrays that view a PIL image are read-only, which torch warns about.
    result = np.array(operation(Image.fromarray(image[:, :, 0] if single else image)))
    return result[:, :, None] if single else result


class ExtentTransform(Transform):
    """The part of an image under a rectangle, resized; outside the image it is 0.

    Args:
        src_rect: (x0, y0, x1, y1) in pixels, may reach outside.
        output_size: (h, w). interp: a PIL filter.
        fill: kept as an attribute; as upstream, no pixel is filled with it.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.Resampling.BILINEAR,
        fill: int = 0,
    ) -> None:
        super().__init__()
        self.src_rect = src_rect
        self.output_size = output_size
        self.interp = interp
        self.fill = fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Cut out and resize.

        Args:
            img: uint8, or one channel of bool, uint16 (nearest only), int32 or float.

        Raises:
            TypeError: for any other type.
        """
        rect, size = tuple(self.src_rect), tuple(self.output_size[::-1])
        method = self.interp if interp is None else interp
        if img.dtype == np.uint16 and method != Image.Resampling.NEAREST:
            # Pillow 13 returns wrong pixels, even for an unscaled crop.
            raise TypeError("uint16 cannot be interpolated: convert to int32 or float32 first")
        return _through_pil(img, lambda p: p.transform(size, Image.Transform.EXTENT, rect, method))

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) xy points into the output's frame."""
        x0, y0, x1, y1 = self.src_rect
        height, width = self.output_size
        scale = np.array([width / (x1 - x0), height / (y1 - y0)], dtype="float32")
        return (coords.astype("float32") - np.array([x0, y0], dtype="float32")) * scale

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """As the image, without inventing labels."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)


class ResizeTransform(Transform):
    """Resize (h, w) to (new_h, new_w): 8-bit images through PIL (antialiased), others in torch."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h = h
        self.w = w
        self.new_h = new_h
        self.new_w = new_w
        self.interp = Image.Resampling.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image.

        Raises:
            ValueError: when its size is not (h, w), or torch has no such filter.
        """
        if img.shape[:2] != (self.h, self.w) or img.ndim > 4:
            raise ValueError(f"expected an image of {self.h} x {self.w}, got {img.shape}")
        method = Image.Resampling(self.interp if interp is None else interp)
        if img.dtype == np.uint8:
            size = (self.new_w, self.new_h)
            return _through_pil(img, lambda p: p.resize(size, method))
        if method not in _TORCH_MODES:
            raise ValueError(f"{method.name} works for uint8 images only")
        return self._resize_float(img, _TORCH_MODES[method])

    def _resize_float(self, img: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        size = (self.new_h, self.new_w)
        # A flipped view has negative strides, which torch cannot represent.
        planes = np.moveaxis(np.ascontiguousarray(img.reshape(self.h, self.w, -1)), -1, 0)
        (resized,) = F.interpolate(torch.from_numpy(planes)[None], size, **options)
        return np.moveaxis(resized.numpy(), 0, -1).reshape(*size, *img.shape[2:])

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale (N, 2) xy points in place."""
        coords[:] = coords * [self.new_w / self.w, self.new_h / self.h]
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resize by nearest neighbour."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)

    def inverse(self) -> ResizeTransform:
        """The resize back."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class ColorTransform(Transform):
    """Changes pixel values by ``op(image)`` and leaves the geometry alone."""

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(op):
            raise ValueError("op must be callable")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """The function of the image."""
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Unchanged."""
        return segmentation

    def inverse(self) -> Transform:
        """Geometrically the identity; the colours are not restored."""
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """A :class:`ColorTransform` whose function maps PIL images."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """The function of the image."""
        return np.asarray(self.op(Image.fromarray(img)))
