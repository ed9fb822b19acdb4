#!/usr/bin/env python3
"""Prints speed ratios, measured side by side in one process (part of `make bench`, < 3 minutes).

    python benchmarks/speed.py

Both sides of a ratio take turns, on one thread, in CPU time, so that another load on the machine
changes neither much; the median of their paired ratios is printed with the smallest and largest.

Shape legend: B crops, M map side, K neighbours.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from torch import Tensor

from mal.mask_auto_labeler import MaskAutoLabeler
from mal.mean_field import EPSILON, mean_field, mean_field_kernel
from masksmith import new_config
from pseudolabel.masks import encode_rle, rle_from_patch

ROOT = Path(__file__).resolve().parent.parent
MAL_CONFIG = ROOT / "configs/mal/sample.yaml"
LOW, HIGH = 0.1, 0.9
# Rounding of products of 9 powers over 100 iterations; a real difference is far larger.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Ratio:
    """Paired CPU times of two ways: medians in ms, and median, smallest and largest ratio."""

    first_ms: float
    second_ms: float
    median: float
    smallest: float
    largest: float


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    repeats: int,
    calls: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> Ratio:
    """Times `first` and `second` alternately and gives first / second.

    Args:
        repeats: timed pairs; one pair before them warms up and does not count.
        calls: calls per timing, for what is too short for the clock.
        clock: seconds.
    """

    def timed(work: Callable[[], object]) -> float:
        started = clock()
        for _ in range(calls):
            work()
        return (clock() - started) / calls

    pairs = []
    for index in range(repeats + 1):
        # Neither side always finds the caches as the other has left them.
        if index % 2:
            later, earlier = timed(second), timed(first)
            pairs.append((earlier, later))
        else:
            pairs.append((timed(first), timed(second)))
    ratios = [a / b for a, b in pairs[1:]]
    medians = (1000 * statistics.median(column) for column in zip(*pairs[1:]))
    return Ratio(*medians, statistics.median(ratios), min(ratios), max(ratios))


def naive_mean_field(initial: Tensor, box_mask: Tensor, kernel: Tensor, iterations: int) -> Tensor:
    """The update as the paper writes it: products of powers of probabilities; soft (B, M, M)."""
    side = round(kernel.shape[1] ** 0.5)
    q = initial.clamp(LOW, HIGH)
    for _ in range(iterations):
        # A neighbour outside has kernel 0, so that its value does not matter.
        padded = F.pad(q[:, None], [side // 2] * 4, value=0.5)
        near = F.unfold(padded, side).view_as(kernel)
        foreground = box_mask * near.pow(kernel).prod(dim=1)
        background = (1 - near).pow(kernel).prod(dim=1)
        q = (foreground / (foreground + background + EPSILON)).clamp(LOW, HIGH)
    return q


def mean_field_ratio(map_side: int, batch: int, repeats: int, iterations: int = 100) -> Ratio:
    """Naive / fast mean field on smooth random images, boxes as in training crops.

    Raises:
        AssertionError: the two do not compute the same.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 3, map_side // 4, map_side // 4, generator=generator)
    image = F.interpolate(coarse, size=(map_side, map_side), mode="bilinear")
    kernel = mean_field_kernel(image)
    # The mean training crop is 1.6 times its box: margins of .3 of the box on each side.
    edge = round(map_side * 0.3 / 1.6)
    box = torch.zeros(batch, map_side, map_side)
    box[:, edge : map_side - edge, edge : map_side - edge] = 1.0
    start = box * torch.rand(box.shape, generator=generator)
    fast = mean_field(start, box, kernel, iterations, LOW, HIGH, hard=False)
    difference = (fast - naive_mean_field(start, box, kernel, iterations)).abs().max()
    assert difference < TOLERANCE, f"fast and naive mean field differ by {difference}"
    return compare(
        lambda: naive_mean_field(start, box, kernel, iterations),
        lambda: mean_field(start, box, kernel, iterations, LOW, HIGH),
        repeats,
    )


def mal_step_ratio(repeats: int, batch: int = 8) -> Ratio:
    """MAL's training step / the network passes that no such method can do without.

    Above: forward with both losses, backward, teacher update. Below: student forward and backward
    of a plain mean, teacher forward. Data loading and the optimizer are in neither.
    """
    cfg = new_config()
    cfg.merge_from_file(str(MAL_CONFIG))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = MaskAutoLabeler(cfg).train()
    # Past the warm-ups, so that both losses have weight.
    model.steps += max(cfg.MODEL.MAL.MIL_WARMUP, cfg.MODEL.MAL.CRF_WARMUP)
    samples = [_crop(cfg.MODEL.MAL.CROP_SIZE, seed) for seed in range(batch)]
    images = model.normalize(torch.stack([sample["student_view"] for sample in samples]))
    areas = torch.tensor([sample["box_area"] for sample in samples])

    def step() -> None:
        model.zero_grad()
        sum(model(samples).values()).backward()
        model.update_teacher()

    def passes() -> None:
        model.zero_grad()
        model.student(images, areas).sigmoid().mean().backward()
        with torch.no_grad():
            model.teacher(images, areas).sigmoid()

    with EventStorage():
        return compare(step, passes, repeats)


def _crop(side: int, seed: int) -> dict:
    """A training sample of noise with a box in the middle, as `BoxCropMapper` makes them."""
    generator = torch.Generator().manual_seed(seed)
    view = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
    box = torch.zeros(side, side, dtype=torch.uint8)
    box[side // 5 : -side // 5, side // 5 : -side // 5] = 1
    area = float(int(box.sum()))
    return {"student_view": view, "teacher_view": view, "box_mask": box, "box_area": area}


def rle_ratio(patch_side: int, height: int, width: int, repeats: int, calls: int) -> Ratio:
    """Encoding on a full canvas / from the patch alone, for a disc in a box.

    Raises:
        AssertionError: the two codes differ.
    """
    grid = np.arange(patch_side) - (patch_side - 1) / 2
    patch = grid[:, None] ** 2 + grid[None, :] ** 2 <= (patch_side / 2) ** 2
    top, left = (height - patch_side) // 2, (width - patch_side) // 2

    def canvas() -> dict:
        mask = np.zeros((height, width), dtype=bool)
        mask[top : top + patch_side, left : left + patch_side] = patch
        return encode_rle(mask)

    def local() -> dict:
        return rle_from_patch(patch, top, left, height, width)

    assert canvas() == local(), "patch and canvas give different run-length codes"
    return compare(canvas, local, repeats, calls)


def main(argv: list[str] | None = None) -> None:
    """Prints one line per ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7, help="timed pairs (default: %(default)s)")
    repeats = parser.parse_args(argv).repeats
    torch.set_num_threads(1)
    print(f"CPU time, 1 thread, median of {repeats} pairs; [smallest, largest] ratio")
    for side, batch in ((48, 8), (128, 4)):
        name = f"mean field, {batch} maps of {side}x{side}, 100 iterations: naive / fast"
        show(name, mean_field_ratio(side, batch, repeats))
    name = f"MAL training step, 8 crops, {MAL_CONFIG.relative_to(ROOT)}: step / network passes"
    show(name, mal_step_ratio(repeats))
    for side, height, width in ((30, 256, 256), (100, 480, 640), (100, 1080, 1920)):
        name = f"run-length code, {side}x{side} box in {width}x{height}: canvas / patch"
        show(name, rle_ratio(side, height, width, repeats, calls=100))


def show(name: str, ratio: Ratio) -> None:
    """One line: the ratio with its spread and the two medians."""
    spread = f"[{ratio.smallest:.2f}, {ratio.largest:.2f}]"
    times = f"{ratio.first_ms:.3g} / {ratio.second_ms:.3g} ms"
    print(f"{name}: {ratio.median:.2f} {spread}  ({times})")


if __name__ == "__main__":
    main()
