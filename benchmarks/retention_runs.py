"""The runs of `tools/retention.py`: what is left to train, and the result of what is there."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from results import config_facts, data_facts, measurement
from stages import Stage

from masksmith import new_config
from pseudolabel.errors import DataError
from pseudolabel.retention import (
    HUMAN,
    Run,
    check_comparable,
    check_run,
    compare_arms,
    is_finished,
    label_path,
    read_config,
    read_runs,
    run_folder,
)
from pseudolabel.retention_table import description, table

# Of a first run on one core, for an ETA until one has been measured.
GUESSED_SECONDS = 300


class ResumedStage(Stage):
    """A training that goes on where it was stopped, whoever began it."""

    def keep_or_clear_run(self) -> None:
        """Keeps the folder: `Comparison.plan` has looked at what it was begun with."""


@dataclass
class Comparison:
    """A detector on the masks of several arms, each with several seeds.

    Attributes:
        config_file: of the detector.
        arms: name -> training JSON; `{seed}` in its path becomes the seed. "human" is one of them.
        images, val, val_images: image folder of train; JSON and image folder of val ("": train's).
        bar: the arm that the others should clear.
        seeds: of the runs.
        output: folder of the runs.
        format: "coco" or "lvis", of every JSON.
        opts: KEY VALUE overrides of every run.
    """

    config_file: Path
    arms: dict[str, str]
    images: str
    val: str
    bar: str
    seeds: list[int]
    output: Path
    val_images: str | None = None
    format: str = "coco"
    opts: list[str] = field(default_factory=list)

    def config(self) -> CfgNode:
        """The detector's config, over the defaults of every key of the project."""
        cfg = new_config()
        cfg.merge_from_file(str(self.config_file))
        cfg.merge_from_list(self.opts)
        return cfg

    def keys(self) -> dict[str, Any]:
        """The same as nested plain values, as a run's config.yaml holds them."""
        return yaml.safe_load(self.config().dump())

    def plan(self) -> list[list[Stage]]:
        """The trainings that are not finished, one after another and seed by seed, so that pairs
        are complete early.

        Raises:
            DataError: a label file is missing, or a run was begun on another one.
        """
        max_iter = self.config().SOLVER.MAX_ITER
        pairs = [(arm, seed) for seed in self.seeds for arm in self.arms]
        stages = [self._stage(arm, seed, max_iter) for arm, seed in pairs]
        return [[stage] for stage in stages if stage is not None]

    def _stage(self, arm: str, seed: int, max_iter: int) -> Stage | None:
        folder = run_folder(self.output.resolve(), arm, seed)
        if (folder / "config.yaml").is_file():
            check_run(Run(arm, seed, folder, read_config(folder), {}), self.arms[arm], self.keys())
        if is_finished(folder):
            return None
        labels = label_path(self.arms[arm], seed).resolve()
        if not labels.is_file():
            raise DataError(labels, "the file does not exist", f"make the labels of {arm} first")
        command = ["tools/train_net.py", "--resume", "--config-file"]
        command += [str(self.config_file.resolve()), *self._data(labels)]
        # One look at three quarters tells whether the human masks' arm has converged.
        command += ["TEST.EVAL_PERIOD", str(3 * max_iter // 4)] if arm == HUMAN else []
        command += [*self.opts, "SEED", str(seed), "OUTPUT_DIR", str(folder)]
        outputs = [folder / "model_final.pth", folder / "metrics.json"]
        return ResumedStage(
            folder.name,
            command,
            [labels],
            outputs,
            seconds=GUESSED_SECONDS,
            run_dir=folder,
            max_iter=max_iter,
        )

    def _data(self, labels: Path) -> list[str]:
        sets = [
            ("arm_train", labels, self.images),
            ("arm_val", Path(self.val).resolve(), self.val_images or self.images),
        ]
        entries = [
            {"name": name, "json": str(path), "image_root": str(Path(root).resolve())}
            | {"format": self.format}
            for name, path, root in sets
        ]
        names = ["DATASETS.TRAIN", "('arm_train',)", "DATASETS.TEST", "('arm_val',)"]
        return ["DATASETS.REGISTER", str(entries), *names]

    def collect(self, name: str) -> dict[str, Any]:
        """The comparison of the finished runs, as a result with one table.

        Raises:
            DataError: no run is finished, or they differ in more than the masks of train.
        """
        runs = read_runs(self.output, list(self.arms), self.seeds)
        if not runs:
            raise DataError(self.output, "holds no finished run", "leave --collect-only out")
        check_comparable(runs, self.arms, self.keys())
        arms = compare_arms(runs, self.bar)
        found = {run.folder.name for run in runs}
        asked = [run_folder(self.output, a, seed).name for seed in self.seeds for a in self.arms]
        text = description(arms, runs, self.bar, [name for name in asked if name not in found])
        raw = {run.folder.name: run.numbers for run in runs}
        return measurement(name, text, *table(arms, self.bar), raw) | {
            "seeds": sorted({run.seed for run in runs}),
            "data": self._data_facts(runs),
            "configs": {"detector": config_facts(self.config_file)},
        }

    def _data_facts(self, runs: list[Run]) -> dict[str, Any]:
        facts = {"val": data_facts(Path(self.val))}
        for run in runs:
            name = f"{run.arm} {run.seed}" if "{seed}" in self.arms[run.arm] else run.arm
            if name not in facts:
                facts[name] = data_facts(label_path(self.arms[run.arm], run.seed))
        return facts
