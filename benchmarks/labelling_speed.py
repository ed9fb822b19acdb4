#!/usr/bin/env python3
"""Labelling throughput / the network's own forward (part of `make bench`, < 3 minutes).

    python benchmarks/labelling_speed.py [--record]

Above: decoding, cropping, the networks that the measure of quality needs, pasting, thresholds,
quality and run-length codes. Below: encoder and decoder of the same networks on the same crops,
already in memory, in the same batches. One thread, CPU time, turns taken as in speed.py. Images
are those of $MASKSMITH_DATA that the config is for, or noise of COCO's size; random weights cost
what trained ones do.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from results import measurement, record
from speed import ROOT, Ratio, compare, show

from mal.crops import test_window
from mal.mask_auto_labeler import MaskAutoLabeler
from mal.predictor import OTHER, BoxPredictor
from mal.resampling import cut_and_resize
from masksmith import new_config
from pseudolabel.files import read_image
from pseudolabel.masks import clip_box, xywh_to_xyxy

# Config, its data, and overrides: coco_dev refines its masks, which the paper does not.
COCO, PLAIN = "configs/mal/coco_dev.yaml", ("MODEL.MAL.TEST.CRF_ITERATIONS", "0")
RUNS = [(COCO, "coco_dev", ()), (COCO, "coco_dev", PLAIN)]
RUNS += [("configs/mal/nuclei.yaml", "dsb2018_dev", ())]
# One network alone, and the default.
QUALITIES = ("expected_iou", "estimate")
Job = tuple[Path, np.ndarray]


def build_model(config: Path, opts: list[str]) -> MaskAutoLabeler:
    """A MAL of a config with random weights, on the CPU."""
    cfg = new_config()
    cfg.merge_from_file(str(config))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.MAL.ENCODER.WEIGHTS", "", *opts])
    torch.manual_seed(0)
    return MaskAutoLabeler(cfg).eval()


def real_jobs(folder: Path, count: int) -> list[Job]:
    """The first images of a val set with their boxes (N, 4), XYXY."""
    data = json.loads((folder / "annotations/instances_val.json").read_text())
    boxes: dict[int, list] = {}
    for annotation in data["annotations"]:
        if not annotation["iscrowd"]:
            boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    named = [(folder / "images" / i["file_name"], boxes.get(i["id"])) for i in data["images"]]
    return [(path, xywh_to_xyxy(np.array(own))) for path, own in named if own][:count]


def made_jobs(folder: Path, count: int) -> Iterator[Job]:
    """JPEGs of smooth noise, 640x480, with 8 boxes each."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        path = folder / f"{index}.jpg"
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path)
        corner = rng.uniform(0, (400, 300), (8, 2))
        yield path, np.hstack([corner, corner + rng.uniform(20, 180, (8, 2))])


class Labelling:
    """The parts of labelling some images, each callable alone.

    Args:
        model: whose networks run.
        jobs: images and their boxes.
        quality: measure; decides which networks run.
    """

    def __init__(self, model: MaskAutoLabeler, jobs: list[Job], quality: str):
        self.model, self.jobs, self.name = model, jobs, model.label_with
        networks = {"student": model.student, "teacher": model.teacher}
        options = {**model.predict_options, "quality": quality}
        self.predictor = BoxPredictor(networks, model.normalize, **options)
        second = [OTHER[self.name]] if "other" in self.predictor.measure.views else []
        self.running = [networks[name] for name in (self.name, *second)]
        self.images = [read_image(path) for path, _ in jobs]
        self.batches = list(self._batches())

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        size = self.predictor.batch_size
        for image, (_, boxes) in zip(self.images, self.jobs):
            clipped = np.array([clip_box(box, *image.shape[:2]) for box in boxes])
            areas = torch.from_numpy((clipped[:, 2:] - clipped[:, :2]).prod(axis=1))
            for start in range(0, len(boxes), size):
                chunk = slice(start, start + size)
                yield self.model.normalize(self._crops(image, clipped[chunk])), areas[chunk]

    def _crops(self, image: np.ndarray, boxes: np.ndarray) -> torch.Tensor:
        pixels, options = torch.from_numpy(image), self.predictor
        windows = [test_window(box, options.margin) for box in boxes]
        return torch.stack([cut_and_resize(pixels, w, options.crop_size) for w in windows])

    def network(self) -> None:
        """Encoder and decoder alone."""
        with torch.no_grad():
            for images, areas in self.batches:
                for network in self.running:
                    network(images, areas)

    def decode(self) -> None:
        """Image files to pixels."""
        for path, _ in self.jobs:
            read_image(path)

    def crop(self) -> None:
        """Pixels to crops."""
        for image, (_, boxes) in zip(self.images, self.jobs):
            size = image.shape[:2]
            self.model.normalize(self._crops(image, np.array([clip_box(b, *size) for b in boxes])))

    def label(self) -> None:
        """All of it, from the files to the records."""
        for path, boxes in self.jobs:
            self.predictor.predict(read_image(path), boxes, [self.name])


def throughput_ratio(work: Labelling, repeats: int) -> Ratio:
    """Network / labelling time: the labelling throughput as a share of the network's own."""
    return compare(work.network, work.label, repeats)


def breakdown(work: Labelling, ratio: Ratio) -> dict[str, float]:
    """CPU milliseconds per box of each part; what is left is after the network."""
    boxes = sum(len(own) for _, own in work.jobs)
    parts = {"decode": _seconds(work.decode), "crop and resize": _seconds(work.crop)}
    per_box = {name: 1000 * value / boxes for name, value in parts.items()}
    per_box["network"] = ratio.first_ms / boxes
    rest = ratio.second_ms / boxes - sum(per_box.values())
    return {**per_box, "resample, threshold, quality, run-length code": rest}


def _seconds(work: Callable[[], object], calls: int = 3) -> float:
    """CPU seconds of the fastest call."""
    times = []
    for _ in range(calls):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        config, data: the YAML and where the images are from.
        images, boxes: numbers of them.
        quality: the measure.
        ratio: network / all.
        parts: CPU milliseconds per box, as of `breakdown`.
    """

    config: str
    data: str
    images: int
    boxes: int
    quality: str
    ratio: Ratio
    parts: dict[str, float]


def to_record(results: list[Result], repeats: int) -> dict[str, Any]:
    """What `docs/results/labelling_speed.json` holds."""
    text = (
        "Labelling throughput over that of the network's own forward (encoder and decoder of the "
        "networks that the measure of quality needs, the same crops in memory): decoding, "
        "cropping, thresholds, quality and run-length codes included; coco_dev with the mean field "
        "that its config adds at labelling, and without. CPU time on one thread, "
        f"random weights, median of {repeats} pairs that take turns in one process."
    )
    header = ["config", "quality", "boxes", "ratio", "smallest to largest"]
    header += ["network, ms per box", "the rest, ms per box"]
    rows = [
        [
            r.config,
            r.quality,
            f"{r.boxes} on {r.images} images of {r.data}",
            f"{r.ratio.median:.3f}",
            f"{r.ratio.smallest:.3f} to {r.ratio.largest:.3f}",
            f"{r.parts['network']:.2f}",
            f"{sum(r.parts.values()) - r.parts['network']:.2f}",
        ]
        for r in results
    ]
    return measurement("labelling_speed", text, header, rows, {"rows": list(map(asdict, results))})


def main(argv: list[str] | None = None) -> None:
    """Prints one ratio and one breakdown per config and measure, and records them if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed pairs (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="write docs/results")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE config overrides")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    data, results = Path(os.environ.get("MASKSMITH_DATA", "")), []
    with tempfile.TemporaryDirectory() as folder:
        made = list(made_jobs(Path(folder), args.images))
        for config, name, own_opts in RUNS:
            real = (data / name).is_dir()
            jobs = real_jobs(data / name, args.images) if real else made
            boxes, origin = sum(len(own) for _, own in jobs), name if real else "noise"
            title = " ".join([config, *own_opts]).replace("MODEL.MAL.TEST.", "")
            print(f"{title}, {boxes} boxes on {len(jobs)} images of {origin}:")
            model = build_model(ROOT / config, [*own_opts, *args.opts])
            for quality in QUALITIES:
                work = Labelling(model, jobs, quality)
                ratio = throughput_ratio(work, args.repeats)
                parts = breakdown(work, ratio)
                show(f"  labelling, quality {quality}: network / all", ratio)
                shown = ", ".join(f"{part} {value:.2f}" for part, value in parts.items())
                print(f"    ms per box: {shown}")
                results.append(Result(title, origin, len(jobs), boxes, quality, ratio, parts))
    if args.record:
        record(to_record(results, args.repeats))


if __name__ == "__main__":
    main()
