#!/usr/bin/env python3
"""Does PAIS gain over a hard threshold, and that over labelled images alone? Nuclei, few masks.

    python benchmarks/pais_nuclei.py --record              # `make results NAME=pais_nuclei`; hours
    python benchmarks/pais_nuclei.py --collect-only        # the table of the runs that are there
    python benchmarks/pais_nuclei.py --arms supervised pais pais_weight_2 --percents 10

Per share of labelled images and per fold, which is a stratified draw of them and the seed, one
supervised run is the common start of all arms. OUTPUT/{percent}_fold{fold}/{arm} holds a run. A run
that is finished is kept and one that was stopped goes on, whoever began it, as long as its
config.yaml and its data are those that are asked for. About 7 minutes of one core per run.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from ablation import load_config
from commands import data_folder, finish_measurement
from detectron2.config import CfgNode
from pais_arms import ARMS, DEFAULT_ARMS, START, SUPERVISED, Arm
from pais_runs import is_finished
from pais_table import pais_record, write_curves
from retention_runs import ResumedStage
from stages import ROOT, Runner, Stage

from masksmith import new_config
from pais.evaluation import NETWORKS
from pseudolabel.config_diff import ABSENT, differences, flat_keys
from pseudolabel.data_hashes import read_data_hashes
from pseudolabel.errors import DataError
from pseudolabel.evaluators import RESULTS_FILE
from pseudolabel.files import expand_path, file_hash, write_json
from pseudolabel.retention import NUM_CLASSES, read_config
from pseudolabel.splits import split_name

# KEY -> value over the YAML: of every run, of the common start, and of the arms alone. All of it is
# chosen on a part of train, outside the table.
OPTIONS: dict[str, dict[str, Any]] = {
    "every": {},
    "start": {"SOLVER.MAX_ITER": 800},
    "arms": {"MODEL.PAIS.EMA.START": "teacher", "TEST.EVAL_PERIOD": 50},
}
# What a run may have otherwise: names and places, and when it looks at val or saves.
FREE = {
    *("DATASETS.REGISTER", "DATASETS.TRAIN", "DATASETS.UNLABELLED", "DATASETS.TEST"),
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "TEST.EVAL_PERIOD", "SOLVER.CHECKPOINT_PERIOD"),
}
# Of pseudo-labels: a run on labelled images alone never acts on these keys.
OF_PSEUDO_LABELS = {
    f"MODEL.PAIS.{key}"
    for key in ("VIEWS.TIGHT_BOXES", "UNLABELLED_WEIGHT", "DALOSS")
    + ("SCORE_FLOOR", "RPN_SCORE_FLOOR", "ROI_SCORE_FLOOR")
}
# Seconds of a first run on one core, for an ETA until one has been measured.
START_SECONDS, ARM_SECONDS, TEST_SECONDS = 300, 450, 60


@cache
def defaults() -> dict[str, Any]:
    """KEY -> value of every key, where no YAML sets it."""
    return flat_keys(new_config())


@dataclass(frozen=True)
class Run:
    """One folder of the experiment.

    Attributes:
        percent: of the training images that are labelled.
        fold: which draw of them; the seed, too.
        arm: what is trained there; that of the common start has the name `START`.
    """

    percent: int
    fold: int
    arm: Arm

    @property
    def name(self) -> str:
        """Its folder below OUTPUT."""
        return f"{self.percent}_fold{self.fold}/{self.arm.name}"


@dataclass
class Experiment:
    """Paths, commands and stages.

    Attributes:
        data: folder of the data set, with annotations/instances_{train,val}.json and images.
        output: everything that is written goes below it.
        percents, folds: of the splits.
        arms: beside the common start.
        jobs: runs side by side.
        opts: KEY VALUE overrides of every run, over `OPTIONS` but not over what makes an arm.
        options: see `OPTIONS`.
    """

    data: Path
    output: Path
    percents: Sequence[int] = (5, 10)
    folds: Sequence[int] = (1, 2, 3)
    arms: Sequence[Arm] = tuple(ARMS[name] for name in DEFAULT_ARMS)
    jobs: int = 1
    opts: Sequence[str] = ()
    options: dict[str, dict[str, Any]] = field(default_factory=lambda: OPTIONS)
    _configs: dict[int, CfgNode] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        self.data, self.output = self.data.resolve(), self.output.resolve()
        if len(self.opts) % 2:
            raise DataError("--opts", "is no list of pairs KEY VALUE", "give a value for every key")

    @property
    def val(self) -> Path:
        """The JSON that all are evaluated on."""
        return self.data / "annotations/instances_val.json"

    @property
    def train(self) -> Path:
        """The JSON that is split."""
        return self.data / "annotations/instances_train.json"

    def config_file(self, percent: int) -> Path:
        """The YAML of PAIS at a share of labels."""
        return ROOT / f"configs/pais/nuclei_{percent}.yaml"

    def folder(self, run: Run) -> Path:
        """OUTPUT_DIR of a run."""
        return self.output / run.name

    def split(self, percent: int, fold: int) -> tuple[Path, Path]:
        """The JSONs of the labelled and of the unlabelled images."""
        name = split_name(self.train.stem, fold, Decimal(percent), stratified=True)
        folder = self.output / "splits"
        return folder / f"{name}.json", folder / f"{name}-unlabeled.json"

    def runs(self, percent: int, fold: int) -> list[Run]:
        """The common start, then the arms."""
        arms = (Arm(START, SUPERVISED), *self.arms)
        return [Run(percent, fold, arm) for arm in arms]

    def all_runs(self) -> list[Run]:
        """Fold by fold, so that pairs are complete early."""
        return [run for f in self.folds for p in self.percents for run in self.runs(p, f)]

    def overrides(self, run: Run) -> list[str]:
        """KEY VALUE of a run over its YAML, but for data, place and weights."""
        role = START if run.arm.name == START else "arms"
        general = {**self.options["every"], **self.options[role]}
        pairs = [f"{part}" for item in general.items() for part in item]
        own = {**run.arm.changes, "SEED": run.fold}
        return [*pairs, *self.opts, *(f"{part}" for item in own.items() for part in item)]

    def config(self, run: Run) -> CfgNode:
        """What a run is to be trained by, but for data and place."""
        # Read once: a config of all methods' keys takes half a second.
        if run.percent not in self._configs:
            self._configs[run.percent] = load_config(self.config_file(run.percent))
        cfg = self._configs[run.percent].clone()
        cfg.merge_from_list(self.overrides(run))
        return cfg

    def weights(self, run: Run) -> Path:
        """What a run starts from; of the common start a trunk."""
        if run.arm.name == START:
            return ROOT / expand_path(self.config(run).MODEL.WEIGHTS)
        origin = run.arm.evaluates or START
        return self.folder(Run(run.percent, run.fold, Arm(origin))) / "model_final.pth"

    def data_sets(self, run: Run) -> dict[str, Path]:
        """Key of DATASETS -> its one JSON."""
        labelled, unlabelled = self.split(run.percent, run.fold)
        return {"TRAIN": labelled, "UNLABELLED": unlabelled, "TEST": self.val}

    def command(self, run: Run) -> list[str]:
        """Arguments after the interpreter."""
        sets = self.data_sets(run)
        entries = [
            {"name": name.lower(), "json": str(path), "image_root": str(self.data / "images")}
            for name, path in sets.items()
        ]
        command = ["tools/train_net.py", "--eval-only" if run.arm.evaluates else "--resume"]
        command += ["--config-file", str(self.config_file(run.percent))]
        command += ["DATASETS.REGISTER", str(entries)]
        for name in sets:
            command += [f"DATASETS.{name}", f"('{name.lower()}',)"]
        command += self.overrides(run)
        command += ["MODEL.WEIGHTS", str(self.weights(run))]
        return [*command, "OUTPUT_DIR", str(self.folder(run))]

    def plan(self) -> list[list[Stage]]:
        """Splits and trunk, then what is not finished: starts, arms, evaluations of other weights.

        Raises:
            DataError: a run was begun with another config or on other data.
        """
        unfinished = [run for run in self.all_runs() if not self.is_done(run, self.check(run))]
        parts: list[list[Run]] = []
        for fold in self.folds:
            own = [run for run in unfinished if run.fold == fold]
            parts += [
                [run for run in own if run.arm.name == START],
                [run for run in own if run.arm.name != START and not run.arm.evaluates],
                [run for run in own if run.arm.evaluates],
            ]
        groups = [p[i : i + self.jobs] for p in parts for i in range(0, len(p), self.jobs)]
        return [self._preparation(), *([self._stage(run) for run in group] for group in groups)]

    def is_done(self, run: Run, keys: Mapping[str, Any] | None) -> bool:
        """Whether a training has its last weights and both networks' predictions of its end.

        Evaluations of another arm's weights are left to the receipts of `Runner`.

        Args:
            keys: what `check` found.
        """
        folder = self.folder(run)
        if keys is None or run.arm.evaluates or not (folder / "model_final.pth").is_file():
            return False
        return is_finished(folder, keys)

    def _splits(self) -> Stage:
        numbers = [str(p) for p in self.percents], [str(f) for f in self.folds]
        command = ["datasets/prepare_splits.py", str(self.train), "--percent", *numbers[0]]
        command += ["--fold", *numbers[1], "--stratify", "--output", str(self.output / "splits")]
        files = [path for p in self.percents for f in self.folds for path in self.split(p, f)]
        return Stage("splits", command, [self.train], files)

    def _preparation(self) -> list[Stage]:
        stages = [self._splits()]
        starts = [run for run in self.all_runs() if run.arm.name == START]
        for trunk in sorted({self.weights(run) for run in starts}):
            # Any other file of weights is the user's to make.
            if not trunk.exists() and trunk.name == "resnet50.pth":
                source = self.data.parent / "weights/resnet50_caffe_c2c4.fp16.pth"
                command = ["tools/convert_weights.py", str(source), str(trunk)]
                stages.append(Stage("convert_trunk", command, [], [trunk]))
        return stages

    def _stage(self, run: Run) -> Stage:
        folder, test = self.folder(run), Path("inference/test")
        outputs = [folder / test / network / RESULTS_FILE for network in NETWORKS]
        name, command = run.name.replace("/", "_"), self.command(run)
        if run.arm.evaluates:
            inputs = [self.val, self.weights(run)]
            return Stage(name, command, inputs, outputs, seconds=TEST_SECONDS)
        inputs = list(self.data_sets(run).values())
        outputs += [folder / "model_final.pth", folder / "metrics.json"]
        seconds = START_SECONDS if run.arm.name == START else ARM_SECONDS
        last = self.config(run).SOLVER.MAX_ITER
        options = {"seconds": seconds, "run_dir": folder, "max_iter": last}
        return ResumedStage(name, command, inputs, outputs, **options)

    def check(self, run: Run) -> dict[str, Any] | None:
        """Refuses a run, finished or not, that was begun with another config or on other data.

        Returns:
            Its config.yaml as nested dictionaries; None of a run that was not begun.

        Raises:
            DataError: naming the key.
        """
        folder = self.folder(run)
        if not (folder / "config.yaml").is_file():
            return None
        found = read_config(folder)
        supervised = not self.config(run).MODEL.PAIS.ENABLED
        free = FREE | OF_PSEUDO_LABELS if supervised else FREE
        for key, (there, here) in differences(found, self.config(run)).items():
            # A key that is younger than the run was at its default; classes are counted by a run.
            settled = (there == ABSENT and here == defaults().get(key)) or (
                key == NUM_CLASSES and here == 0
            )
            if key not in free and not settled:
                self._refuse(folder, f"{key} is {there}, and {here} is asked for")
        entries = {entry["name"]: entry["json"] for entry in found["DATASETS"]["REGISTER"]}
        hashes = read_data_hashes(folder)
        for key, path in self.data_sets(run).items():
            names = found["DATASETS"][key]
            seen = [Path(entries[name]).name for name in names]
            if seen != [path.name]:
                self._refuse(folder, f"DATASETS.{key} is {seen}, not {path.name}")
            (name,) = names
            if name in hashes and path.exists() and file_hash(path) != hashes[name]:
                self._refuse(folder, f"DATASETS.{key}: {path.name} has changed since it began")
        # The place of the whole experiment may have changed, that of the start within it not.
        parts = 1 if run.arm.name == START else 3
        weights = self.weights(run).parts[-parts:]
        if Path(found["MODEL"]["WEIGHTS"]).parts[-parts:] != weights:
            self._refuse(folder, f"MODEL.WEIGHTS is not {'/'.join(weights)}")
        return found

    def _refuse(self, folder: Path, problem: str) -> None:
        remedy = "move this run away and train it again, or ask for what it has (--opts)"
        raise DataError(folder / "config.yaml", problem, remedy)


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Where an experiment of this kind lies, how it runs, and what becomes of it."""
    add = parser.add_argument
    add("--output", type=Path, default=ROOT / "output" / name)
    add("--jobs", type=int, default=1, help="runs side by side, one core each")
    add("--collect-only", action="store_true", help="the table of the runs that are there")
    add("--record", action="store_true", help=f"write docs/results/{name}.json and pictures")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--percents", type=int, nargs="+", default=[5, 10])
    add("--folds", type=int, nargs="+", default=[1, 2, 3])
    add("--arms", nargs="+", choices=list(ARMS), default=list(DEFAULT_ARMS))
    add_options(parser, "pais_nuclei")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides of every run")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Trains what is left, measures, shows and records. Returns 0; 1 with one clear error line."""
    args = parse_args(argv)
    data = data_folder("dsb2018_dev")
    if data is None:
        return 1

    def work() -> dict[str, Any]:
        arms = [ARMS[name] for name in args.arms]
        options = {"jobs": args.jobs, "opts": args.opts}
        job = Experiment(data, args.output, args.percents, args.folds, arms, **options)
        seconds = {} if args.collect_only else Runner(job.output, job.plan()).run()
        result = pais_record(job, "pais_nuclei", seconds)
        write_json(job.output / "result.json", result, indent=1)
        write_curves(result, job.output / "curves.png")
        if args.record:
            write_curves(result, ROOT / "docs/pictures/pais_nuclei.png")
        return result

    return finish_measurement(work, args.record)


if __name__ == "__main__":
    sys.exit(main())
