"""Self-made segmentation exercises: a random blob of one image, pasted on another.

The blob's outline is known because we drew it, so a mask network can practise on images without a
single label, neither mask nor box. What it learns is to tell the thing that fills a box from what
surrounds it. Outlines are generic (wavy discs, polygons, their unions and differences).

Legend: H, W image size; s side of a blob in pixels. All randomness comes from the given generator.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

WAVES = np.arange(1, 7)
# Largest share of the radius that each wave may add; long waves bend, short ones fray.
WAVE_SHARES = np.array([0.15, 0.5, 0.5, 0.45, 0.45, 0.35])
# Range of the squares that are repeated in mirrors, pixels.
TILE_SIDES = (10, 48)
MIN_PIXELS = 40
ATTEMPTS = 20


class Exercise(NamedTuple):
    """image uint8 (H, W, 3); mask bool (H, W) of its blob; box (4,) XYXY, tight around the mask."""

    image: np.ndarray
    mask: np.ndarray
    box: np.ndarray


def wavy_disc(rng: np.random.Generator, side: int) -> np.ndarray:
    """A disc of random aspect and rotation whose radius waves with the angle; bool (s, s)."""
    amplitude = rng.uniform(0, 1, 6) * WAVE_SHARES * (rng.random(6) < 0.45)
    phase = rng.uniform(0, 2 * np.pi, 6)
    aspect, turn = np.exp(rng.uniform(-0.7, 0.7)), rng.uniform(0, np.pi)
    rows, columns = np.mgrid[:side, :side] + 0.5
    centre = side / 2 + rng.uniform(-0.1, 0.1, 2) * side
    y, x = rows - centre[0], columns - centre[1]
    u = (x * np.cos(turn) + y * np.sin(turn)) * np.sqrt(aspect)
    v = (y * np.cos(turn) - x * np.sin(turn)) / np.sqrt(aspect)
    angle = np.arctan2(v, u)[..., None]
    waves = (amplitude * np.cos(WAVES * angle + phase)).sum(-1)
    return np.hypot(u, v) < np.maximum(0.36 * side * (1 + waves), 0.06 * side)


def polygon(rng: np.random.Generator, side: int) -> np.ndarray:
    """A star-shaped polygon with 3 to 7 corners; bool (s, s)."""
    corners = int(rng.integers(3, 8))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(0.2, 0.5, corners) * side
    points = np.stack([side / 2 + radii * np.cos(angles), side / 2 + radii * np.sin(angles)], 1)
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=1)
    return np.asarray(canvas) > 0


def random_blob(rng: np.random.Generator, side: int) -> np.ndarray:
    """A wavy disc or a polygon, now and then with a second one added or cut away; bool (s, s)."""

    def part() -> np.ndarray:
        return (wavy_disc if rng.random() < 0.6 else polygon)(rng, side)

    blob, choice = part(), rng.random()
    if choice < 0.25:
        blob = blob | np.roll(part(), rng.integers(-(side // 4), side // 4 + 1, 2), (0, 1))
    elif choice < 0.4:
        blob = blob & ~np.roll(part(), rng.integers(-(side // 2), side // 2 + 1, 2), (0, 1))
    return blob


def borrowed_texture(rng: np.random.Generator, image: np.ndarray, side: int) -> np.ndarray:
    """A square of an image's texture, turned and recoloured; float32 (s, s, 3).

    Either a large square of the image, enlarged up to four times, which brings edges along, or a
    small one repeated in mirrors, which is one material at its own scale.
    """
    height, width = image.shape[:2]
    mirrored = rng.random() < 0.5
    wanted = np.exp(rng.uniform(*np.log(TILE_SIDES))) if mirrored else side * rng.uniform(0.25, 1)
    extent = int(np.clip(wanted, min(8, height, width), min(height, width)))
    y, x = rng.integers(0, height - extent + 1), rng.integers(0, width - extent + 1)
    patch = np.rot90(image[y : y + extent, x : x + extent], rng.integers(4))
    if mirrored:
        missing = max(side - extent, 0)
        texture = np.pad(patch, ((0, missing), (0, missing), (0, 0)), mode="symmetric")
        texture = texture[:side, :side].astype(np.float32)
    else:
        enlarged = Image.fromarray(patch).resize((side, side), Image.Resampling.BICUBIC)
        texture = np.asarray(enlarged, dtype=np.float32)
    if rng.random() < 0.7:
        texture = texture[..., rng.permutation(3)]
    mean = texture.mean((0, 1))
    contrast, brightness = rng.uniform(0.7, 1.3, 2)
    return (texture - mean) * contrast + mean * brightness + rng.uniform(-15, 15, 3)


def paste_blob(
    rng: np.random.Generator, canvas: np.ndarray, source: np.ndarray, side: int, centre: np.ndarray
) -> np.ndarray:
    """Pastes one blob with the texture of `source` on `canvas` (float, H x W x 3), in place.

    Returns:
        bool (H, W), the pixels that it covers; a blob may stick out of the canvas.
    """
    height, width = canvas.shape[:2]
    covered = np.zeros((height, width), bool)
    blob, texture = random_blob(rng, side), borrowed_texture(rng, source, side)
    top, left = (int(value) for value in centre - side / 2)
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + side, height), min(left + side, width)
    if y1 <= y0 or x1 <= x0:
        return covered
    inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    covered[y0:y1, x0:x1] = blob[inner]
    canvas[y0:y1, x0:x1][blob[inner]] = texture[inner][blob[inner]]
    return covered


def make_exercise(
    rng: np.random.Generator, base: np.ndarray, sources: list[np.ndarray]
) -> Exercise:
    """One blob to segment on `base`, among others, with up to three smaller ones in front of it.

    Args:
        rng: the only source of randomness.
        base: uint8 (H, W, 3), the background.
        sources: images that lend their textures.

    Raises:
        RuntimeError: no blob left enough visible pixels (an image of a few pixels).
    """
    height, width = base.shape[:2]
    size = np.array([height, width])
    largest = 0.9 * min(height, width)
    log_sides = np.log(min(24, largest)), np.log(largest)

    def paste(side: float, centre: np.ndarray) -> np.ndarray:
        source = sources[rng.integers(len(sources))]
        return paste_blob(rng, canvas, source, max(int(side), 8), centre)

    for _ in range(ATTEMPTS):
        canvas = base.astype(np.float32)
        for _ in range(rng.integers(0, 3)):
            paste(np.exp(rng.uniform(*log_sides)), rng.uniform(0, 1, 2) * size)
        side = np.exp(rng.uniform(*log_sides))
        centre = rng.uniform(0, 1, 2) * size
        mask = paste(side, centre)
        for _ in range(rng.integers(0, 4)):
            shift = rng.uniform(-0.6, 0.6, 2) * side
            mask = mask & ~paste(side * rng.uniform(0.2, 0.7), centre + shift)
        if mask.sum() >= MIN_PIXELS:
            break
    else:
        raise RuntimeError(f"no visible blob on a {width}x{height} image")
    noisy = canvas + rng.normal(0, 2, canvas.shape)
    rows, columns = np.nonzero(mask)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=float)
    return Exercise(np.clip(noisy, 0, 255).astype(np.uint8), mask, box)
