"""Retention: mask AP of a model trained on labels as a share of the same model's on human masks.

Runs are folders of `tools/train_net.py`, `rcnn_ARM_seedSEED`, each with config.yaml, metrics.json
and, once it is finished, model_final.pth. Arms differ in the masks of train alone, and are paired
by seed. AP in percent, 0 to 100.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pseudolabel.config_diff import differences
from pseudolabel.data_hashes import read_data_hashes
from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, file_hash, nan_to_null
from pseudolabel.paired import Spread, paired_difference, paired_percent, spread

HUMAN = "human"
# A weaker model on human masks says nothing about how good other masks are.
MIN_HUMAN_AP = 25.0
# A run that still wins more in the last quarter of its schedule has not converged.
CONVERGED_AP = 0.2
# Below this, a deviation says little about chance.
MIN_SEEDS = 3
METRICS = {
    "mask AP": "segm/AP",
    "AP50": "segm/AP50",
    "AP75": "segm/AP75",
    "box AP (control)": "bbox/AP",
}
NUM_CLASSES = "MODEL.ROI_HEADS.NUM_CLASSES"
# What two runs of one comparison may differ in; when to evaluate changes no weight.
FREE_KEYS = {
    *("DATASETS.REGISTER", "DATASETS.TRAIN", "DATASETS.TEST"),
    *("OUTPUT_DIR", "SEED", "TEST.EVAL_PERIOD"),
}


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        arm, seed: what it is in the comparison.
        folder: of the run.
        config: its config.yaml as nested dictionaries.
        numbers: of `last_evaluation`.
    """

    arm: str
    seed: int
    folder: Path
    config: dict[str, Any]
    numbers: dict[str, Any]


def run_folder(output: Path, arm: str, seed: int) -> Path:
    """Where a run of the comparison lies."""
    return output / f"rcnn_{arm}_seed{seed}"


def label_path(template: str, seed: int) -> Path:
    """A label file; `{seed}` in its name becomes the seed."""
    return Path(template.replace("{seed}", str(seed)))


def last_evaluation(run_dir: Path) -> dict[str, Any]:
    """The last evaluation in a run's metrics.json, and the mask AP of all of them.

    Returns:
        `iteration`, every `segm/...` and `bbox/...`, and `history`: [[iteration, mask AP], ...];
        None stands for NaN.

    Raises:
        DataError: the file is not there, is damaged, or holds no evaluation of masks.
    """
    path = run_dir / "metrics.json"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(path, f"no readable metrics ({error})", "train this arm again") from error
    # A resumed run may repeat an iteration; the later line counts.
    evaluated = {line["iteration"]: line for line in lines if "segm/AP" in line}
    if not evaluated:
        raise DataError(path, "holds no evaluation of masks", "evaluate on val after training")
    last = evaluated[max(evaluated)]
    numbers = {k: v for k, v in last.items() if k.startswith(("segm/", "bbox/"))}
    history = nan_to_null({step: evaluated[step]["segm/AP"] for step in sorted(evaluated)})
    return {
        "iteration": last["iteration"],
        **nan_to_null(numbers),
        "history": [[step, ap] for step, ap in history.items()],
    }


def last_quarter_gain(numbers: Mapping[str, Any]) -> float | None:
    """What a run still won after three quarters of its schedule; None if not evaluated before.

    Args:
        numbers: `history`: [[iteration, mask AP or another measure], ...].
    """
    history = [(step, ap) for step, ap in numbers["history"] if ap is not None]
    if not history:
        return None
    earlier = [ap for step, ap in history if step + 1 <= 0.75 * (history[-1][0] + 1)]
    return history[-1][1] - earlier[-1] if earlier else None


def is_finished(folder: Path) -> bool:
    """Whether a run has its last weights and an evaluation of masks."""
    if not (folder / "model_final.pth").is_file():
        return False
    try:
        last_evaluation(folder)
    except DataError:
        return False
    return True


def read_runs(output: Path, arms: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """The finished runs of a comparison.

    Raises:
        DataError: a run has no readable config.yaml.
    """
    runs = []
    for arm in arms:
        for seed in seeds:
            folder = run_folder(output, arm, seed)
            if is_finished(folder):
                config, numbers = read_config(folder), last_evaluation(folder)
                runs.append(Run(arm, seed, folder, config, numbers))
    return runs


def read_config(folder: Path) -> dict[str, Any]:
    """The config.yaml of a run.

    Raises:
        DataError: it is not there, or is no YAML.
    """
    path = folder / "config.yaml"
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise DataError(path, "cannot be read as YAML", "train this arm again") from error


def check_comparable(
    runs: Sequence[Run], labels: Mapping[str, str], asked: Mapping[str, Any]
) -> None:
    """Refuses runs that differ in more than the masks of train and the seed.

    Args:
        labels: arm -> training JSON that it should have seen; `{seed}` stands for the seed.
        asked: nested keys of the config that the comparison is of; also the values of keys that
            an older run's config.yaml lacks.

    Raises:
        DataError: naming the run and the key.
    """
    for run in runs:
        check_run(run, labels[run.arm], asked)
        first = runs[0].folder.name
        changed = differences(_filled(runs[0].config, asked), _filled(run.config, asked))
        _refuse_first(run, first, {k: v for k, v in changed.items() if k not in FREE_KEYS})
        _refuse_first(run, first, differences(_fixed_data(runs[0]), _fixed_data(run)))


def check_run(run: Run, template: str, asked: Mapping[str, Any]) -> None:
    """Refuses a run, finished or not, of another seed, another config or on another label file.

    Args:
        template: training JSON that it should have seen; `{seed}` stands for the seed.
        asked: as of `check_comparable`.

    Raises:
        DataError: naming the run's config.yaml, or its list of hashes.
    """
    changed = differences(dict(asked), _filled(run.config, asked))
    # 0 classes: the run counts them itself.
    settled = {NUM_CLASSES} if changed.get(NUM_CLASSES, (1,))[0] == 0 else set()
    changed = {k: v for k, v in changed.items() if k not in FREE_KEYS | settled}
    _refuse_first(run, "the config that is asked for", changed)
    path = run.folder / "config.yaml"
    if run.config["SEED"] != run.seed:
        problem = f"SEED is {run.config['SEED']}, not the {run.seed} of the folder's name"
        raise DataError(path, problem, "train this arm again")
    stated = Path(expand_path(_entries(run, "TRAIN")[0]["json"]))
    given = Path(expand_path(str(label_path(template, run.seed)))).resolve()
    # A run states a relative path as seen from where it was started.
    tail = stated.parts if not stated.is_absolute() else stated.resolve().parts
    if given.parts[-len(tail) :] != tail:
        problem = f"DATASETS.REGISTER: it was trained on {stated}, not on {given}"
        raise DataError(path, problem, "give that file, or train this arm again")
    seen = seen_labels(run)
    if seen is not None and seen != file_hash(given):
        problem = f"it was trained on {stated} as it was before: the file has changed since"
        raise DataError(run.folder, problem, "move this run away, and train the arm again")


def seen_labels(run: Run) -> str | None:
    """sha256 of the labels of train when the run began; None where it was not written down."""
    return read_data_hashes(run.folder).get(run.config["DATASETS"]["TRAIN"][0])


def _refuse_first(run: Run, other: str, changed: Mapping[str, tuple[Any, Any]]) -> None:
    if changed:
        key, (old, new) = next(iter(changed.items()))
        problem = f"{key} is {new}, but {old} in {other}"
        raise DataError(
            run.folder / "config.yaml", problem, "train the arms with one config and one data set"
        )


def _fixed_data(run: Run) -> dict[str, Any]:
    """What of DATASETS.REGISTER must be the same in every run."""
    train, test = _entries(run, "TRAIN"), _entries(run, "TEST")
    return {
        "image_root of train": [entry["image_root"] for entry in train],
        "json of val": [entry["json"] for entry in test],
        "image_root of val": [entry["image_root"] for entry in test],
        "format": [entry.get("format", "coco") for entry in train + test],
    }


def _entries(run: Run, key: str) -> list[dict[str, str]]:
    by_name = {entry["name"]: entry for entry in run.config["DATASETS"]["REGISTER"]}
    return [by_name[name] for name in run.config["DATASETS"][key]]


def _filled(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config with what it lacks."""
    merged = dict(defaults)
    for key, value in config.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _filled(value, merged[key]) if nested else value
    return merged


@dataclass(frozen=True)
class ArmResult:
    """One arm over its seeds.

    Attributes:
        arm: its name.
        metrics: title of `METRICS` -> spread over seeds.
        to_human, to_bar: mask AP minus that of the human arm and of the bar, paired by seed.
        percent: retention, paired by seed; None where it does not count.
        seeds: those that are finished.
    """

    arm: str
    metrics: dict[str, Spread]
    to_human: Spread
    to_bar: Spread
    percent: Spread | None
    seeds: tuple[int, ...]

    @property
    def clears_bar(self) -> bool:
        """Whether it is above the bar by more than two deviations of the paired difference."""
        return self.to_bar.n >= MIN_SEEDS and self.to_bar.mean > 2 * self.to_bar.std


def compare_arms(runs: Sequence[Run], bar: str) -> list[ArmResult]:
    """The arms in the order of their first runs.

    Args:
        bar: name of the arm that the others should clear.
    """
    arms = list(dict.fromkeys(run.arm for run in runs))
    by_arm = {arm: _mask_ap(runs, arm) for arm in arms}
    human, bar_ap = by_arm.get(HUMAN, {}), by_arm.get(bar, {})
    counts = spread(list(human.values())).mean >= MIN_HUMAN_AP
    results = []
    for arm in arms:
        own = [run for run in runs if run.arm == arm]
        metrics = {
            title: spread([r.numbers[k] for r in own if r.numbers.get(k) is not None])
            for title, k in METRICS.items()
        }
        ap = by_arm[arm]
        results.append(
            ArmResult(
                arm,
                metrics,
                paired_difference(ap, human if arm != HUMAN else {}),
                paired_difference(ap, bar_ap if arm != bar else {}),
                paired_percent(ap, human) if counts else None,
                tuple(sorted(run.seed for run in own)),
            )
        )
    return results


def _mask_ap(runs: Sequence[Run], arm: str) -> dict[int, float]:
    found = {run.seed: run.numbers["segm/AP"] for run in runs if run.arm == arm}
    return {seed: ap for seed, ap in found.items() if ap is not None}
