#!/usr/bin/env python3
"""Two builds of Detectron2 side by side: checkpoints exchanged, and the time of a training step.

    python benchmarks/providers.py --other OTHER_ENVIRONMENT/bin/python

`OTHER` is the interpreter of an environment with the other build and with this project. Each build
runs in a process of its own; both hold the same stock Mask R-CNN R50-FPN on the same real images.

- Interchange: each trains a few steps and saves; both load that file and must give the same boxes,
  scores, classes and mask areas.
- Speed: the two take turns, one training step each, on one thread, in CPU time; the median of the
  paired ratios is printed with the smallest and largest. Below 1, this build is the faster one.

Takes about 3 minutes. Needs $MASKSMITH_DATA.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import measurement, record

from pseudolabel.weights import convert_file

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/_base_/mask_rcnn_R_50_FPN.yaml"
IMAGES = 4
TOLERANCE = 1e-4
QUANTITIES = ("boxes", "scores", "classes", "areas")
SETTINGS = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    # Caffe-style weights: BGR, 0-255, stride in the 1x1.
    "MODEL.PIXEL_MEAN": [103.939, 116.779, 123.68],
    # A model after a few steps is sure of nothing; without a threshold it still has detections.
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "INPUT.MIN_SIZE_TRAIN": (256,),
    "INPUT.MIN_SIZE_TEST": 256,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.001,
    "INPUT.RANDOM_FLIP": "none",
}


class Worker:
    """What one build does on request; lives in its own process."""

    def __init__(self, data: str):
        import detectron2
        import torch
        from detectron2.config import get_cfg
        from detectron2.data import DatasetCatalog, DatasetMapper
        from detectron2.data.datasets import register_coco_instances

        torch.set_num_threads(1)
        self.name = f"{detectron2.__version__}"
        self.cfg = get_cfg()
        self.cfg.merge_from_file(str(CONFIG))
        self.cfg.merge_from_list([part for pair in SETTINGS.items() for part in pair])
        self.cfg.MODEL.DEVICE = "cpu"
        annotations = Path(data, "coco_dev/annotations/instances_train.json")
        register_coco_instances("pair", {}, str(annotations), str(Path(data, "coco_dev/images")))
        records = sorted(DatasetCatalog.get("pair"), key=lambda record: record["image_id"])
        records = [r for r in records if sum(not a["iscrowd"] for a in r["annotations"]) > 3]
        train = DatasetMapper(self.cfg, True)
        self.batch = [train(record) for record in records[: self.cfg.SOLVER.IMS_PER_BATCH]]
        test = DatasetMapper(self.cfg, False)
        self.inputs = [test(record) for record in records[-IMAGES:]]

    def start(self, weights: str) -> str:
        """Builds model, optimizer and trainer; loads a file, or names the build alone."""
        import torch
        from detectron2.checkpoint import DetectionCheckpointer
        from detectron2.engine import SimpleTrainer
        from detectron2.modeling import build_model
        from detectron2.solver import build_optimizer
        from detectron2.utils.events import EventStorage

        torch.manual_seed(0)
        self.model = build_model(self.cfg).train()
        DetectionCheckpointer(self.model).load(weights)
        self.trainer = SimpleTrainer(
            self.model, _Repeat(self.batch), build_optimizer(self.cfg, self.model)
        )
        self.storage = EventStorage(0)
        self.trainer.iter = 0
        return self.name

    def step(self) -> dict[str, float]:
        """One training step; its CPU time in seconds and its total loss."""
        import torch

        torch.manual_seed(self.trainer.iter)
        with self.storage:
            start = time.process_time()
            self.trainer.run_step()
            seconds = time.process_time() - start
            loss = self.storage.latest()["total_loss"][0]
            self.storage.step()
        self.trainer.iter += 1
        return {"seconds": seconds, "loss": float(loss)}

    def save(self, folder: str) -> str:
        from detectron2.checkpoint import DetectionCheckpointer

        DetectionCheckpointer(self.model, save_dir=folder).save("model")
        return str(Path(folder, "model.pth"))

    def detect(self) -> list[dict[str, list]]:
        """Detections of the test images: boxes in px, scores, classes, mask areas in px."""
        import torch

        self.model.eval()
        with torch.no_grad():
            outputs = [self.model([sample])[0]["instances"] for sample in self.inputs]
        self.model.train()
        return [
            {
                "boxes": found.pred_boxes.tensor.tolist(),
                "scores": found.scores.tolist(),
                "classes": found.pred_classes.tolist(),
                "areas": found.pred_masks.flatten(1).sum(1).tolist(),
            }
            for found in outputs
        ]


class _Repeat:
    """An endless loader of one batch."""

    def __init__(self, batch: list[dict]):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch


class Remote:
    """A worker in another process: a call goes there as a line of JSON and comes back as one."""

    def __init__(self, python: str, data: str):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [python, "-W", "ignore", str(Path(__file__).resolve()), "--worker", data],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __call__(self, method: str, *arguments: str) -> Any:
        self.process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.process.args[0]} ended in {method}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(data: str) -> None:
    """The worker's loop. Whatever libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(data)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(worker, method)(*arguments)) + "\n")
        answers.flush()


def largest_differences(one: list[dict], other: list[dict]) -> dict[str, float]:
    """Largest absolute difference per quantity; infinite where the detections do not match up."""
    result = dict.fromkeys(QUANTITIES, 0.0)
    for left, right in zip(one, other, strict=True):
        for key in result:
            a, b = left[key], right[key]
            if len(a) != len(b):
                result[key] = float("inf")
                continue
            flat = [
                (x, y) for p, q in zip(a, b) for x, y in (zip(p, q) if key == "boxes" else [(p, q)])
            ]
            result[key] = max([result[key], *(abs(x - y) for x, y in flat)])
    return result


def exchange(
    builds: dict[str, Remote], weights: str, steps: int, folder: str
) -> tuple[dict[str, dict[str, float]], str]:
    """Each build trains and saves; both load.

    Returns:
        {build that wrote the file: number of detections, largest differences between the two
        readers}, and the last file.
    """
    facts = {}
    for name, writer in builds.items():
        writer("start", weights)
        for _ in range(steps):
            writer("step")
        path = writer("save", folder)
        found = []
        for reader in builds.values():
            reader("start", path)
            found.append(reader("detect"))
        count = sum(len(image["scores"]) for image in found[0])
        facts[name] = {"detections": count, **largest_differences(*found)}
    return facts, path


def time_steps(builds: dict[str, Remote], weights: str, pairs: int) -> dict[str, Any]:
    """CPU seconds of each build's steps, in turns, and the losses of the step before them.

    Both start from the same complete file, so that equal arithmetic shows in equal losses.
    """
    for build in builds.values():
        build("start", weights)
    first_losses = {name: build("step")["loss"] for name, build in builds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in builds}
    for index in range(pairs):
        for name in list(builds) if index % 2 else list(builds)[::-1]:
            seconds[name].append(builds[name]("step")["seconds"])
    return {"first_losses": first_losses, "cpu_seconds": seconds}


def table(facts: dict[str, dict], timed: dict[str, Any], steps: int) -> dict[str, Any]:
    """What was measured, as a record for docs/results."""
    one, other = timed["cpu_seconds"].values()
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    losses = list(timed["first_losses"].values())
    first, second = timed["cpu_seconds"]
    rows = [
        [
            f"checkpoint of {name} after {steps} steps: {fact['detections']} detections, largest "
            "difference of boxes (px), scores, classes, mask areas (px)",
            ", ".join(f"{fact[key]:.2g}" for key in QUANTITIES),
        ]
        for name, fact in facts.items()
    ]
    difference = abs(losses[0] - losses[1]) / losses[1]
    rows += [
        ["first training loss from the same file, relative difference", f"{difference:.1g}"],
        [
            f"CPU time of a training step, {first} / {second}, median of {len(ratios)} pairs "
            "(smallest to largest)",
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        ],
    ]
    text = (
        "Stock Mask R-CNN R50-FPN on real images (short side 256, batch 2, one thread), a process "
        "for each build of Detectron2."
    )
    raw = {"interchange": facts, **timed}
    return measurement("providers", text, ["what", "measured"], rows, raw)


def main(argv: list[str] | None = None) -> int:
    """Returns 0 where checkpoints are interchangeable, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", help="Python of the environment with the other build")
    parser.add_argument("--pairs", type=int, default=15, help="timed steps of each build")
    parser.add_argument("--steps", type=int, default=5, help="training steps before saving")
    parser.add_argument("--record", action="store_true", help="write docs/results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        serve(args.worker)
        return 0
    data = os.environ.get("MASKSMITH_DATA")
    if not args.other or not data:
        parser.error("needs --other PYTHON and $MASKSMITH_DATA")
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder, "resnet50.pth"))
        convert_file(str(Path(data, "weights/resnet50_caffe_c2c4.fp16.pth")), weights)
        remotes = [Remote(python, data) for python in (sys.executable, args.other)]
        builds = {remote("start", weights): remote for remote in remotes}
        if len(builds) < 2:
            parser.error("both environments have the same build of detectron2")
        facts, trained = exchange(builds, weights, args.steps, folder)
        timed = time_steps(builds, trained, args.pairs)
        for remote in remotes:
            remote.close()
    result = table(facts, timed, args.steps)
    for row in result["rows"]:
        print(": ".join(row))
    if args.record:
        record(result)
    agree = all(
        fact["detections"] and max(fact[key] for key in QUANTITIES) <= TOLERANCE
        for fact in facts.values()
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
