#!/usr/bin/env python3
"""Which settings are worth a line of `pais_nuclei.py`? Asked of training images, never of val.

    python benchmarks/pais_choices.py --record            # `make results NAME=pais_choices`; hours
    python benchmarks/pais_choices.py --arms pais pais_weight_2 --jobs 2

A fifth of the training images is held out to be evaluated on; of the others as many are labelled as
in the comparison, 3 or 7. One draw and one seed, outside the comparison's. Everything else is that
of `pais_nuclei.py`: a common supervised start, the arms, and how a stopped run goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from commands import data_folder, finish_measurement
from mask2former_nuclei import HELD_OUT
from mask2former_nuclei import split as hold_out
from pais_arms import ARMS
from pais_nuclei import Experiment, add_options
from pais_table import pais_record
from stages import Runner, Stage

from pseudolabel.files import write_json
from pseudolabel.splits import split_name

NAME = "pais_choices"
# Percent of the comparison -> percent of the images that are not held out: as many images.
SHARES = {5: "6", 10: "12.5"}
DRAW = 1


@dataclass
class Choices(Experiment):
    """The comparison on a part of the training images, with the seed 0."""

    percents: Sequence[int] = (5,)
    folds: Sequence[int] = (0,)

    @property
    def train(self) -> Path:
        """The images that are not held out."""
        return self.output / "fit.json"

    @property
    def val(self) -> Path:
        """The images that are."""
        return self.output / "held.json"

    def split(self, percent: int, fold: int) -> tuple[Path, Path]:
        """The JSONs of the labelled and of the unlabelled images."""
        name = split_name(self.train.stem, DRAW, Decimal(SHARES[percent]), stratified=True)
        folder = self.output / "splits"
        return folder / f"{name}.json", folder / f"{name}-unlabeled.json"

    def hold_out(self) -> None:
        """Writes `train` and `val`."""
        hold_out(self.data / "annotations/instances_train.json", self.train, self.val)

    def _splits(self) -> Stage:
        shares = [SHARES[percent] for percent in self.percents]
        command = ["datasets/prepare_splits.py", str(self.train), "--percent", *shares]
        command += ["--fold", str(DRAW), "--stratify", "--output", str(self.output / "splits")]
        files = [path for p in self.percents for path in self.split(p, 0)]
        return Stage("splits", command, [self.train], files)


def choices_record(job: Choices) -> dict[str, Any]:
    """The finished runs as a JSON-able record.

    Raises:
        DataError: no arm is finished, or a run is of another config.
    """
    made = pais_record(job, NAME, {})
    about = (
        "Settings of PAIS on nuclei, each one run, evaluated on "
        f"{HELD_OUT:.0%} of the training images that no run of this table has trained on; val is "
        "not read. What differs by less than a point is not told apart by one run. "
    )
    return made | {"text": about + made["text"]}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    trained = [name for name, arm in ARMS.items() if not arm.evaluates]
    add("--percents", type=int, nargs="+", choices=SHARES, default=[5])
    add("--arms", nargs="+", choices=list(ARMS), default=trained)
    add_options(parser, NAME)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Trains what is left, measures, shows and records. Returns 0; 1 with one clear error line."""
    args = parse_args(argv)
    data = data_folder("dsb2018_dev")
    if data is None:
        return 1

    def work() -> dict[str, Any]:
        arms = [ARMS[name] for name in args.arms]
        job = Choices(data, args.output, args.percents, arms=arms, jobs=args.jobs)
        job.hold_out()
        if not args.collect_only:
            Runner(job.output, job.plan()).run()
        result = choices_record(job)
        write_json(job.output / "result.json", result, indent=1)
        return result

    return finish_measurement(work, args.record)


if __name__ == "__main__":
    sys.exit(main())
