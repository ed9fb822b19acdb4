"""The student's view of a crop: colour changes only, so boxes and masks stay valid.

The teacher sees the (flipped) crop unchanged. ImageNet normalisation belongs to the model.
Legend: S side of the square crop.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

BLUR_RADIUS = (0.1, 2.0)


def student_view(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    jitter_prob: float = 0.5,
    gray_prob: float = 0.2,
    blur_prob: float = 0.5,
    blur_radius: tuple[float, float] = BLUR_RADIUS,
) -> np.ndarray:
    """Colour jitter, then grayscale, then Gaussian blur, each with its own probability.

    All random numbers are drawn before any is used: a call consumes the same amount of `rng`
    whatever happens, so samples stay reproducible when a probability is changed.

    Args:
        image: uint8 (S, S, 3), RGB.
        rng: the only source of randomness.
        brightness, contrast, saturation: factors are drawn from U(1 - value, 1 + value).
        hue: shift of the hue circle, drawn from U(-hue, hue) turns.
        jitter_prob, gray_prob, blur_prob: probability of each of the three steps.
        blur_radius: range of Pillow's Gaussian radius, pixels.

    Returns:
        uint8 (S, S, 3), a new array.

    Raises:
        ValueError: the image is not uint8 RGB.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected a uint8 RGB image, got {image.dtype} of shape {image.shape}")
    jitter, gray, blur = rng.uniform(size=3) < (jitter_prob, gray_prob, blur_prob)
    spread = np.array([brightness, contrast, saturation])
    factors = 1.0 + spread * rng.uniform(-1.0, 1.0, size=3)
    turn = hue * rng.uniform(-1.0, 1.0)
    radius = rng.uniform(*blur_radius)
    order = rng.permutation(4)

    view = Image.fromarray(image)
    if jitter:
        view = _jitter(view, factors, turn, order)
    if gray:
        view = view.convert("L").convert("RGB")
    if blur:
        view = view.filter(ImageFilter.GaussianBlur(radius))
    return np.array(view)


def _jitter(view: Image.Image, factors: np.ndarray, turn: float, order: np.ndarray) -> Image.Image:
    """Brightness, contrast, saturation and hue in the given order (3 stands for hue)."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for step in order:
        if step < len(enhancers):
            view = enhancers[step](view).enhance(float(factors[step]))
        else:
            view = _turn_hue(view, turn)
    return view


def _turn_hue(view: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = view.convert("HSV").split()
    # uint8 arithmetic wraps around, exactly as the hue circle does
    shifted = np.asarray(hue) + np.uint8(round(turn * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
