"""One experiment as a JSON-able record: raw numbers and everything needed to obtain them again."""

import datetime
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from stages import ROOT

from pseudolabel.files import file_hash, nan_to_null, read_json, write_json
from pseudolabel.mask_iou import score_label_file
from pseudolabel.retention import MIN_HUMAN_AP, last_evaluation, last_quarter_gain
from pseudolabel.store import VERSIONED

KIND = "boxes_to_masks"
MEASUREMENT = "measurement"
RESULTS = ROOT / "docs/results"
_PACKAGES = (*VERSIONED, "detectron2", "fvcore", "opencv-python")


def collect(
    experiment: Any, seconds: dict[str, float], labelers: Iterable[str], arms: Iterable[str]
) -> dict[str, Any]:
    """Gathers what the stages of an experiment left behind.

    Args:
        experiment: `boxes_to_masks.Experiment`, all stages done.
        seconds: wall seconds of each stage; those of one group ran side by side.
        labelers: names of the label files of val.
        arms: names of the Mask R-CNN runs; "human" and "mal" give the retention.

    Returns:
        JSON-able record; None stands for a mean over nothing.

    Raises:
        DataError: a label file or a run does not have what it should.
    """
    truth = experiment.splits["val"][0]
    runs = {arm: last_evaluation(experiment.output / f"rcnn_{arm}") for arm in arms}
    return {
        "kind": KIND,
        "name": experiment.name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": portable_command(sys.argv),
        "seed": experiment.seed,
        "data": {split: data_facts(files[0]) for split, files in experiment.splits.items()},
        "configs": {
            "mal": config_facts(experiment.mal_config),
            **({"mask_rcnn": config_facts(experiment.rcnn_config)} if runs else {}),
        },
        "versions": _versions(),
        "hardware": hardware(),
        "seconds": dict(seconds),
        "labels": {
            name: nan_to_null(score_label_file(experiment.labels(name, "val"), truth))
            for name in labelers
        },
        "labelled_by": labeler_facts(experiment, labelers),
        "mal_evaluation": _last_mask_iou(experiment.mal_run),
        "arms": runs,
        "retention": retention(runs.get("mal"), runs.get("human")),
    }


def measurement(
    name: str, text: str, header: list[str], rows: list[list[str]], raw: dict[str, Any]
) -> dict[str, Any]:
    """One table of a benchmark as a JSON-able record.

    Args:
        name: of the file and of the section.
        text: what the table shows and how it was measured, in a sentence or two.
        header: titles of the columns.
        rows: cells as they are shown; the first column is text.
        raw: the numbers behind them, unrounded.
    """
    return {
        "kind": MEASUREMENT,
        "name": name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": portable_command(sys.argv),
        "text": text,
        "header": header,
        "rows": rows,
        "raw": raw,
        "versions": _versions(),
        "hardware": hardware(),
    }


def record(result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes `docs/results/<name>.json` atomically and returns its path."""
    path = folder / f"{result['name']}.json"
    write_json(path, result, indent=1)
    return path


def retention(mal: dict | None, human: dict | None) -> dict[str, Any]:
    """AP with MAL's labels as a share of AP with human masks.

    Returns:
        `percent` (None where it does not count), `note` that says why, and `last_quarter_gain`:
        mask AP that the human run still won in the last quarter of its schedule, or None if it was
        not evaluated before.
    """
    ceiling = human["segm/AP"] if human else None
    reached = mal["segm/AP"] if mal else None
    gain = last_quarter_gain(human) if human else None
    if ceiling is None or reached is None:
        return {"percent": None, "note": "not measured", "last_quarter_gain": gain}
    if ceiling < MIN_HUMAN_AP:
        return {"percent": None, "note": "under-trained", "last_quarter_gain": gain}
    return {"percent": 100 * reached / ceiling, "note": None, "last_quarter_gain": gain}


def _last_mask_iou(run_dir: Path) -> dict | None:
    """What a run of MAL measured at its end, whatever its test set is called."""
    return next((read_json(f) for f in run_dir.glob("inference/*/mask_iou.json")), None)


def _optional_json(path: Path) -> dict | None:
    return read_json(path) if path.exists() else None


def labeler_facts(experiment: Any, labelers: Iterable[str]) -> dict[str, Any]:
    """What each labeler says of itself in the manifest of its labels of val."""
    manifests = {
        name: _optional_json(experiment.labels(name, "val").with_suffix(".manifest.json"))
        for name in labelers
    }
    return {name: manifest["labeler"] for name, manifest in manifests.items() if manifest}


def data_facts(path: Path) -> dict[str, Any]:
    """Hash and counts of a COCO JSON."""
    data = read_json(path)
    crowds = sum(1 for annotation in data["annotations"] if annotation.get("iscrowd", 0))
    return {
        "file": path.name,
        "sha256": file_hash(path),
        "images": len(data["images"]),
        "instances": len(data["annotations"]) - crowds,
        "crowds": crowds,
        "categories": len(data["categories"]),
    }


def config_facts(path: Path) -> dict[str, str]:
    """Name and hash of a config: that of the keys with all bases merged, so comments do not
    count."""
    merged = CfgNode.load_yaml_with_base(str(path))
    digest = hashlib.sha256(json.dumps(merged, sort_keys=True).encode()).hexdigest()
    return {"file": portable_path(str(path)), "sha256": digest}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # E.g. an OpenCV build under another distribution name.
            found[name] = "not installed under this name"
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB and GPU; nothing that names the
    machine."""
    affinity = getattr(os, "sched_getaffinity", None)
    pages = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= os.sysconf_names.keys()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if pages else None
    return {
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1) if memory else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def portable_command(argv: list[str]) -> str:
    """The command line with paths as another checkout would write them."""
    return " ".join(["python", *(portable_path(argument) for argument in argv)])


def portable_path(argument: str) -> str:
    """An absolute path relative to the checkout or to $MASKSMITH_DATA, else its last part alone.

    `--option=/path` is handled too; anything else is returned as it is.
    """
    option, equals, value = argument.rpartition("=")
    if not os.path.isabs(value):
        return argument
    path = Path(value).resolve()
    data = os.environ.get("MASKSMITH_DATA")
    if path.is_relative_to(ROOT):
        value = path.relative_to(ROOT).as_posix()
    elif data and path.is_relative_to(Path(data).resolve()):
        value = f"$MASKSMITH_DATA/{path.relative_to(Path(data).resolve()).as_posix()}"
    else:
        value = path.name
    return option + equals + value
