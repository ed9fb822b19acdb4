#!/usr/bin/env python3
"""Trains the rows of an ablation of MAL for several seeds and makes one table of them.

    python benchmarks/ablation.py nuclei --seeds 0 1 2            # resumable; about 3 minutes of
    python benchmarks/ablation.py nuclei --rows crf_off margin_1.8 #   one core per row and seed
    python benchmarks/ablation.py nuclei --collect-only --record ablation_nuclei

The rows are configs/mal/ablations_NAME/*.yaml, and their base is what they inherit from. What a row
changes is read from the merged keys. A row that changes MODEL.MAL.TEST.* alone is an evaluation of
the base's weights, all others are trained. Boxes are all that a row sees of train, but for the one
with human masks (MODEL.MAL.SUPERVISION mask), the ceiling.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from ablation_table import ablation_record
from boxes_to_masks import config_files
from commands import finish_measurement
from detectron2.config import CfgNode
from stages import ROOT, Runner, Stage

from masksmith import new_config
from pseudolabel.config_diff import differences
from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, write_json

# Keys that every run has to itself, or that only say when to look.
FREE = {"OUTPUT_DIR", "TEST.EVAL_PERIOD"}
# Seconds of a training and of an evaluation on one idle core, for the ETA alone.
TRAIN_SECONDS, TEST_SECONDS = 170, 60


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the YAML; "base" for what the others inherit from.
        config: its path.
        cfg: the merged config.
        changes: merged key -> its value here, where it differs from the base.
    """

    name: str
    config: Path
    cfg: CfgNode
    changes: dict[str, object]

    @property
    def is_evaluation(self) -> bool:
        """Whether the base's weights serve."""
        return bool(self.changes) and all(k.startswith("MODEL.MAL.TEST.") for k in self.changes)

    @property
    def needs_masks(self) -> bool:
        """Whether it is trained on human masks."""
        return self.cfg.MODEL.MAL.SUPERVISION == "mask"


def load_config(path: Path, opts: Sequence[str] = ()) -> CfgNode:
    """A YAML over the defaults of every key of the project, and overrides over it."""
    cfg = new_config()
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(list(opts))
    return cfg


def find_rows(
    name: str, opts: Sequence[str] = (), configs: Path = ROOT / "configs/mal"
) -> list[Row]:
    """The base and the rows of an ablation, the base first, with the overrides of every run.

    Raises:
        DataError: there is no such ablation, its rows have several bases, or a row changes nothing.
    """
    folder = configs / f"ablations_{name}"
    files = sorted(folder.glob("*.yaml"))
    if not files:
        known = ", ".join(sorted(p.name.partition("_")[2] for p in configs.glob("ablations_*")))
        raise DataError(folder, "holds no rows", f"use one of: {known}")
    bases = {(path.parent / yaml.safe_load(path.read_text())["_BASE_"]).resolve() for path in files}
    if len(bases) > 1:
        raise DataError(folder, "its rows have several bases", "let all inherit from one file")
    base = bases.pop()
    base_cfg = load_config(base, opts)
    rows = [Row("base", base, base_cfg, {})]
    for path in files:
        cfg = load_config(path, opts)
        changes = {
            key: new for key, (_, new) in differences(base_cfg, cfg).items() if key not in FREE
        }
        if not changes:
            raise DataError(path, "changes nothing of its base", "change one key")
        rows.append(Row(path.stem, path, cfg, changes))
    return rows


class Ablation:
    """Paths and stages of an ablation.

    Args:
        name: of the folder configs/mal/ablations_NAME.
        rows: the base first.
        seeds: each row is trained with each.
        output: everything that is written goes below it.
        jobs: stages that run side by side.
        opts: KEY VALUE overrides for every run.
    """

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        seeds: Sequence[int],
        output: Path,
        jobs: int = 1,
        opts: Sequence[str] = (),
    ):
        self.name, self.rows, self.seeds = name, list(rows), list(seeds)
        self.output, self.jobs, self.opts = output.resolve(), jobs, list(opts)
        self.test_set = rows[0].cfg.DATASETS.TEST[0]

    def run_dir(self, row: Row, seed: int) -> Path:
        """The output folder of a run."""
        return self.output / f"{row.name}_seed{seed}"

    def scores(self, row: Row, seed: int) -> Path:
        """The mask IoU of both networks of a run on val."""
        return self.run_dir(row, seed) / f"inference/{self.test_set}/mask_iou.json"

    def data(self, split: str) -> dict[str, str]:
        """The entry of DATASETS.REGISTER that the base trains ("train") or tests ("test") on."""
        cfg = self.rows[0].cfg
        name = (cfg.DATASETS.TRAIN if split == "train" else cfg.DATASETS.TEST)[0]
        return next(dict(e) for e in cfg.DATASETS.REGISTER if e["name"] == name)

    def plan(self) -> list[list[Stage]]:
        """Boxes, then the trainings seed by seed, then what only evaluates the base."""
        trained = [row for row in self.rows if not row.is_evaluation]
        tested = [row for row in self.rows if row.is_evaluation]
        runs = [self._train(row, seed) for seed in self.seeds for row in trained]
        runs += [self._test(row, seed) for seed in self.seeds for row in tested]
        # The evaluations stand last, but must not share a group with the training they need.
        first_test = len(self.seeds) * len(trained)
        parts = runs[:first_test], runs[first_test:]
        groups = [p[i : i + self.jobs] for p in parts for i in range(0, len(p), self.jobs)]
        return [[self._strip()], *groups]

    @property
    def boxes(self) -> Path:
        """The boxes-only copy of train."""
        return self.output / "boxes_train.json"

    def _strip(self) -> Stage:
        source = ROOT / expand_path(self.data("train")["json"])
        command = ["datasets/strip_masks.py", str(source), str(self.boxes)]
        return Stage("strip_train", command, [source], [self.boxes], seconds=2)

    def _command(self, row: Row, seed: int) -> list[str]:
        train, test = self.data("train"), self.data("test")
        if not row.needs_masks:
            train["json"] = str(self.boxes)
        command = ["tools/train_net.py", "--config-file", str(row.config)]
        command += ["DATASETS.REGISTER", str([train, test])]
        command += ["OUTPUT_DIR", str(self.run_dir(row, seed)), "SEED", str(seed)]
        # One checkpoint on the way: many runs fill a disk.
        command += ["SOLVER.CHECKPOINT_PERIOD", str(max(1, row.cfg.SOLVER.MAX_ITER // 2))]
        return [*command, *self.opts]

    def _train(self, row: Row, seed: int) -> Stage:
        command = self._command(row, seed)
        command.insert(1, "--resume")
        source = ROOT / expand_path(self.data("train")["json"]) if row.needs_masks else self.boxes
        return Stage(
            f"{row.name}_seed{seed}",
            command,
            [source, *config_files(row.config)],
            [self.run_dir(row, seed) / "model_final.pth", self.scores(row, seed)],
            seconds=TRAIN_SECONDS,
            run_dir=self.run_dir(row, seed),
            max_iter=row.cfg.SOLVER.MAX_ITER,
        )

    def _test(self, row: Row, seed: int) -> Stage:
        weights = self.run_dir(self.rows[0], seed) / "model_final.pth"
        command = [*self._command(row, seed), "MODEL.WEIGHTS", str(weights)]
        command.insert(1, "--eval-only")
        return Stage(
            f"{row.name}_seed{seed}",
            command,
            [weights, *config_files(row.config)],
            [self.scores(row, seed)],
            seconds=TEST_SECONDS,
        )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", help="of configs/mal/ablations_NAME")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--rows", nargs="+", help="these rows alone; the base is always among them")
    add("--output", type=Path, help="default: output/ablation_NAME")
    add("--jobs", type=int, default=1, help="runs side by side, one core each")
    add("--collect-only", action="store_true", help="the table of the runs that are there")
    add("--record", metavar="FILE", help="write docs/results/FILE.json, e.g. ablation_NAME")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE overrides, e.g. for a test")
    return parser.parse_args(argv)


def chosen(rows: list[Row], names: Sequence[str] | None) -> list[Row]:
    """The base and the rows of these names; all where none are given.

    Raises:
        DataError: no row has that name.
    """
    unknown = set(names or ()) - {row.name for row in rows}
    if unknown:
        known = ", ".join(row.name for row in rows)
        raise DataError("--rows", f"no row {', '.join(sorted(unknown))}", f"use some of: {known}")
    return [row for row in rows if names is None or row.name in {"base", *names}]


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    output = args.output or ROOT / f"output/ablation_{args.name}"

    def work() -> dict:
        rows = chosen(find_rows(args.name, args.opts), args.rows)
        ablation = Ablation(args.name, rows, args.seeds, output, args.jobs, args.opts)
        seconds = {} if args.collect_only else Runner(output, ablation.plan()).run()
        result = ablation_record(ablation, args.record or f"ablation_{args.name}", seconds)
        write_json(output / "result.json", result, indent=1)
        return result

    return finish_measurement(work, bool(args.record))


if __name__ == "__main__":
    sys.exit(main())
