"""The table of `pais_nuclei`: arms over folds, differences paired by fold, and a picture."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from pais_arms import START
from pais_runs import AT_END, CURVE, Found, is_finished, read_run
from results import config_facts, data_facts, measurement
from tables import markdown_table

from pais.evaluation import NETWORKS
from pseudolabel.ap import MAX_DETS, GroundTruth
from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write, nan_to_null
from pseudolabel.paired import Spread, paired_difference, spread
from pseudolabel.retention import MIN_SEEDS

METRICS = (*AT_END, CURVE)
HEADLINE = "mask AP"
PAIRS = (("pais", "hard"), ("hard", "supervised"), ("pais", "supervised"))
# What longer training alone gains, and what remains between the two where both are ranked.
PAIRS += (("supervised", START), ("pais_ranked", "hard_ranked"))
PAIRS += (("pais_large", "hard_large"), ("hard_large", "supervised_large"))
# Okabe and Ito's colours, told apart by all; lines differ in dashes as well.
STYLES = (("#0072B2", "-"), ("#E69F00", "--"), ("#000000", ":"), ("#009E73", "-."))
STYLES += (("#CC79A7", "-"), ("#56B4E9", "--"), ("#D55E00", ":"))
# Of these arms the look stays the same, whichever others there are.
STYLE_OF = {"pais": 0, "hard": 1, "supervised": 2}

# fold -> number.
ByFold = dict[int, float]


def pais_record(experiment: Any, name: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The comparison of the finished runs as a JSON-able record.

    Args:
        experiment: `pais_nuclei.Experiment`.
        name: of the result and of its section.
        seconds: wall seconds of the stages that have just run.

    Raises:
        DataError: no arm is finished, or a run is of another config.
    """
    truth = GroundTruth.read(experiment.val)
    found, missing = {}, []
    for run in experiment.all_runs():
        folder, keys = experiment.folder(run), experiment.check(run)
        if keys is not None and is_finished(folder, keys, not run.arm.evaluates):
            found[run] = read_run(folder, keys, truth)
        else:
            missing.append(run.name)
    if not any(run.arm in experiment.arms for run in found):
        raise DataError(experiment.output, "holds no finished arm", "leave --collect-only out")
    numbers = by_fold(found)
    means, gains = summaries(experiment, numbers), paired(experiment, numbers)
    raw = {
        "runs": {run.name: _run_json(each) for run, each in found.items()},
        "missing": missing,
        "means": {" ".join(map(str, key)): _spreads(each) for key, each in means.items()},
        "differences": {
            f"{p} {network} {ours} - {theirs}": {
                metric: {**each.json(), "clears": clears(each)} for metric, each in table.items()
            }
            for (p, ours, theirs, network), table in gains.items()
        },
        "changes": {arm.name: arm.changes for arm in experiment.arms},
        "options": experiment.options,
        "overrides": list(experiment.opts),
        "seconds": dict(seconds),
    }
    text, note = _text(experiment, truth, missing), _note(experiment, gains)
    header = ["labelled", "arm", "network", *METRICS, "folds"]
    rows = [_row(key, table) for key, table in means.items()]
    return measurement(name, text, header, rows, raw) | {
        "note": note,
        "seeds": list(experiment.folds),
        "data": {"val": data_facts(experiment.val)} | _split_facts(experiment),
        "configs": {str(p): config_facts(experiment.config_file(p)) for p in experiment.percents},
    }


def by_fold(found: Mapping[Any, Found]) -> dict[tuple[int, str, str, str], ByFold]:
    """(percent, arm, network, metric) -> fold -> number, of what is defined."""
    table: dict[tuple[int, str, str, str], ByFold] = {}
    for run, each in found.items():
        for network, numbers in each.networks.items():
            for metric, value in numbers.items():
                if not math.isnan(value):
                    key = (run.percent, run.arm.name, network, metric)
                    table.setdefault(key, {})[run.fold] = value
    return table


def summaries(experiment: Any, numbers: Mapping[tuple, ByFold]) -> dict[tuple, dict[str, Spread]]:
    """(percent, arm, network) -> metric -> spread over folds; the common start first."""
    arms = dict.fromkeys(run.arm.name for run in experiment.all_runs())
    return {
        (percent, arm, network): {
            metric: spread(list(numbers.get((percent, arm, network, metric), {}).values()))
            for metric in METRICS
        }
        for percent, network, arm in product(experiment.percents, NETWORKS, arms)
    }


def paired(experiment: Any, numbers: Mapping[tuple, ByFold]) -> dict[tuple, dict[str, Spread]]:
    """(percent, arm, other arm, network) -> metric -> spread of the difference, paired by fold.

    The three arms are compared with each other and the start, further ones with "pais" and "hard".
    """
    names = dict.fromkeys(run.arm.name for run in experiment.all_runs())
    further = [name for name in names if name not in (START, *STYLE_OF)]
    pairs = [*PAIRS, *product(further, ("pais", "hard"))]
    result = {}
    for percent, network, (ours, theirs) in product(experiment.percents, NETWORKS, pairs):
        if {ours, theirs} <= names.keys():
            result[percent, ours, theirs, network] = {
                metric: paired_difference(
                    numbers.get((percent, ours, network, metric), {}),
                    numbers.get((percent, theirs, network, metric), {}),
                )
                for metric in METRICS
            }
    return result


def clears(difference: Spread) -> bool:
    """Whether it is above 0 by more than two standard deviations, of three folds or more."""
    return difference.n >= MIN_SEEDS and difference.mean > 2 * difference.std


def _run_json(found: Found) -> dict[str, Any]:
    networks = {name: nan_to_null(numbers) for name, numbers in found.networks.items()}
    return {**networks, "curves": found.curves, "statistics": found.statistics}


def _spreads(table: Mapping[str, Spread]) -> dict[str, Any]:
    return {metric: each.json() for metric, each in table.items()}


def _split_facts(experiment: Any) -> dict[str, Any]:
    files = {
        f"{p} % fold {f}": experiment.split(p, f)[0]
        for p, f in product(experiment.percents, experiment.folds)
    }
    return {name: data_facts(path) for name, path in files.items() if path.is_file()}


def _row(key: tuple[int, str, str], table: Mapping[str, Spread]) -> list[str]:
    percent, arm, network = key
    cells = [table[metric].show(1) for metric in METRICS]
    return [f"{percent} %", arm, network, *cells, str(table[HEADLINE].n)]


def _text(experiment: Any, truth: GroundTruth, missing: Sequence[str]) -> str:
    start, *arms = experiment.runs(experiment.percents[0], experiment.folds[0])
    cfg, begin = experiment.config(arms[-1]), experiment.config(start).SOLVER.MAX_ITER
    crowded = _images_beyond(truth, MAX_DETS["coco"])
    text = (
        "Mask R-CNN on nuclei with the masks of a share of the training images; mean ± standard "
        "deviation over folds, which are stratified draws of the labelled images and seeds. The "
        "arms of a fold begin with the teacher of one supervised run (`start`, "
        f"{begin} iterations) and share data order, schedule ({cfg.SOLVER.MAX_ITER} iterations of "
        f"{_batch(cfg)}), moving "
        f"average (momentum {cfg.MODEL.PAIS.EMA.MOMENTUM}) and evaluation. {_arms(experiment)} "
        "The headline is the teacher's mask AP at the last iteration, as was decided beforehand. "
        f"AP and box AP count 100 detections per image, @200 twice as many ({crowded} of "
        f"{len(truth.images)} images of val have more than 100 nuclei). `{CURVE}` is that of the "
        "mask AP of all evaluations of an arm."
    )
    if experiment.opts:
        pairs = zip(experiment.opts[::2], experiment.opts[1::2])
        text += " Every run has " + ", ".join(f"{k} {v}" for k, v in pairs) + "."
    return text + (f" Not finished: {', '.join(missing)}." if missing else "")


def _batch(cfg: Any) -> str:
    labelled, unlabelled = cfg.MODEL.PAIS.LOADER.RATIO
    ratio = f"{labelled}:{unlabelled} labelled to unlabelled"
    return f"{cfg.SOLVER.IMS_PER_BATCH} images, {ratio}"


def _arms(experiment: Any) -> str:
    parts = []
    for arm in experiment.arms:
        changes = ", ".join(f"{k.removeprefix('MODEL.PAIS.')} {v}" for k, v in arm.changes.items())
        weights = f", the weights of `{arm.evaluates}`" if arm.evaluates else ""
        parts.append(f"`{arm.name}`: {changes or 'the config as it is'}{weights}")
    return f"They differ in these keys, of MODEL.PAIS or as written: {'; '.join(parts)}."


def _images_beyond(truth: GroundTruth, most: int) -> int:
    counts = dict.fromkeys(truth.sizes, 0)
    for annotation in truth.annotations:
        counts[annotation["image_id"]] += not annotation["iscrowd"]
    return sum(count > most for count in counts.values())


def _note(experiment: Any, gains: Mapping[tuple, Mapping[str, Spread]]) -> str:
    """The differences, and which of the goal are reached."""
    header = ["labelled", "difference", "network", *METRICS, "folds"]
    rows = [
        [f"{percent} %", f"{ours} - {theirs}", network]
        + [_difference(table[metric]) for metric in METRICS]
        + [str(table[HEADLINE].n)]
        for (percent, ours, theirs, network), table in gains.items()
    ]
    if not rows:
        return ""
    goals = []
    for percent in experiment.percents:
        reached = [
            f"{ours} > {theirs}"
            for (p, ours, theirs, network), table in gains.items()
            if p == percent and network == NETWORKS[0] and clears(table[HEADLINE])
        ]
        goals.append(f"{percent} %: {', '.join(reached) or 'none'}")
    text = (
        "Differences, paired by fold; in bold above 0 by more than two standard deviations of "
        f"{MIN_SEEDS} folds or more. Of the headline these are: {'; '.join(goals)}."
    )
    return "\n\n".join((text, markdown_table(header, rows)))


def _difference(each: Spread) -> str:
    shown = each.show(1, sign=True)
    return f"**{shown}**" if clears(each) else shown


def write_curves(result: Mapping[str, Any], path: Path) -> None:
    """The teacher's mask AP against the iteration as a PNG, a panel per share of labels.

    Args:
        result: of `pais_record`; only its `raw` is looked at.
        path: of the picture; its folder is made.
    """
    from matplotlib.figure import Figure

    runs = result["raw"]["runs"]
    percents = list(dict.fromkeys(name.partition("_")[0] for name in runs))
    figure = Figure(figsize=(1 + 4.2 * len(percents), 4), layout="constrained")
    panels = figure.subplots(1, len(percents), sharey=True, squeeze=False)[0]
    for panel, percent in zip(panels, percents):
        own = {k.partition("_")[2]: v for k, v in runs.items() if k.startswith(f"{percent}_")}
        _draw(panel, own, list(result["raw"]["changes"]))
        panel.set(title=f"{percent} % of the masks", xlabel="iteration after the common start")
        panel.grid(color="0.9")
    panels[0].set_ylabel("mask AP of the teacher on val")
    panels[0].legend(frameon=False, handlelength=3.5)
    picture = io.BytesIO()
    # Without the library's version the same numbers give the same file for longer.
    figure.savefig(picture, format="png", dpi=130, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(picture.getvalue())


def _draw(panel: Any, runs: Mapping[str, Mapping], arms: Sequence[str]) -> None:
    """Thin lines of the folds and a thick one of their mean, for each arm.

    Args:
        runs: "foldF/arm" -> its record.
    """
    others = iter(STYLES[len(STYLE_OF) :])
    for arm in arms:
        curves = []
        for name, run in runs.items():
            points = run["curves"].get(NETWORKS[0], [])
            if name.partition("/")[2] == arm and len(points) > 1:
                start = runs.get(f"{name.partition('/')[0]}/start", {})
                begin = start.get(NETWORKS[0], {}).get(HEADLINE)
                curves.append(dict(points) | ({0: begin} if begin is not None else {}))
        if not curves:
            continue
        color, dashes = STYLES[STYLE_OF[arm]] if arm in STYLE_OF else next(others)
        for each in curves:
            steps = sorted(each)
            panel.plot(steps, [each[s] for s in steps], color=color, lw=0.8, alpha=0.45)
        shared = sorted(set.intersection(*(set(each) for each in curves)))
        means = [fmean(each[step] for each in curves) for step in shared]
        panel.plot(shared, means, color=color, ls=dashes, lw=2.8, label=arm)
