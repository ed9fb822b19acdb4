"""Outlines and surfaces of the generated sample (see make_sample.py).

Everything is built from + - * / sqrt, comparisons and `Generator.random`, which give the same bits
everywhere (IEEE 754), and never from sums over float arrays, whose order depends on the processor.

Shape legend: H, W image rows and columns; any array of points (u, v) keeps its own shape. Object
frame: u to the right, v down, the outline about within [-1, 1]². Colours are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
Points = tuple[np.ndarray, np.ndarray]
Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]

# cos and sin of multiples of 36 degrees, to keep libm out of the pixels.
TENTHS = (
    (1.0, 0.0),
    (0.8090169943749475, 0.5877852522924731),
    (0.30901699437494745, 0.9510565162951535),
    (-0.30901699437494745, 0.9510565162951535),
    (-0.8090169943749475, 0.5877852522924731),
    (-1.0, 0.0),
    (-0.8090169943749475, -0.5877852522924731),
    (-0.30901699437494745, -0.9510565162951535),
    (0.30901699437494745, -0.9510565162951535),
    (0.8090169943749475, -0.5877852522924731),
)


def between(rng: Rng, low: float, high: float) -> float:
    """One number from U(low, high)."""
    return low + (high - low) * float(rng.random())


def pick(rng: Rng, count: int) -> int:
    """One index from 0..count-1."""
    return min(int(rng.random() * count), count - 1)


def direction(rng: Rng) -> tuple[float, float]:
    """A unit vector of uniform direction, by rejection."""
    while True:
        x, y = between(rng, -1, 1), between(rng, -1, 1)
        square = x * x + y * y
        if 0.01 < square <= 1:
            length = float(np.sqrt(square))
            return x / length, y / length


def ramp(values: np.ndarray) -> np.ndarray:
    """Clip to [0, 1]."""
    return np.minimum(np.maximum(values, 0.0), 1.0)


def noise(rng: Rng, u: np.ndarray, v: np.ndarray, cell_u: float, cell_v: float) -> np.ndarray:
    """Smooth value noise in [0, 1] at non-negative points (u, v), lattice cell_u x cell_v."""
    gu, gv = u / cell_u, v / cell_v
    iu, iv = np.floor(gu).astype(np.int64), np.floor(gv).astype(np.int64)
    table = rng.random((int(iv.max()) + 2, int(iu.max()) + 2))
    fu, fv = gu - iu, gv - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    top = table[iv, iu] * (1 - fu) + table[iv, iu + 1] * fu
    low = table[iv + 1, iu] * (1 - fu) + table[iv + 1, iu + 1] * fu
    return top * (1 - fv) + low * fv


def polygon(corners: list[tuple[float, float]]) -> Inside:
    """Even-odd inside test of a closed polygon."""

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        result = np.zeros(u.shape, dtype=bool)
        for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1]):
            if v0 != v1:
                crosses = (v0 <= v) != (v1 <= v)
                result ^= crosses & (u < u0 + (v - v0) * ((u1 - u0) / (v1 - v0)))
        return result

    return inside


def star(rng: Rng) -> Inside:
    """Five points, each with its own length."""
    inner = between(rng, 0.45, 0.57)
    corners = []
    for k, (c, s) in enumerate(TENTHS):
        radius = between(rng, 0.88, 1.05) if k % 2 == 0 else inner * between(rng, 0.92, 1.08)
        corners.append((c * radius, s * radius))
    return polygon(corners)


def crescent(rng: Rng) -> Inside:
    """A disc without a smaller disc that bites its side."""
    offset, bite = between(rng, 0.47, 0.6), between(rng, 0.62, 0.74)

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        shifted = u - offset
        return (u * u + v * v <= 1) & (shifted * shifted + v * v > bite * bite)

    return inside


def cross(rng: Rng) -> Inside:
    """Two bars, of two widths, that meet off centre."""
    a, b = between(rng, 0.24, 0.36), between(rng, 0.24, 0.36)
    s, t = between(rng, -0.15, 0.15), between(rng, -0.25, 0.05)

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        bars = (np.abs(u - s) <= a) | (np.abs(v - t) <= b)
        return bars & (np.abs(u) <= 0.95) & (np.abs(v) <= 0.95)

    return inside


def arrow(rng: Rng) -> Inside:
    """A triangular head with barbs on a shaft."""
    shaft, neck = between(rng, 0.28, 0.38), between(rng, -0.1, 0.15)
    wing, barb = between(rng, 0.75, 0.95), between(rng, 0.0, 0.12)
    tail = -between(rng, 0.7, 0.9)
    upper = [(tail, -shaft), (neck, -shaft), (neck - barb, -wing), (1.0, 0.0)]
    return polygon([*upper, (neck - barb, wing), (neck, shaft), (tail, shaft)])


def leaf(rng: Rng) -> Inside:
    """A pointed oval, one side fuller than the other, with a stalk."""
    full, thin = between(rng, 0.52, 0.72), between(rng, 0.3, 0.5)
    lean = between(rng, -0.25, 0.25)

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        bow = (1 - u * u) * (1 + lean * u)
        blade = (np.abs(u) <= 1) & (v <= bow * full) & (v >= -bow * thin)
        stalk = (u < -0.9) & (u > -1.35) & (np.abs(v) <= 0.07)
        return blade | stalk

    return inside


def boomerang(rng: Rng) -> Inside:
    """Two arms with round ends that meet at an angle."""
    thick = between(rng, 0.28, 0.36)
    arms = [(between(rng, 0.72, 0.95), between(rng, 0.6, 0.85) * side) for side in (-1, 1)]

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u = u + 0.45
        result = np.zeros(u.shape, dtype=bool)
        for x, y in arms:
            along = ramp((u * x + v * y) / (x * x + y * y))
            du, dv = u - along * x, v - along * y
            result |= du * du + dv * dv <= thick * thick * (1.25 - 0.5 * along)
        return result

    return inside


def soft_stripes(coordinate: np.ndarray, duty: float = 0.5) -> np.ndarray:
    """Stripes of period 1, in [0, 1] with soft flanks; `duty` is the share of ones."""
    phase = coordinate - np.floor(coordinate)
    return ramp((np.abs(2 * phase - 1) - (1 - duty)) * 4 + 0.5)


def soft_dots(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Round dots of the given radius on a staggered lattice of period 1."""
    row = np.floor(b)
    a = a + (row - 2 * np.floor(row / 2)) * 0.5
    da, db = a - np.floor(a) - 0.5, b - row - 0.5
    return ramp((radius - np.sqrt(da * da + db * db)) * 6 + 0.5)


def soft_checks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Chequerboard of period 1."""
    p, q = soft_stripes(a), soft_stripes(b)
    return p * (1 - q) + q * (1 - p)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB (3,) of a colour; hue in turns."""
    channels = []
    for shift in (0.0, 2 / 3, 1 / 3):
        h = (hue + shift) % 1.0 * 6.0
        share = min(max(abs(h - 3.0) - 1.0, 0.0), 1.0)
        channels.append(value * (1 - saturation + saturation * share))
    return np.array(channels)


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """a where share is 0, b where it is 1; share (H, W) against colours (3,) or (H, W, 3)."""
    share = np.asarray(share)[..., None]
    return a * (1 - share) + b * share


CLASSES: dict[str, tuple[Callable[[Rng], Inside], str, tuple[float, float]]] = {
    "star": (star, "dots", (-0.03, 0.05)),
    "crescent": (crescent, "bands", (0.10, 0.16)),
    "cross": (cross, "checks", (0.47, 0.55)),
    "arrow": (arrow, "stripes", (0.74, 0.86)),
    "leaf": (leaf, "veins", (0.24, 0.37)),
    "boomerang": (boomerang, "speckle", (0.58, 0.66)),
}
"""Name -> (outline, surface pattern, hue range in turns)."""


def surface(
    rng: Rng,
    pattern: str,
    hues: tuple[float, float],
    points: Points,
    scale: float,
    dull: np.ndarray,
) -> np.ndarray:
    """Colours (..., 3) of an object's surface at the points (u, v) of its frame.

    Args:
        pattern, hues: as in `CLASSES`.
        scale: pixels per unit of the object frame; a pattern has the same size on the image for
            all objects but the smallest.
        dull: (3,) colour of the background near by, which the second tone leans to.
    """
    u, v = points
    x, y = u * scale + 400.0, v * scale + 400.0  # pixels, non-negative
    period = min(between(rng, 5.5, 9.0), max(3.5, scale * 0.55))
    hue, vivid = between(rng, *hues), between(rng, 0.45, 0.85)
    first = hsv(hue, vivid, between(rng, 0.5, 0.9))
    plain = hsv(hue + between(rng, -0.05, 0.05), between(rng, 0.05, 0.35), between(rng, 0.2, 0.95))
    second = mix(plain, dull, between(rng, 0.5, 0.95))
    if pattern == "dots":
        share = soft_dots(x / period, y / period, between(rng, 0.3, 0.38))
    elif pattern == "bands":
        share = soft_stripes(np.sqrt((x - 395) * (x - 395) + (y - 400) * (y - 400)) / period, 0.45)
    elif pattern == "checks":
        share = soft_checks(x / (period * 1.3), y / (period * 1.3))
    elif pattern == "stripes":
        share = soft_stripes((x + 0.4 * y) / period, 0.45)
    elif pattern == "veins":
        share = soft_stripes((x + np.abs(y - 400.0)) / period, 0.38)
        share = np.maximum(share, ramp(1.6 - np.abs(y - 400.0)))
    elif pattern == "speckle":
        share = ramp((noise(rng, x, y, period * 0.4, period * 0.4) - 0.55) * 5)
    else:
        raise ValueError(f"no pattern is called {pattern!r}")
    colours = mix(first, second, share * between(rng, 0.75, 1.0))
    mottle = noise(rng, x, y, 14.0, 14.0) * 0.3 + noise(rng, x, y, 3.0, 3.0) * 0.14
    tilt = (u * between(rng, -1, 1) + v * between(rng, -1, 1)) * 0.2
    return colours * (0.8 + mottle + tilt)[..., None]
