#!/usr/bin/env python3
"""Trains Mask2Former from random weights on four images of the generated sample, and tests on them.

    python benchmarks/mask2former_overfit.py --record

A model whose targets, losses or results are wrong does not get far on images that it knows: mask
AP50 must exceed 90. It says nothing about images that it does not know. A few CPU minutes on one
core; an interrupted run continues.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from results import measurement, record
from stages import ROOT

from pseudolabel.errors import DataError
from pseudolabel.files import read_json, write_json

CONFIG = ROOT / "projects/mask2former/configs/sample.yaml"
OUTPUT = ROOT / "output/mask2former_overfit"
IMAGES = 4
CONDITION = 90.0


def with_images(data: dict[str, Any], ids: Collection[int]) -> dict[str, Any]:
    """A COCO JSON with some of its images and their annotations, in their order."""
    images = [image for image in data["images"] if image["id"] in ids]
    annotations = [a for a in data["annotations"] if a["image_id"] in ids]
    return {**data, "images": images, "annotations": annotations}


def first_images(source: Path, target: Path) -> int:
    """Writes a COCO JSON of the first images of another one; returns its number of instances."""
    data = read_json(source)
    part = with_images(data, {image["id"] for image in data["images"][:IMAGES]})
    write_json(target, part)
    return len(part["annotations"])


def train(json_file: Path, image_root: Path, output: Path, steps: int) -> float:
    """Runs tools/train_net.py; returns the CPU seconds of this call.

    Raises:
        subprocess.CalledProcessError: the training failed.
    """
    entries = [
        {"name": name, "json": str(json_file), "image_root": str(image_root)}
        for name in ("sample_train", "sample_val")
    ]
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--resume"]
    command += ["--config-file", str(CONFIG), "DATASETS.REGISTER", str(entries)]
    command += ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", str(steps)]
    # The test images are the training images, unflipped.
    command += ["INPUT.RANDOM_FLIP", "none", "SOLVER.CHECKPOINT_PERIOD", "50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def last_numbers(output: Path) -> dict[str, float]:
    """Every metric of a run by name, at its last value.

    Raises:
        DataError: the run was not evaluated.
    """
    path = output / "metrics.json"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    numbers = {key: value for line in lines for key, value in line.items()}
    if "segm/AP50" not in numbers:
        raise DataError(path, "holds no evaluation", "remove its folder and run this again")
    return numbers


def main(argv: list[str] | None = None) -> int:
    """Prints the numbers. Returns 0, or 1 where the condition does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=250, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--record", action="store_true", help="write docs/results")
    args = parser.parse_args(argv)
    output = args.output.resolve()
    data = output / "data"
    if not (data / "annotations/instances_train.json").is_file():
        make = [sys.executable, str(ROOT / "datasets/make_sample.py"), "--output", str(data)]
        subprocess.run(make, check=True)
    json_file = output / "first_images.json"
    instances = first_images(data / "annotations/instances_train.json", json_file)
    seconds = train(json_file, data / "images", output / "run", args.steps)
    numbers = last_numbers(output / "run")
    shown = {name: numbers[f"segm/{name}"] for name in ("AP", "AP50", "AP75")}
    print(f"{shown}, {seconds:.0f} CPU seconds")
    if args.record:
        text = (
            f"Mask2Former ({CONFIG.relative_to(ROOT)}) trained on the human masks of {IMAGES} "
            f"images of the sample ({instances} instances) and tested on the same images: a check "
            f"that the path from labels to results is whole. AP50 must exceed {CONDITION:g}."
        )
        row = [str(args.steps), *(f"{value:.1f}" for value in shown.values()), f"{seconds:.0f}"]
        header = ["steps", "mask AP", "AP50", "AP75", "CPU seconds"]
        raw = {"segm": shown, "cpu_seconds": seconds, "final_loss": numbers["total_loss"]}
        record(measurement("mask2former_overfit", text, header, [row], raw))
    return int(shown["AP50"] <= CONDITION)


if __name__ == "__main__":
    sys.exit(main())
