"""What one run of `pais_nuclei` left behind: AP from its predictions, curves, pseudo-labels."""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pais.evaluation import NETWORKS
from pseudolabel.ap import MAX_DETS, GroundTruth, average_precision
from pseudolabel.errors import DataError
from pseudolabel.evaluators import RESULTS_FILE

# Column -> task, detections that count per image, key of `average_precision`.
AT_END = {
    "mask AP": ("segm", 100, "AP"),
    "AP75": ("segm", 100, "AP75"),
    "mask AP @200": ("segm", 200, "AP"),
    "AP75 @200": ("segm", 200, "AP75"),
    "box AP": ("bbox", 100, "AP"),
}
# How soon an arm is how good: mean of its curve, the common start left out.
CURVE = "mean of the curve"
# Scalars of a run that tell of its pseudo-labels; means over the run are kept.
STATISTICS = ("pseudo-labels/", "unlabelled/")


@dataclass
class Found:
    """What one run left behind.

    Attributes:
        networks: network -> metric -> number; metrics that are not there are absent.
        curves: network -> [[iteration, mask AP], ...] of the evaluations on the way.
        statistics: scalar of the pseudo-labels -> its mean over the run.
    """

    networks: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.json, but for one that a kill has cut; none without the file."""
    try:
        texts = (folder / "metrics.json").read_text().splitlines()
    except FileNotFoundError:
        return []
    lines = []
    for text in texts:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def curve(lines: Iterable[Mapping[str, Any]], network: str, last: int) -> list[list[float]]:
    """[[steps made, mask AP], ...] of a run's evaluations, in order.

    Args:
        lines: of metrics.json; of two lines of one iteration the later counts.
        last: SOLVER.MAX_ITER; its evaluation is logged as that iteration, all others as one less
            than the steps that were made.
    """
    key = f"{network}/segm/AP"
    points = {min(line["iteration"] + 1, last): line[key] for line in lines if key in line}
    return [[step, points[step]] for step in sorted(points)]


def is_finished(folder: Path, keys: Mapping[str, Any], trained: bool = True) -> bool:
    """Whether a run holds both networks' predictions of its end.

    Args:
        keys: its config.yaml, nested.
        trained: its last iteration must have been evaluated, since predictions on the way have the
            same name.
    """
    if not all(path.is_file() for path in prediction_files(folder, keys).values()):
        return False
    # Steps are logged from 0: an evaluation logged as MAX_ITER was made after the last of them.
    lines = read_lines(folder) if trained else []
    done = [line["iteration"] for line in lines if f"{NETWORKS[0]}/segm/AP" in line]
    return not trained or max(done, default=0) >= keys["SOLVER"]["MAX_ITER"]


def prediction_files(folder: Path, keys: Mapping[str, Any]) -> dict[str, Path]:
    """Network -> its predictions on the test set that the config names."""
    test_set = folder / "inference" / keys["DATASETS"]["TEST"][0]
    return {name: test_set / name / RESULTS_FILE for name in NETWORKS}


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """Results in COCO's format.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(path, f"cannot be read ({error})", "continue this run") from error


def score(truth: GroundTruth, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Column of `AT_END` -> percent; of predictions in COCO's result format."""
    settings = sorted({(task, most) for task, most, _ in AT_END.values()})
    tables = {
        (task, most): average_precision(truth, rows, task, max_dets=most, per_class=False)
        for task, most in settings
    }
    return {name: tables[task, most][key] for name, (task, most, key) in AT_END.items()}


def read_run(folder: Path, keys: Mapping[str, Any], truth: GroundTruth) -> Found:
    """Everything that a finished run says of itself.

    Args:
        keys: its config.yaml, nested.

    Raises:
        DataError: its predictions are not those of its last evaluation.
    """
    lines, found = read_lines(folder), Found()
    most = keys["TEST"]["EVALUATOR"]["MAX_DETS"] or MAX_DETS["coco"]
    for network, path in prediction_files(folder, keys).items():
        numbers = found.networks[network] = score(truth, read_predictions(path))
        points = found.curves[network] = curve(lines, network, keys["SOLVER"]["MAX_ITER"])
        column = {100: "mask AP", 200: "mask AP @200"}.get(most)
        if points and column and not math.isclose(points[-1][1], numbers[column], abs_tol=1e-3):
            problem = f"gives mask AP {numbers[column]:.3f}, metrics.json {points[-1][1]:.3f}"
            raise DataError(path, problem, "continue this run: it was stopped while it evaluated")
        # A single evaluation, at the end, is no curve.
        if len(points) > 1:
            numbers[CURVE] = fmean(ap for _, ap in points)
    logged = {key for line in lines for key in line if key.startswith(STATISTICS)}
    for key in sorted(logged):
        values = [line[key] for line in lines if key in line and math.isfinite(line[key])]
        if values:
            found.statistics[key] = fmean(values)
    return found
