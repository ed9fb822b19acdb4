"""Deterministic transforms that fvcore lacks. Images are (H, W) or (H, W, C) arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

__all__ = ["ColorTransform", "ExtentTransform", "PILColorTransform", "ResizeTransform"]

_TORCH_MODES = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def _through_pil(
    image: np.ndarray, operation: Callable[[Image.Image], Image.Image], what: str
) -> np.ndarray:
    """Apply a PIL operation, which knows no (H, W, 1), to an 8-bit image of any shape."""
    if image.dtype != np.uint8:
        raise TypeError(f"{what} needs a uint8 image, got {image.dtype}")
    single = image.ndim == 3 and image.shape[2] == 1
    # A copy: arrays that view a PIL image are read-only, which torch warns about.
    result = np.array(operation(Image.fromarray(image[:, :, 0] if single else image)))
    return result[:, :, None] if single else result


class ExtentTransform(Transform):
    """The part of an image under a rectangle, resized; outside the image it is ``fill``.

    Args:
        src_rect: (x0, y0, x1, y1) in pixels, may reach outside.
        output_size: (h, w). interp: a PIL filter.
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
        """Cut out and resize a uint8 image."""
        height, width = self.output_size
        resample = self.interp if interp is None else interp
        return _through_pil(
            img,
            lambda picture: picture.transform(
                (width, height),
                Image.Transform.EXTENT,
                tuple(self.src_rect),
                resample,
                fillcolor=(self.fill,) * len(picture.getbands()),
            ),
            "ExtentTransform",
        )

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
            return _through_pil(img, lambda p: p.resize(size, method), "ResizeTransform")
        if method not in _TORCH_MODES:
            raise ValueError(f"{method.name} works for uint8 images only")
        return self._resize_float(img, _TORCH_MODES[method])

    def _resize_float(self, img: np.ndarray, mode: str) -> np.ndarray:
        planes = img.reshape(self.h, self.w, -1)
        # A flipped view has negative strides, which torch cannot represent.
        tensor = torch.from_numpy(np.ascontiguousarray(planes)).permute(2, 0, 1)[None]
        corners = None if mode == "nearest" else False
        resized = F.interpolate(tensor, (self.new_h, self.new_w), mode=mode, align_corners=corners)
        shape = (self.new_h, self.new_w, *img.shape[2:])
        return resized[0].permute(1, 2, 0).reshape(shape).numpy()

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
