"""The stock augmentations. Sizes are (height, width) in pixels."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

from .augmentation import AugInput, Augmentation, _transform_to_aug
from .transform import ExtentTransform, ResizeTransform

__all__ = [
    "FixedSizeCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomExtent",
    "RandomFlip",
    "RandomLighting",
    "RandomResize",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]

_BILINEAR = Image.Resampling.BILINEAR


class RandomApply(Augmentation):
    """Applies an augmentation or transform with probability ``prob``."""

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        super().__init__()
        assert 0.0 <= prob <= 1.0, f"prob must be in [0, 1], got {prob}"
        self.aug = _transform_to_aug(tfm_or_aug)
        self.prob = prob

    def _do(self) -> bool:
        return self._rand_range() < self.prob

    def get_transform(self, *args: object) -> Transform:
        """The wrapped decision, or no change."""
        return self.aug.get_transform(*args) if self._do() else NoOpTransform()

    def __call__(self, aug_input: AugInput) -> Transform:
        """Apply in place, or not."""
        return self.aug(aug_input) if self._do() else NoOpTransform()


class RandomFlip(Augmentation):
    """Flips in one direction, horizontally by default, with probability ``prob``."""

    def __init__(
        self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False
    ) -> None:
        if horizontal == vertical:
            raise ValueError("choose one of horizontal and vertical; use two flips to have both")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """A flip or no change."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """To a fixed size: (h, w), or one number for both."""

    def __init__(self, shape: int | tuple[int, int], interp: int = _BILINEAR) -> None:
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize for this image."""
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class RandomResize(Augmentation):
    """Resizes to one of several sizes.

    Args:
        shape_list: (h, w) to draw from.
        interp: PIL's resampling.
    """

    def __init__(self, shape_list: list, interp: int = _BILINEAR) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """A resize to one of the sizes."""
        height, width = image.shape[:2]
        target = self.shape_list[np.random.randint(len(self.shape_list))]
        return ResizeTransform(height, width, *target, self.interp)


class ResizeShortestEdge(Augmentation):
    """Keeps the aspect ratio; the shorter edge gets a given length unless the longer exceeds a max.

    Args:
        short_edge_length: for "range" the (min, max) of a uniform draw, both included; for
            "choice" the values to draw from; one int is fixed.
        max_size: of the longer edge.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = _BILINEAR,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise ValueError(f'sample_style must be "range" or "choice", got {sample_style!r}')
        self._init(locals())
        if isinstance(short_edge_length, int):
            self.short_edge_length = (short_edge_length, short_edge_length)
        elif sample_style == "range" and len(short_edge_length) != 2:
            raise ValueError(f"a range needs two values, got {short_edge_length}")
        self.is_range = sample_style == "range"

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize for this image; a drawn length of 0 means no change."""
        lengths = self.short_edge_length
        if self.is_range:
            length = np.random.randint(lengths[0], lengths[1] + 1)
        else:
            length = np.random.choice(lengths)
        if length == 0:
            return NoOpTransform()
        height, width = image.shape[:2]
        new_h, new_w = self.get_output_shape(height, width, length, self.max_size)
        return ResizeTransform(height, width, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """The new (h, w), rounded half up."""
        shorter = min(oldh, oldw)
        length = float(short_edge_length)
        # The shorter edge is set, not computed, so that it is exact.
        sizes = [length if side == shorter else length / shorter * side for side in (oldh, oldw)]
        if max(sizes) > max_size:
            shrink = max_size / max(sizes)
            sizes = [side * shrink for side in sizes]
        return int(sizes[0] + 0.5), int(sizes[1] + 0.5)


class ResizeScale(Augmentation):
    """Fits the image into a target size scaled by a random factor (large-scale jitter).

    Ghiasi et al. 2021 use 0.1 .. 2 of a square, followed by :class:`FixedSizeCrop`.
    """

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = _BILINEAR,
    ) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize for this image."""
        scale = self._rand_range(self.min_scale, self.max_scale)
        size = np.array(image.shape[:2], dtype=float)
        target = scale * np.array([self.target_height, self.target_width])
        new_size = np.round(size * (target / size).min()).astype(int).tolist()
        return ResizeTransform(*image.shape[:2], *new_size, self.interp)


class RandomCrop(Augmentation):
    """Cuts out a random rectangle.

    Args:
        crop_type: how ``crop_size`` (h, w) reads: "relative", shares of the image;
            "relative_range", shares drawn from [crop_size, 1); "absolute", pixels (at most the
            image); "absolute_range", each edge drawn from [crop_size[0], crop_size[1]].
    """

    def __init__(self, crop_type: str, crop_size: tuple) -> None:
        super().__init__()
        kinds = ("relative_range", "relative", "absolute", "absolute_range")
        if crop_type not in kinds:
            raise ValueError(f"crop_type must be one of {kinds}, got {crop_type!r}")
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        """A crop at a uniformly drawn place."""
        height, width = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((height, width))
        if crop_h > height or crop_w > width:
            raise ValueError(f"a crop of {crop_h} x {crop_w} does not fit {height} x {width}")
        top = np.random.randint(height - crop_h + 1)
        left = np.random.randint(width - crop_w + 1)
        return CropTransform(left, top, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the crop for an image of (h, w)."""
        first, second = self.crop_size
        height, width = image_size
        if self.crop_type == "absolute":
            return min(first, height), min(second, width)
        if self.crop_type == "absolute_range":
            if first > second:
                raise ValueError(f"an empty range of crop sizes: {self.crop_size}")
            ranges = [(min(side, first), min(side, second)) for side in image_size]
            crop_h, crop_w = (np.random.randint(low, high + 1) for low, high in ranges)
            return crop_h, crop_w
        shares = np.array([first, second], dtype="float32")
        if self.crop_type == "relative_range":
            shares = shares + (1 - shares) * np.random.rand(2)
        return int(height * shares[0] + 0.5), int(width * shares[1] + 0.5)


class FixedSizeCrop(Augmentation):
    """Crops at random where the image is too large, and pads right and below where too small.

    Args:
        crop_size: (h, w). pad: whether to pad at all.
        pad_value, seg_pad_value: for image and labels.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        pad: bool = True,
        pad_value: float = 128.0,
        seg_pad_value: int = 255,
    ) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        """Crop, then pad."""
        size, target = np.array(image.shape[:2]), np.array(self.crop_size)
        kept = np.minimum(size, target)
        # One draw for both directions.
        top, left = np.round((size - kept) * np.random.uniform()).astype(int).tolist()
        below, right = (target - kept).tolist()
        # The transforms take x before y.
        (width, height), (crop_w, crop_h) = size[::-1].tolist(), kept[::-1].tolist()
        crop = CropTransform(left, top, crop_w, crop_h, width, height)
        if not self.pad:
            return TransformList([crop])
        values = self.pad_value, self.seg_pad_value
        return TransformList([crop, PadTransform(0, 0, right, below, crop_w, crop_h, *values)])


class RandomExtent(Augmentation):
    """A rectangle of random size and place, possibly reaching outside the image.

    Args:
        scale_range: (low, high) of its size relative to the image.
        shift_range: (x, y) extent of the shift of its centre, relative to the image.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        """The rectangle for this image, at the size it has."""
        size = np.array(image.shape[1::-1], dtype=float)  # w, h
        half = 0.5 * size * np.random.uniform(*self.scale_range)
        draws = np.array([np.random.rand(), np.random.rand()])
        centre = size * (0.5 + np.asarray(self.shift_range) * (draws - 0.5))
        (x0, y0), (x1, y1) = centre - half, centre + half
        return ExtentTransform((x0, y0, x1, y1), (int(y1 - y0), int(x1 - x0)))


class _RandomIntensity(Augmentation):
    """Blends with another image by a weight drawn from [intensity_min, intensity_max]."""

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self._init(locals())

    def _reference(self, image: np.ndarray) -> np.ndarray | float:
        raise NotImplementedError

    def get_transform(self, image: np.ndarray) -> Transform:
        """The blend for this image; weight 1 keeps it as it is."""
        low, high = self.intensity_min, self.intensity_max
        weight = np.random.uniform(low, high)
        return BlendTransform(self._reference(image), src_weight=1 - weight, dst_weight=weight)


class RandomBrightness(_RandomIntensity):
    """Towards black (< 1) or away from it (> 1)."""

    def _reference(self, image: np.ndarray) -> float:
        return 0.0


class RandomContrast(_RandomIntensity):
    """Towards the mean grey or away from it."""

    def _reference(self, image: np.ndarray) -> float:
        return image.mean()


class RandomSaturation(_RandomIntensity):
    """Towards the greyscale image or away from it; expects RGB."""

    def _reference(self, image: np.ndarray) -> np.ndarray:
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"RandomSaturation needs an RGB image, got shape {image.shape}")
        luma = np.array([[0.299], [0.587], [0.114]])
        return image @ luma


class RandomLighting(Augmentation):
    """Adds a random mixture of ImageNet's colour components (Krizhevsky et al. 2012, 4.1).

    Args:
        scale: standard deviation of the mixture; expects RGB.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        # Standard deviation of each component, and the component (as a column).
        deviations = (0.2175, 0.0188, 0.0045)
        red = (-0.5675, 0.7192, 0.4009)
        green = (-0.5808, -0.0045, -0.8140)
        blue = (-0.5836, -0.6948, 0.4203)
        self.eigen_vals, self.eigen_vecs = np.array(deviations), np.array((red, green, blue))
        self.scale = scale

    def get_transform(self, image: np.ndarray) -> Transform:
        """One colour offset for the whole image."""
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"RandomLighting needs an RGB image, got shape {image.shape}")
        draws = np.random.normal(0.0, self.scale, size=3)
        mixture = self.eigen_vals * draws
        return BlendTransform(self.eigen_vecs.dot(mixture), src_weight=1.0, dst_weight=1.0)
