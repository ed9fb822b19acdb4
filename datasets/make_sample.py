"""Write the generated sample data set: textured objects on textured grounds with exact masks.

    python datasets/make_sample.py --output datasets/sample [--seed 0]

The output has the COCO layout: `annotations/instances_{train,val}.json` and `images/*.png`. It is
made of numbers alone, so it may be used for anything (CC0). The same seed gives the same pixels on
every machine.

Shape legend: H = W = `SIZE` pixels; S = `FINE` samples per pixel and axis.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_rle
from sample_grounds import background
from sample_shapes import (
    CLASSES,
    Inside,
    Points,
    Rng,
    between,
    direction,
    mix,
    pick,
    surface,
)

SIZE = 192
FINE = 4
SCENES = {"train": 96, "val": 24}
MIN_OBJECTS, MAX_OBJECTS = 5, 10
MIN_VISIBLE_SHARE = 0.35
MIN_VISIBLE_PIXELS = 40
LARGE_AREA = 96**2
LARGE_VISIBLE_SHARE = 0.82
MAX_LYING_ON = 0.45
REACH = 1.55
"""Half side of the square of the object frame that surely holds an outline."""


@dataclass(frozen=True)
class Thing:
    """One placed object.

    Attributes:
        label: class name.
        coverage: (H, W) share of each pixel that the outline covers, multiples of 1/S².
        area: px² of the outline, were it neither hidden nor cut by the border.
        points: the object frame's u and v, each (H, W), at pixel centres.
        scale: pixels per unit of the object frame.
    """

    label: str
    coverage: np.ndarray
    area: float
    points: Points
    scale: float


def outline(rng: Rng, label: str) -> Inside:
    """A class's outline under a smooth quadratic warp of its own, in the object frame."""
    plain = CLASSES[label][0](rng)
    # Small enough to keep the plane from folding within REACH.
    bow_u, skew_u, bow_v, skew_v = (between(rng, -0.2, 0.2) for _ in range(4))

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        product = u * v
        return plain(u + bow_u * v * v + skew_u * product, v + bow_v * u * u + skew_v * product)

    return inside


def _unit_area(inside: Inside) -> float:
    step = 0.05
    line = (np.arange(int(2 * REACH / step)) + 0.5) * step - REACH
    return np.count_nonzero(inside(*np.meshgrid(line, line))) * step * step


def place(rng: Rng, label: str, area: float) -> Thing:
    """Draw an object of a class, of `area` px² if nothing hides it, somewhere on the image."""
    inside = outline(rng, label)
    stretch = between(rng, 0.85, 1.2)
    scale = float(np.sqrt(area / _unit_area(inside)))
    c, s = direction(rng)
    # Away from the border as far as the object's size permits, save for one in five.
    room = 0.0 if rng.random() < 0.2 else min(scale, SIZE * 0.42)
    cx, cy = between(rng, room, SIZE - room), between(rng, room, SIZE - room)

    def to_frame(x: np.ndarray, y: np.ndarray) -> Points:
        dx, dy = (x - cx) / scale, (y - cy) / scale
        return (c * dx + s * dy) / stretch, (c * dy - s * dx) * stretch

    reach = REACH * scale * 1.2
    x0, y0 = (max(int(middle - reach), 0) for middle in (cx, cy))
    x1, y1 = (min(int(middle + reach) + 1, SIZE) for middle in (cx, cy))
    x, y = np.arange(x0, x1), np.arange(y0, y1)
    hits = np.zeros((y1 - y0, x1 - x0), dtype=np.int64)
    for k in range(FINE * FINE):
        row, col = divmod(k, FINE)
        hits += inside(*to_frame(*np.meshgrid(x + (col + 0.5) / FINE, y + (row + 0.5) / FINE)))
    coverage = np.zeros((SIZE, SIZE))
    coverage[y0:y1, x0:x1] = hits / (FINE * FINE)
    centre = np.arange(SIZE) + 0.5
    return Thing(label, coverage, area, to_frame(*np.meshgrid(centre, centre)), scale)


def visible_masks(things: list[Thing]) -> list[np.ndarray]:
    """Masks (H, W) bool in painting order: a pixel is the last object's that covers half of it."""
    owner = np.full((SIZE, SIZE), -1)
    for index, thing in enumerate(things):
        owner[thing.coverage >= 0.5] = index
    return [owner == index for index in range(len(things))]


def target_areas(rng: Rng) -> list[float]:
    """Areas in px² for one scene's objects, of all three size bins, largest first."""
    count = MIN_OBJECTS + pick(rng, MAX_OBJECTS - MIN_OBJECTS + 1)
    large = 1 if rng.random() < 0.97 else 0
    medium = round((count - large) * between(rng, 0.35, 0.6))
    areas = [between(rng, 11000, 14500) for _ in range(large)]
    for _ in range(medium):
        share = float(rng.random())
        areas.append(1200 + 3800 * share * share)
    areas += [between(rng, 110, 980) for _ in range(count - large - medium)]
    return sorted(areas, reverse=True)


def compose(rng: Rng, scene: int) -> list[Thing]:
    """Objects from back to front; each is placed anew until all stay visible enough."""
    names = sorted(CLASSES)
    # Few classes per scene: neighbours often share their material, as in a heap of leaves. The
    # scene's number deals out one of them, so that no class is rare in a small split.
    palette = [names[scene % len(names)]]
    palette += [names[pick(rng, len(names))] for _ in range(1 + pick(rng, 3))]
    things: list[Thing] = []
    for area in target_areas(rng):
        for _ in range(40):
            trial = [*things, place(rng, palette[pick(rng, len(palette))], area)]
            if _is_readable(trial):
                things = trial
                break
    return things if len(things) >= MIN_OBJECTS else compose(rng, scene)


def _is_readable(things: list[Thing]) -> bool:
    """Whether every object stays visible enough and the newest lies mostly on free ground."""
    masks = visible_masks(things)
    for thing, mask in zip(things, masks):
        seen = np.count_nonzero(mask)
        share = LARGE_VISIBLE_SHARE if thing.area > LARGE_AREA else MIN_VISIBLE_SHARE
        if seen < max(MIN_VISIBLE_PIXELS, share * thing.area):
            return False
    below = np.zeros_like(masks[-1])
    for thing in things[:-1]:
        below |= thing.coverage >= 0.5
    hidden = np.count_nonzero(masks[-1] & below)
    return hidden <= MAX_LYING_ON * np.count_nonzero(masks[-1])


def _shifted(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    rows = np.clip(np.arange(SIZE) + dy, 0, SIZE - 1)
    cols = np.clip(np.arange(SIZE) + dx, 0, SIZE - 1)
    return image[rows][:, cols]


def _blurred(image: np.ndarray, side: float) -> np.ndarray:
    """Three-tap blur along both axes; `side` is the weight of each neighbour."""
    for dy, dx in ((1, 0), (0, 1)):
        both = _shifted(image, dy, dx) + _shifted(image, -dy, -dx)
        image = image * (1 - 2 * side) + both * side
    return image


def _dull_colour(rng: Rng, image: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Colour (3,) of one pixel just behind the object: what its second tone leans to."""
    rows, cols = np.nonzero(coverage > 0)
    k = pick(rng, len(rows))
    return image[rows[k], cols[k]].copy()


def paint(rng: Rng, things: list[Thing]) -> np.ndarray:
    """The scene as uint8 RGB (H, W, 3): ground, objects with a weak shadow, light, blur, grain."""
    litter = {thing.label: between(rng, *CLASSES[thing.label][2]) for thing in things}
    image = background(rng, SIZE, list(litter.values()))
    shift_y, shift_x = 1 + pick(rng, 3), pick(rng, 5) - 2
    for thing in things:
        shadow = _blurred(_shifted(thing.coverage, -shift_y, -shift_x), 0.3)
        image = image * (1 - 0.3 * shadow)[..., None]
        _, pattern, hues = CLASSES[thing.label]
        dull = _dull_colour(rng, image, thing.coverage)
        colours = surface(rng, pattern, hues, thing.points, thing.scale, dull)
        image = mix(image, colours, thing.coverage)
    line = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    c, s = direction(rng)
    light = 1 + between(rng, 0.05, 0.35) * (c * line[None, :] + s * line[:, None])
    image = _blurred(image * light[..., None], between(rng, 0.05, 0.18))
    grain = rng.random(image.shape) + rng.random(image.shape) - 1
    image = image + between(rng, 0.02, 0.05) * grain
    return np.clip(np.floor(image * 255 + 0.5), 0, 255).astype(np.uint8)


def annotation(mask: np.ndarray, identity: int, image_id: int, category_id: int) -> dict:
    """COCO annotation of one visible mask (H, W): tight box, exact run-length code."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    code = coco_rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    x0, y0 = int(cols[0]), int(rows[0])
    return {
        "id": identity,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, int(cols[-1]) + 1 - x0, int(rows[-1]) + 1 - y0],
        "area": int(np.count_nonzero(mask)),
        "iscrowd": 0,
        "segmentation": {"size": [SIZE, SIZE], "counts": code["counts"].decode("ascii")},
    }


def make_split(output: Path, split: str, seed: int, first_id: int) -> dict:
    """Paint one split's images below `output` and return its COCO dictionary."""
    names = sorted(CLASSES)
    images, annotations = [], []
    for image_id in range(first_id, first_id + SCENES[split]):
        rng = np.random.Generator(np.random.PCG64([seed, image_id]))
        things = compose(rng, image_id)
        pixels = paint(rng, things)
        file_name = f"{split}_{image_id:04d}.png"
        Image.fromarray(pixels).save(output / "images" / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": SIZE, "width": SIZE})
        for number, (thing, mask) in enumerate(zip(things, visible_masks(things)), 1):
            identity = image_id * 100 + number
            category = names.index(thing.label) + 1
            annotations.append(annotation(mask, identity, image_id, category))
    return {
        "info": {
            "description": "Generated scenes of textured objects, made by datasets/make_sample.py; "
            "no photograph and no person's work is in them. Public domain (CC0 1.0).",
            "version": "1",
            "seed": seed,
            "split": split,
        },
        "licenses": [
            {
                "id": 1,
                "name": "CC0 1.0",
                "url": "https://creativecommons.org/publicdomain/zero/1.0/",
            }
        ],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": k, "name": name, "supercategory": "shape"} for k, name in enumerate(names, 1)
        ],
    }


def make_sample(output: Path, seed: int = 0) -> dict[str, dict]:
    """Write both splits below `output` and return their COCO dictionaries by split name."""
    for folder in ("images", "annotations"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    result, first_id = {}, 1
    for split, count in SCENES.items():
        result[split] = make_split(output, split, seed, first_id)
        target = output / "annotations" / f"instances_{split}.json"
        partial = target.with_suffix(".json.partial")
        partial.write_text(json.dumps(result[split]), encoding="utf-8")
        partial.replace(target)
        first_id += count
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for split, content in make_sample(options.output, options.seed).items():
        counts = f"{len(content['images'])} images, {len(content['annotations'])} objects"
        print(f"{split}: {counts} in {options.output}")


if __name__ == "__main__":
    main()
