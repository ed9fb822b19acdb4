#!/usr/bin/env python3
"""Peak memory of the labelling job at 1x and 10x images: plan, one worker, merge.

    python benchmarks/job_memory.py [--images 20000] [--boxes-per-image 7] [--record]

Each stage runs in a process of its own; one image file stands in for all. The yardstick "ellipse"
labels, so that what is measured is the job and no network. Prints a table and, as ratio, what ten
times as many images cost.
"""

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pseudolabel.job.inputs import JobInput
from pseudolabel.job.merge import merge
from pseudolabel.job.options import JobOptions
from pseudolabel.job.plan import load_plan
from pseudolabel.job.run import prepare
from pseudolabel.job.worker import work
from pseudolabel.yardsticks import ellipse

SIDE = 96
# The same at both sizes; a small input would be cut finer by default.
SHARD_BOXES = 5000
STAGES = ("plan", "worker", "merge")
# Seconds, peak MB and growth MB of each stage.
Measured = dict[str, tuple[float, float, float]]


def write_input(folder: Path, images: int, boxes: int) -> None:
    """A boxes JSON written piece by piece, and its one image."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / "one.png")
    with open(folder / "boxes.json", "w", encoding="utf-8") as file:
        file.write('{"categories": [{"id": 1, "name": "thing"}], "images": [')
        for k in range(images):
            entry = {"id": k, "file_name": "one.png", "height": SIDE, "width": SIDE}
            file.write(", " * (k > 0) + json.dumps(entry))
        file.write('], "annotations": [')
        for k in range(images * boxes):
            x, y, w, h = rng.integers((0, 0, 8, 8), (SIDE - 8, SIDE - 8, 40, 40)).tolist()
            entry = {"id": k + 1, "image_id": k % images, "category_id": 1, "bbox": [x, y, w, h]}
            file.write(", " * (k > 0) + json.dumps({**entry, "area": w * h, "iscrowd": 0}))
        file.write("]}\n")


def stage(name: str, folder: Path, connection) -> None:
    """Runs one stage of the job; sends its seconds and the growth of its peak memory in MB."""
    before = peak_mb()
    begin = time.perf_counter()
    options = JobOptions(folder, folder / "labels.json", shard_boxes=SHARD_BOXES)
    if name == "plan":
        prepare(JobInput(folder, folder / "boxes.json"), ellipse(), options)
    else:
        plan = load_plan(options.job)
        if name == "worker":
            work(plan, plan.claiming_order(), ellipse(), options.job, folder)
        else:
            merge(plan, options.job, options.output)
    connection.send((time.perf_counter() - begin, peak_mb(), peak_mb() - before))


def peak_mb() -> float:
    """Largest resident set of this program so far; `getrusage` would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measure(images: int, boxes: int) -> Measured:
    """(seconds, peak MB, growth MB) of each stage."""
    folder, numbers = Path(tempfile.mkdtemp(prefix="job_memory.")), {}
    context = multiprocessing.get_context("spawn")
    try:
        write_input(folder, images, boxes)
        for name in STAGES:
            here, there = context.Pipe()
            process = context.Process(target=stage, args=(name, folder, there))
            process.start()
            # A stage that dies ends the wait below.
            there.close()
            numbers[name] = here.recv()
            process.join()
    finally:
        shutil.rmtree(folder)
    return numbers


def to_rows(small: Measured, large: Measured, boxes: int) -> list[list[str]]:
    """A row per stage; `boxes` is that of the smaller input."""
    rows = []
    for name in STAGES:
        peaks = [f"{peak:.0f} MB (+{more:.0f})" for _, peak, more in (small[name], large[name])]
        ratio = large[name][1] / small[name][1]
        rows.append([name, *peaks, f"{ratio:.2f}", f"{10 * boxes / large[name][0]:,.0f}"])
    return rows


def main() -> None:
    """Measures both sizes, prints the table, and records it if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000, help="of the smaller input")
    parser.add_argument("--boxes-per-image", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write docs/results")
    args = parser.parse_args()
    small, large = (measure(args.images * k, args.boxes_per_image) for k in (1, 10))
    boxes = args.images * args.boxes_per_image
    header = ["stage", f"{boxes:,} boxes", f"{10 * boxes:,} boxes", "peak, ratio"]
    header.append("boxes/s at 10x")
    rows = to_rows(small, large, boxes)
    # Not imported above: torch, which comes along, would weigh on every stage's process.
    from results import measurement, record
    from tables import markdown_table

    print(markdown_table(header, rows))
    if args.record:
        text = (
            "Largest resident memory of each stage of the labelling job (and its growth since the "
            f"start of the process), {args.images:,} and {10 * args.images:,} images with "
            f'{args.boxes_per_image} boxes each, labelled by the yardstick "ellipse" so that no '
            "network is measured; wall time, one worker."
        )
        columns = ("seconds", "peak_mb", "growth_mb")
        raw = {
            size: {name: dict(zip(columns, numbers)) for name, numbers in found.items()}
            for size, found in (("1x", small), ("10x", large))
        }
        record(measurement("job_memory", text, header, rows, raw))


if __name__ == "__main__":
    main()
