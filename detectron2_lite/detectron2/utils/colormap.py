"""Colours to tell objects and classes apart.

The palette is computed, not listed: hues step by the golden ratio, which spreads any number of
consecutive entries over the colour circle, and strength and brightness take turns.
"""

from __future__ import annotations

import colorsys
import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

SIZE = 64
GOLDEN_RATIO = (5**0.5 - 1) / 2
# Saturation and value. Neighbours in hue lie 13, 21, 34 or 55 entries apart: none is a multiple of
# the number of tones, so they differ in tone.
TONES = ((0.85, 1.0), (0.95, 0.75), (0.5, 0.95), (0.75, 0.5))


def _palette() -> np.ndarray:
    rows = [
        colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1.0, *TONES[index % len(TONES)])
        for index in range(SIZE)
    ]
    return np.asarray(rows, dtype=np.float32)


PALETTE = _palette()


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """The whole palette, always in the same order.

    Args:
        rgb: channels as RGB; otherwise BGR, OpenCV's order.
        maximum: the value of full intensity, 255 or 1.

    Returns:
        (64, 3) float32, a fresh array.
    """
    assert maximum in (1, 255), f"maximum is 255 or 1, not {maximum}"
    return np.ascontiguousarray(PALETTE if rgb else PALETTE[:, ::-1]) * np.float32(maximum)


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One colour of the palette, drawn with numpy's global generator.

    Args:
        rgb: channels as RGB; otherwise BGR.
        maximum: the value of full intensity, 255 or 1.

    Returns:
        (3,) float32.
    """
    return colormap(rgb, maximum)[np.random.randint(SIZE)]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """Different colours of the palette, drawn with Python's global generator.

    Args:
        N: how many, at most the size of the palette.
        rgb: channels as RGB; otherwise BGR.
        maximum: the value of full intensity, 255 or 1.

    Returns:
        N arrays of shape (3,), float32.

    Raises:
        ValueError: the palette has fewer colours.
    """
    if not 0 <= N <= SIZE:
        raise ValueError(f"The palette has {SIZE} different colours, {N} were asked for")
    colors = colormap(rgb, maximum)
    return [colors[index] for index in random.sample(range(SIZE), N)]
