"""Colour jitter of SSD (Liu et al., ECCV 2016), in numpy alone."""

import random
from collections.abc import Callable

import numpy as np
from fvcore.transforms.transform import Transform

__all__ = ["ColorAugSSDTransform"]

# 8-bit HSV: hue in half degrees, [0, 180); saturation and value in [0, 255].
_HUES = 180
# Fixed-point reciprocals with 12 bits behind the point, as 8-bit conversions use them everywhere;
# with exact division, values would differ by one here and there.
_BITS = 12
_COUNT = np.maximum(np.arange(256), 1)
_SATURATION_STEP = np.rint((255 << _BITS) / _COUNT).astype(np.int64)
_HUE_STEP = np.rint((_HUES << _BITS) / (6.0 * _COUNT)).astype(np.int64)


def _fixed_point(product: np.ndarray) -> np.ndarray:
    return (product + (1 << (_BITS - 1))) >> _BITS


def _coin() -> bool:
    return random.randrange(2) == 1


def bgr_to_hsv(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 BGR to 8-bit HSV."""
    blue, green, red = np.moveaxis(image.astype(np.int64), -1, 0)
    value = np.maximum(np.maximum(blue, green), red)
    spread = value - np.minimum(np.minimum(blue, green), red)
    saturation = _fixed_point(spread * _SATURATION_STEP[value])
    sector = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    hue = _fixed_point(sector * _HUE_STEP[spread]) % _HUES
    return np.stack([hue, saturation, value], axis=-1).astype(np.uint8)


def hsv_to_bgr(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) 8-bit HSV to uint8 BGR.

    Cut to whole numbers, not rounded, since the usual vectorised conversion does the same.
    """
    hue = image[..., 0].astype(np.int64)
    saturation, value = np.moveaxis(image[..., 1:] * np.float32(1 / 255), -1, 0)
    sixth = _HUES // 6
    channels = []
    # Each channel is full on a third of the circle, absent on another, linear between.
    for shift in (1, 3, 5):
        position = (hue + shift * sixth) % _HUES
        climb = np.minimum(position, 4 * sixth - position).clip(0, sixth).astype(np.float32)
        channels.append(value * (1 - saturation * (climb / sixth)))
    return (np.stack(channels, axis=-1) * np.float32(255)).astype(np.uint8)


class ColorAugSSDTransform(Transform):
    """Brightness, contrast, saturation and hue, each jittered with probability 1/2.

    The numbers are drawn, from Python's generator, when an image comes, so a second image gets
    other colours. Coordinates and label maps stay.
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: float = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ):
        """
        Args:
            img_format: "BGR" or "RGB".
            brightness_delta: at most so much is added to or taken from all channels, of 255.
            contrast_low, contrast_high: bounds of a factor on all channels.
            saturation_low, saturation_high: bounds of a factor on the saturation.
            hue_delta: the hue turns by at most so many half degrees.
        """
        super().__init__()
        assert img_format in ("BGR", "RGB"), f"img_format must be BGR or RGB, got {img_format!r}"
        self.is_rgb = img_format == "RGB"
        self.brightness_delta = brightness_delta
        self.contrast_low, self.contrast_high = contrast_low, contrast_high
        self.saturation_low, self.saturation_high = saturation_low, saturation_high
        self.hue_delta = hue_delta

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Points stay where they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Labels stay what they are."""
        return segmentation

    def apply_image(self, img: np.ndarray, interp: str | None = None) -> np.ndarray:
        """Jitter an (H, W, 3) uint8 image.

        Raises:
            TypeError: for an image of another type.
        """
        if img.dtype != np.uint8:
            raise TypeError(f"colours are jittered in uint8, got an image of {img.dtype}")
        order = [2, 1, 0] if self.is_rgb else [0, 1, 2]
        img = self.brightness(img[:, :, order])
        early = _coin()
        steps: list[Callable[[np.ndarray], np.ndarray]] = [self.saturation, self.hue]
        steps.insert(0 if early else len(steps), self.contrast)
        for step in steps:
            img = step(img)
        return img[:, :, order]

    def convert(self, img: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
        """``alpha * img + beta``, cut to 0 .. 255 and to whole numbers; uint8."""
        moved = alpha * img.astype(np.float32) + beta
        return moved.clip(min=0, max=255).astype(np.uint8)

    def brightness(self, img: np.ndarray) -> np.ndarray:
        """Perhaps lighter or darker."""
        if _coin():
            most = self.brightness_delta
            shift = random.uniform(-most, most)
            img = self.convert(img, beta=shift)
        return img

    def contrast(self, img: np.ndarray) -> np.ndarray:
        """Perhaps more or less contrast."""
        if _coin():
            bounds = self.contrast_low, self.contrast_high
            img = self.convert(img, alpha=random.uniform(*bounds))
        return img

    def saturation(self, img: np.ndarray) -> np.ndarray:
        """Perhaps paler or more vivid; BGR."""
        if not _coin():
            return img
        hsv, bounds = bgr_to_hsv(img), (self.saturation_low, self.saturation_high)
        hsv[..., 1] = self.convert(hsv[..., 1], alpha=random.uniform(*bounds))
        return hsv_to_bgr(hsv)

    def hue(self, img: np.ndarray) -> np.ndarray:
        """Perhaps another hue; BGR."""
        if not _coin():
            return img
        hsv, most = bgr_to_hsv(img), self.hue_delta
        turn = random.randint(-most, most)
        hsv[..., 0] = (hsv[..., 0].astype(np.int64) + turn) % _HUES
        return hsv_to_bgr(hsv)
