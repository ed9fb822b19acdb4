"""Backgrounds of the generated sample; the rules of sample_shapes.py hold here too."""

from __future__ import annotations

import numpy as np
from sample_shapes import Rng, between, direction, hsv, mix, noise, pick, ramp, soft_stripes


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = np.arange(size) + 0.5
    return np.broadcast_to(line[None, :], (size, size)), np.broadcast_to(
        line[:, None], (size, size)
    )


def _turned(rng: Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel grid in a randomly turned frame, shifted to be non-negative."""
    x, y = _grid(size)
    c, s = direction(rng)
    return c * x + s * y + 2.0 * size, c * y - s * x + 2.0 * size


def sand(rng: Rng, size: int) -> np.ndarray:
    """Grain over soft dunes."""
    x, y = _grid(size)
    dunes = noise(rng, x, y, between(rng, 24, 48), between(rng, 16, 40))
    return dunes * 0.5 + noise(rng, x, y, 5, 5) * 0.2 + noise(rng, x, y, 1.6, 1.6) * 0.3


def grass(rng: Rng, size: int) -> np.ndarray:
    """Long thin blades of two lengths."""
    a, b = _turned(rng, size)
    c, d = _turned(rng, size)
    blades = noise(rng, a, b, 14, 1.7) * 0.45 + noise(rng, c, d, 9, 1.9) * 0.35
    return blades + noise(rng, a, b, 40, 40) * 0.2


def pebbles(rng: Rng, size: int) -> np.ndarray:
    """Cells around jittered lattice points, each of one tone, with dark joints."""
    cell = between(rng, 9, 15)
    count = int(size / cell) + 3
    px, py, tone = (
        rng.random((count, count)),
        rng.random((count, count)),
        rng.random((count, count)),
    )
    x, y = _grid(size)
    gx, gy = x / cell + 1, y / cell + 1
    ix, iy = np.floor(gx).astype(np.int64), np.floor(gy).astype(np.int64)
    near = np.full(x.shape, 9.0)
    second, shade = near.copy(), np.zeros(x.shape)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            jx, jy = np.minimum(ix + dx, count - 1), np.minimum(iy + dy, count - 1)
            ex, ey = jx + px[jy, jx] - gx, jy + py[jy, jx] - gy
            distance = np.sqrt(ex * ex + ey * ey)
            closer = distance < near
            second = np.where(closer, near, np.minimum(second, distance))
            shade = np.where(closer, tone[jy, jx], shade)
            near = np.where(closer, distance, near)
    return (0.25 + 0.65 * shade) * ramp((second - near) * 4) + noise(rng, x, y, 3, 3) * 0.12


def planks(rng: Rng, size: int) -> np.ndarray:
    """Boards with grain and dark joints."""
    a, b = _turned(rng, size)
    width = between(rng, 14, 26)
    board = np.floor(b / width)
    tones = rng.random(int(board.max()) + 1)[board.astype(np.int64)]
    grain = noise(rng, a + tones * 60, b, 30, 1.8)
    joint = ramp((b - board * width) * 0.6)
    return (0.2 + 0.4 * tones + 0.35 * grain) * (0.35 + 0.65 * joint)


def weave(rng: Rng, size: int) -> np.ndarray:
    """Coarse cloth: threads that go over and under."""
    a, b = _turned(rng, size)
    period = between(rng, 4.0, 7.0)
    over = soft_stripes(a / period, 0.6) * 0.5 + soft_stripes(b / period, 0.6) * 0.35
    return over * 0.7 + noise(rng, a, b, 26, 26) * 0.3


def water(rng: Rng, size: int) -> np.ndarray:
    """Ripples bent by slow noise."""
    a, b = _turned(rng, size)
    bend = noise(rng, a, b, 28, 28) * 22 + noise(rng, a, b, 60, 60) * 30
    ripple = soft_stripes((b + bend) / between(rng, 9, 15), 0.5)
    return ripple * 0.45 + noise(rng, a, b, 20, 6) * 0.4 + noise(rng, a, b, 2, 2) * 0.15


def mist(rng: Rng, size: int) -> np.ndarray:
    """A gradient with large soft blotches."""
    a, b = _turned(rng, size)
    slope = (a - 2.0 * size) / (1.5 * size) * 0.5 + 0.5
    return ramp(slope) * 0.5 + noise(rng, a, b, 34, 34) * 0.35 + noise(rng, a, b, 2.2, 2.2) * 0.15


GROUNDS = (sand, grass, pebbles, planks, weave, water, mist)


def _tinted(rng: Rng, size: int, hue: float) -> np.ndarray:
    """One ground in three muted colours, dark, middle and light, of neighbouring hues."""
    level = ramp(GROUNDS[pick(rng, len(GROUNDS))](rng, size))
    value, span = between(rng, 0.4, 0.62), between(rng, 0.2, 0.36)
    tones = [
        hsv(hue + between(rng, -0.06, 0.06), between(rng, 0.1, 0.5), value + span * k)
        for k in (-1.0, 0.0, 1.0)
    ]
    low = mix(tones[0], tones[1], ramp(level * 2))
    return mix(low, tones[2], ramp(level * 2 - 1))


def _litter(rng: Rng, size: int, image: np.ndarray, hue: float) -> np.ndarray:
    """Strew irregular flecks of an object's hue, so that colour alone does not tell objects."""
    coarse = between(rng, 6.0, 11.0)
    specks = [noise(rng, *_turned(rng, size), cell, cell) for cell in (coarse, 6.0, 4.0)]
    amount = ramp((specks[0] + specks[1] + specks[2] - 3 * between(rng, 0.56, 0.64)) * 5)
    colour = hsv(hue, between(rng, 0.4, 0.8), between(rng, 0.4, 0.85))
    return mix(image, colour, amount * 0.85)


def background(rng: Rng, size: int, hues: list[float]) -> np.ndarray:
    """A background (H, W, 3): one ground, or two of them along a wavy border, with litter.

    Args:
        hues: of the scene's objects, in turns; the ground often comes close to one of them.
    """
    near = hues[pick(rng, len(hues))] + between(rng, -0.08, 0.08)
    hue = near if rng.random() < 0.6 else float(rng.random())
    image = _tinted(rng, size, hue)
    if rng.random() < 0.6:
        other = _tinted(rng, size, hue + between(rng, -0.25, 0.25))
        a, b = _turned(rng, size)
        border = noise(rng, a, b, 36, 36) * 60 + b - 2.0 * size - between(rng, -0.5, 0.6) * size
        image = mix(image, other, ramp(border * 0.5))
    for hue in hues:
        image = _litter(rng, size, image, hue)
    return image
