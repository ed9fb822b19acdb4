#!/usr/bin/env python3
"""Prints how many times faster than pycocotools our COCO mask evaluation is, at 1,000 images.

    python benchmarks/evaluation_speed.py --data $MASKSMITH_DATA/coco_dev

Data: real COCO images' annotations, repeated under new ids until there are 1,000 images, and 20 to
50 detections per image: its human masks shifted by a few pixels or cut off, with random scores. The
ratio depends on their classes, so it is given twice: with a few of another class, as from a
detector (few pairs of image and class with much overlap to compute), and with classes at random
(many small pairs).

Timed: from the ground truth as parsed and indexed, and the list of results with run-length codes as
strings, to the summary: loading of results, polygons to run-length codes, matching, accumulation
and means (ours with the AP of every class). Both take turns in one process, from fresh objects, and
their numbers must agree. CPU time counts that of all threads.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from results import measurement, record

from pseudolabel.ap import GroundTruth, average_precision
from pseudolabel.masks import decode_segmentation, encode_rle

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Percent; both sides count the same matches, so that rounding alone is left.
TOLERANCE = 1e-4
# Share of detections whose class is drawn at random.
OTHER_CLASS = (0.15, 1.0)
SHIFT = 4


def merge(files: list[Path]) -> dict:
    """One data set of several JSONs with the same classes."""
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    merged = {
        key: [record for part in parts for record in part[key]] for key in ("images", "annotations")
    }
    return {"info": {}, **merged, "categories": parts[0]["categories"]}


def detect(data: dict, other_class: float, rng: np.random.Generator) -> dict[int, list[dict]]:
    """20 to 50 made-up detections per image that has a mask, by image id; without scores."""
    by_image = defaultdict(list)
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    classes = [category["id"] for category in data["categories"]]
    found = {}
    for image in data["images"]:
        size = image["height"], image["width"]
        known = by_image[image["id"]]
        masks = [decode_segmentation(a["segmentation"], *size) for a in known]
        found[image["id"]] = rows = []
        for _ in range(int(rng.integers(20, 51)) if known else 0):
            index = int(rng.integers(len(known)))
            mask = np.roll(masks[index], rng.integers(-SHIFT, SHIFT + 1, 2), axis=(0, 1))
            if rng.random() < 0.3:
                mask[:, int(rng.integers(size[1])) :] = False
            other = rng.random() < other_class
            label = int(rng.choice(classes)) if other else known[index]["category_id"]
            rows.append({"category_id": label, "segmentation": encode_rle(mask)})
    return found


def repeat(data: dict, found: dict, count: int, rng: np.random.Generator) -> tuple[dict, list]:
    """The data set with `count` images, copies under new ids, and all results, randomly scored."""
    by_image = defaultdict(list)
    for annotation in data["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    images, annotations, results = [], [], []
    for key in range(1, count + 1):
        image = data["images"][(key - 1) % len(data["images"])]
        images.append({**image, "id": key})
        for annotation in by_image[image["id"]]:
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": key})
        for row in found[image["id"]]:
            results.append({**row, "image_id": key, "score": float(rng.random())})
    return {**data, "images": images, "annotations": annotations}, results


class Pycocotools:
    """The six APs as pycocotools' own users get them, in percent."""

    def __init__(self, data: dict):
        from pycocotools.coco import COCO

        self.truth = COCO()
        self.truth.dataset = data
        with contextlib.redirect_stdout(io.StringIO()):
            self.truth.createIndex()

    def evaluate(self, results: list[dict]) -> dict[str, float]:
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            run = COCOeval(self.truth, self.truth.loadRes(results), "segm")
            run.evaluate()
            run.accumulate()
            run.summarize()
        # -1 where there is nothing of that size.
        percent = [100 * float(value) if value > -1 else float("nan") for value in run.stats[:6]]
        return dict(zip(METRICS, percent))


class Ours:
    """All numbers of the project's evaluation."""

    def __init__(self, data: dict, backend: str):
        self.truth = GroundTruth(data, "made up")
        self.backend = backend

    def evaluate(self, results: list[dict]) -> dict[str, float]:
        return average_precision(self.truth, results, "segm", backend=self.backend)


def timed(build: Callable, data: dict, results: list[dict]) -> tuple[float, float, dict]:
    """CPU seconds, wall seconds and numbers of one evaluation, of copies made before."""
    side = build({**data, "annotations": [dict(a) for a in data["annotations"]]})
    results = [{**row, "segmentation": dict(row["segmentation"])} for row in results]
    cpu, wall = time.process_time(), time.perf_counter()
    numbers = side.evaluate(results)
    return time.process_time() - cpu, time.perf_counter() - wall, numbers


def compare(
    backend: str, data: dict, results: list[dict], repeats: int
) -> tuple[str, list[list[float]]]:
    """Takes turns; the line to print, and CPU seconds of pycocotools and of ours per pair.

    Raises:
        AssertionError: the two do not give the same APs.
    """
    pairs = []
    for _ in range(repeats):
        reference = timed(Pycocotools, data, results)
        ours = timed(lambda truth: Ours(truth, backend), data, results)
        for name in METRICS:
            both = reference[2][name], ours[2][name]
            same = np.isclose(*both, rtol=0, atol=TOLERANCE, equal_nan=True)
            assert same, f"{name} differs: {both} with {backend}"
        pairs.append((reference, ours))
    columns = []
    for clock in range(2):
        ratios = [a[clock] / b[clock] for a, b in pairs]
        seconds = [statistics.median(side[clock] for side in sides) for sides in zip(*pairs)]
        columns.append(
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            f" ({seconds[0]:.3g} / {seconds[1]:.3g} s)"
        )
    line = f"pycocotools / {backend}: CPU {columns[0]}, wall {columns[1]}"
    return line, [[reference[0], ours[0]] for reference, ours in pairs]


def main(argv: list[str] | None = None) -> None:
    """Prints one line per backend."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    home = os.environ.get("MASKSMITH_DATA")
    default = Path(home, "coco_dev") if home else None
    parser.add_argument("--data", type=Path, default=default, required=default is None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backends", nargs="+", default=["faster_coco_eval", "hotcoco"])
    parser.add_argument("--record", action="store_true", help="write docs/results")
    args = parser.parse_args(argv)
    rows, raw = [], {}
    data = merge([args.data / f"annotations/instances_{s}.json" for s in ("train", "val")])
    for share in OTHER_CLASS:
        rng = np.random.default_rng(0)
        many, results = repeat(data, detect(data, share, rng), args.images, rng)
        print(
            f"COCO segm, {args.images} images, {len(many['annotations'])} instances, "
            f"{len(results)} detections, {share:.0%} of random class; median of {args.repeats} "
            "pairs [smallest, largest]",
            flush=True,
        )
        for backend in args.backends:
            line, pairs = compare(backend, many, results, args.repeats)
            print("  " + line, flush=True)
            ratios = [reference / ours for reference, ours in pairs]
            raw[f"{share:.0%} {backend}"] = {"cpu_seconds": pairs, "detections": len(results)}
            rows.append(
                [
                    f"{share:.0%} of random class",
                    backend,
                    f"{statistics.median(ratios):.1f}",
                    f"{min(ratios):.1f} to {max(ratios):.1f}",
                ]
            )
    if args.record:
        text = (
            f"COCO AP of masks on {args.images} images: CPU time of pycocotools over that of this "
            f"project's evaluation with a backend, from a list of results to the numbers; median "
            f"of {args.repeats} pairs in one process. The APs agree to {TOLERANCE:g}."
        )
        header = ["detections", "backend", "times faster", "smallest to largest"]
        record(measurement("evaluation_speed", text, header, rows, raw))


if __name__ == "__main__":
    main()
