"""A training of MAL that was run before: whether an experiment may use it instead of its own."""

import json
from pathlib import Path

from detectron2.config import CfgNode

from masksmith import new_config
from pseudolabel.config_diff import ABSENT, differences
from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, read_json

# Where a run reads and writes, on what, and how often it looks; its data is compared by content.
FREE = ("OUTPUT_DIR", "DATASETS.", "MODEL.DEVICE", "SEED", "TEST.EVAL_PERIOD", "SOLVER.CHECKPOINT_")
# What a labeler is told of a box, and what tells the records of two files apart.
TOLD = ("image_id", "category_id", "bbox", "iscrowd")


def require_run(run_dir: Path, config: Path, train: Path, seed: int, root: Path) -> None:
    """Refuses a run that is not what training `config` on the boxes of `train` would have made.

    Args:
        run_dir: output folder of tools/train_net.py.
        config: YAML whose merged keys the run must have had; `FREE` ones aside.
        train: COCO JSON with the boxes that it must have seen, and no mask of them.
        seed: that it must have had.
        root: the folder that relative paths of the run's config start from.

    Raises:
        DataError: naming what is missing or differs.
    """
    remedy = f"train {config.name} on the boxes alone, and name the folder with --mal-run"
    saved = run_dir / "config.yaml"
    for needed in (saved, run_dir / "model_final.pth"):
        if not needed.is_file():
            raise DataError(needed, "is not there: no finished training of MAL", remedy)
    run = _merged(saved)
    changed = {
        key: pair
        for key, pair in differences(_merged(config), run).items()
        # A saved config also holds the keys of every other method, at their defaults.
        if not key.startswith(FREE) and pair[0] != ABSENT
    }
    if changed:
        first = ", ".join(f"{k} is {v[1]!r}, not {v[0]!r}" for k, v in list(changed.items())[:3])
        raise DataError(saved, f"{len(changed)} keys differ from {config.name}: {first}", remedy)
    if seed != run.SEED:
        raise DataError(saved, f"SEED is {run.SEED}, not {seed}", "give its --seed")
    _require_boxes(_train_json(run, saved, root), train, remedy)


def run_seconds(run_dir: Path) -> float:
    """Seconds of the iterations of a training, from its metrics; 0 where it has none."""
    try:
        lines = [json.loads(x) for x in (run_dir / "metrics.json").read_text().splitlines()]
    except OSError:
        return 0.0
    # A line holds the median step since the line before it; a resumed run may repeat some.
    steps = {line["iteration"]: line["time"] for line in lines if line.get("time") is not None}
    seconds, before = 0.0, -1
    for iteration, step in sorted(steps.items()):
        seconds += step * (iteration - before)
        before = iteration
    return round(seconds, 1)


def _merged(config: Path) -> CfgNode:
    cfg = new_config()
    cfg.set_new_allowed(True)
    cfg.merge_from_file(str(config))
    return cfg


def _train_json(run: CfgNode, saved: Path, root: Path) -> Path:
    entries = {entry["name"]: entry for entry in run.DATASETS.REGISTER}
    names = [name for name in run.DATASETS.TRAIN if name in entries]
    if len(names) != 1 or len(run.DATASETS.TRAIN) != 1:
        raise DataError(saved, f"trains on {list(run.DATASETS.TRAIN)}", "use a run on one JSON")
    return root / expand_path(entries[names[0]]["json"])


def _require_boxes(seen: Path, train: Path, remedy: str) -> None:
    if not seen.is_file():
        raise DataError(seen, "the run was trained on it, and it is gone", "put it back")
    boxes = read_json(seen)["annotations"]
    if any(box.get("segmentation") for box in boxes):
        raise DataError(seen, "the run was trained on a file with masks", remedy)
    told = [{box["id"]: [box.get(k) for k in TOLD] for box in b} for b in (boxes, _boxes(train))]
    if told[0] != told[1]:
        raise DataError(seen, f"the run saw other boxes than those of {train.name}", remedy)


def _boxes(path: Path) -> list[dict]:
    return read_json(path)["annotations"]
