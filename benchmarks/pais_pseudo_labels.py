#!/usr/bin/env python3
"""What of PAIS's pseudo-labels is right? Its teacher's detections against masks it has not seen.

    python benchmarks/pais_pseudo_labels.py --record     # `make results NAME=pais_pseudo_labels`
    python benchmarks/pais_pseudo_labels.py --nuclei output/pais_nuclei --record

Mask R-CNN learns three classes of a COCO subset from 24 of 243 images; PAIS goes on from there with
the others as unlabelled ones. At every checkpoint the teacher labels those (tools/label.py), and
what it found is compared with the human masks that no run was given. Resumable. --nuclei does that
for the last checkpoints of the runs of pais_nuclei.py: does the predicted quality foretell the IoU?
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablation import load_config
from boxes_to_masks import config_files
from commands import data_folder, finish, finish_measurement
from pseudo_label_table import calibration_result, progress_result
from stages import ROOT, Runner, Stage, say

from pseudolabel.errors import DataError
from pseudolabel.files import read_json, write_json
from pseudolabel.splits import parts

CONFIG = ROOT / "configs/pais/coco_dev_10.yaml"
PICTURES = ROOT / "docs/pictures"
CLASSES, PERCENT, FOLD = 3, 10, 3
STEM = f"train.{FOLD}@{PERCENT}-stratified"
# Far below every floor: the comparison sees what a floor leaves out.
LOWEST_SCORE = 0.05
# Options of the supervised start beside those of both runs.
START = ["MODEL.PAIS.ENABLED", "False"]
NUCLEI_TRUTH = "dsb2018_dev/annotations/instances_train.json"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="default: output/pais_pseudo_labels")
    parser.add_argument("--nuclei", type=Path, help="folder with the runs P_foldF/pais, instead")
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3], help="of --nuclei")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prepare", action="store_true", help="make data, splits and weights only")
    parser.add_argument("--record", action="store_true", help="write docs/results and pictures")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of both runs"
    )
    return parser.parse_args(argv)


def most_frequent(data: dict[str, Any], count: int) -> list[int]:
    """Ids of the categories with the most instances, crowds left out; of equals the lower id."""
    counts = Counter(a["category_id"] for a in data["annotations"] if not a.get("iscrowd", 0))
    return sorted(sorted(counts, key=lambda key: (-counts[key], key))[:count])


def keep_classes(data: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """A COCO JSON with the annotations of some categories alone, and all of its images."""
    return {
        **data,
        "categories": [c for c in data["categories"] if c["id"] in ids],
        "annotations": [a for a in data["annotations"] if a["category_id"] in ids],
    }


def hidden_part(whole: dict[str, Any], unlabelled: dict[str, Any]) -> dict[str, Any]:
    """The images of an unlabelled JSON with the annotations that were taken from it.

    Args:
        whole: the JSON that was split.
        unlabelled: its unlabelled part.
    """
    return parts(whole, [image["id"] for image in unlabelled["images"]], {"part": "hidden"})[0]


def label_stage(run: Path, weights: Path, unlabelled: Path, images: Path, labels: Path) -> Stage:
    """The teacher's detections on unlabelled images.

    The classes are read from their JSON: the config of a run that was moved may name none.
    """
    config = run / "config.yaml"
    entry = {"name": "unlabelled", "json": str(unlabelled), "image_root": str(images)}
    command = ["tools/label.py", "--labeler", "detector", "--images", str(images)]
    command += ["--images-json", str(unlabelled), "--output", str(labels), "--restart"]
    command += ["--config-file", str(config), "--weights", str(weights)]
    command += ["DETECTOR.SCORE_THRESH", str(LOWEST_SCORE)]
    command += ["DATASETS.REGISTER", str([entry]), "DATASETS.TRAIN", "('unlabelled',)"]
    inputs = [config, weights, unlabelled]
    return Stage(f"label_{labels.stem}", command, inputs, [labels], seconds=90)


class PseudoLabels:
    """Paths and stages of the run on COCO.

    Args:
        data: the folder coco_dev.
        output: everything that is written goes below it.
        seed: of both runs.
        opts: KEY VALUE overrides of both runs.
    """

    def __init__(self, data: Path, output: Path, seed: int, opts: list[str]):
        self.data, self.output, self.seed, self.opts = data, output.resolve(), seed, opts
        self.cfg = load_config(CONFIG, opts)
        self.images = data / "images"
        self.whole, self.val = self.output / "train.json", self.output / "val.json"
        self.labelled = self.output / f"splits/{STEM}.json"
        self.unlabelled = self.output / f"splits/{STEM}-unlabeled.json"
        self.hidden = self.output / "hidden.json"
        self.weights = self.output / "resnet50.pth"

    def write_data(self) -> None:
        """The copies of train and val with the most frequent classes of train."""
        train = read_json(self.data / "annotations/instances_train.json")
        val = read_json(self.data / "annotations/instances_val.json")
        ids = most_frequent(train, CLASSES)
        write_json(self.whole, keep_classes(train, ids))
        write_json(self.val, keep_classes(val, ids))

    def preparation(self) -> list[list[Stage]]:
        """Split and trunk."""
        trunk = self.data.parent / "weights/resnet50_caffe_c2c4.fp16.pth"
        convert = ["tools/convert_weights.py", str(trunk), str(self.weights)]
        split = ["datasets/prepare_splits.py", str(self.whole), "--percent", str(PERCENT)]
        split += ["--fold", str(FOLD), "--stratify", "--output", str(self.labelled.parent)]
        return [
            [Stage("split", split, [self.whole], [self.labelled, self.unlabelled])],
            [Stage("convert", convert, [trunk], [self.weights])],
        ]

    def trainings(self) -> list[list[Stage]]:
        """The supervised start, and PAIS from its teacher."""
        start = self._train("start", self.weights, START, seconds=0.8)
        warm = ["MODEL.PAIS.EMA.START", "teacher"]
        return [[start], [self._train("pais", self.run_of("start")[1], warm, seconds=1.7)]]

    def run_of(self, name: str) -> tuple[Path, Path]:
        """Folder and last weights of a run."""
        return self.output / name, self.output / name / "model_final.pth"

    def _train(self, name: str, weights: Path, opts: list[str], seconds: float) -> Stage:
        folder, final = self.run_of(name)
        sets = {"labelled": self.labelled, "unlabelled": self.unlabelled, "val": self.val}
        entries = [
            {"name": key, "json": str(path), "image_root": str(self.images)}
            for key, path in sets.items()
        ]
        command = ["tools/train_net.py", "--resume", "--config-file", str(CONFIG)]
        command += ["DATASETS.REGISTER", str(entries), "DATASETS.TRAIN", "('labelled',)"]
        command += ["DATASETS.UNLABELLED", "('unlabelled',)", "DATASETS.TEST", "('val',)"]
        command += ["MODEL.WEIGHTS", str(weights), *self.opts, *opts]
        command += ["SEED", str(self.seed), "OUTPUT_DIR", str(folder)]
        steps = self.cfg.SOLVER.MAX_ITER
        return Stage(
            name,
            command,
            [*config_files(CONFIG), weights, *sets.values()],
            [final],
            seconds=seconds * steps,
            run_dir=folder,
            max_iter=steps,
        )

    def checkpoints(self) -> dict[int, tuple[Path, Path]]:
        """Iterations of PAIS done -> run folder and weights of the teacher; 0 is the start."""
        period, last = self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.SOLVER.MAX_ITER
        run, final = self.run_of("pais")
        steps = {n: (run, run / f"model_{n - 1:07d}.pth") for n in range(period, last, period)}
        return {0: self.run_of("start"), **steps, last: (run, final)}

    def labels(self, iteration: int) -> Path:
        """The label file of a checkpoint."""
        return self.output / f"labels/teacher_{iteration:05d}.json"

    def labellings(self) -> list[list[Stage]]:
        """One stage per checkpoint."""
        return [
            [label_stage(run, weights, self.unlabelled, self.images, self.labels(iteration))]
            for iteration, (run, weights) in self.checkpoints().items()
        ]

    def run(self, publish: bool) -> dict[str, Any]:
        """Does what is left to do. Returns the record; pictures go into docs if `publish`."""
        self.write_data()
        plan = [*self.preparation(), *self.trainings(), *self.labellings()]
        seconds = Runner(self.output, plan).run()
        write_json(self.hidden, hidden_part(read_json(self.whole), read_json(self.unlabelled)))
        pictures = PICTURES if publish else self.output
        return progress_result(self, CONFIG, seconds, pictures)


class NucleiCalibration:
    """The last teachers of `pais_nuclei.py` on the images whose masks their run did not have.

    Args:
        data: folder that holds dsb2018_dev.
        runs: folder of that experiment, with `splits` and `P_foldF/pais`.
        output: everything that is written goes below it.
        folds: that count; others were for choices.

    Raises:
        DataError: no run is finished.
    """

    def __init__(self, data: Path, runs: Path, output: Path, folds: Sequence[int]):
        self.truth, self.output = data / NUCLEI_TRUTH, output.resolve()
        self.images = self.truth.parents[1] / "images"
        self.splits = runs.resolve() / "splits"
        patterns = (f"*_fold{fold}/pais/model_final.pth" for fold in folds)
        found = sorted(path for p in patterns for path in runs.resolve().glob(p))
        self.runs = {path.parents[1].name: path.parent for path in found}
        if not self.runs:
            problem = "holds no finished run P_foldF/pais"
            raise DataError(runs, problem, "run benchmarks/pais_nuclei.py first")

    def files(self, name: str) -> tuple[Path, Path]:
        """Labels and hidden truth of a run."""
        return self.output / f"labels/{name}.json", self.output / f"hidden/{name}.json"

    def run(self, publish: bool) -> dict[str, Any]:
        """Does what is left to do. Returns the record; pictures go into docs if `publish`."""
        whole, groups = read_json(self.truth), []
        for name, run in self.runs.items():
            labels, hidden = self.files(name)
            unlabelled = self.splits / registered_json(run / "config.yaml", "UNLABELLED")
            write_json(hidden, hidden_part(whole, read_json(unlabelled)))
            stage = label_stage(run, run / "model_final.pth", unlabelled, self.images, labels)
            groups.append([stage])
        seconds = Runner(self.output, groups).run()
        pictures = PICTURES if publish else self.output
        return calibration_result(self, seconds, pictures)


def registered_json(config: Path, kind: str) -> str:
    """File name of the JSON of the first data set that a run had as DATASETS.`kind`.

    Raises:
        DataError: it had none.
    """
    cfg = load_config(config)
    name = next(iter(cfg.DATASETS[kind]), None)
    entry = next((e for e in cfg.DATASETS.REGISTER if e["name"] == name), None)
    if entry is None:
        raise DataError(config, f"registers no data set of DATASETS.{kind}", "train it again")
    return Path(entry["json"]).name


def main(argv: list[str] | None = None) -> int:
    """Runs what is left to do and prints the table. Returns 0; 1 with one clear error line."""
    args = parse_args(argv)
    data = data_folder("coco_dev")
    if data is None:
        return 1
    if args.nuclei:
        output = args.output or ROOT / "output/pais_calibration"
        return finish_measurement(
            lambda: NucleiCalibration(data.parent, args.nuclei, output, args.folds).run(
                args.record
            ),
            args.record,
        )
    job = PseudoLabels(
        data, args.output or ROOT / "output/pais_pseudo_labels", args.seed, args.opts
    )
    if args.prepare:
        job.write_data()
        status, _ = finish(Runner(job.output, job.preparation()).run)
        say(f"data, splits and trunk lie in {job.output}")
        return status
    return finish_measurement(lambda: job.run(args.record), args.record)


if __name__ == "__main__":
    sys.exit(main())
