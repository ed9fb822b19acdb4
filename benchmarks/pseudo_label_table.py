"""Records and pictures of benchmarks/pais_pseudo_labels.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results import config_facts, data_facts, measurement

from pseudolabel.files import read_json
from pseudolabel.hidden_truth import FLOORS, Comparison, compare_files, pool, summarize
from pseudolabel.hidden_truth_plot import (
    BLUE,
    GREY,
    ORANGE,
    draw_comparison,
    draw_reliability,
    save_figure,
)
from pseudolabel.retention import last_evaluation

PROGRESS, CALIBRATION = "pais_pseudo_labels", "pais_calibration"
PROGRESS_HEADER = ["iterations of PAIS", "kept", "per image", "right", "precision", "recall"]
PROGRESS_HEADER += ["mask IoU of the right", "rank correlation of quality and IoU, kept"]
CALIBRATION_HEADER = [
    "run",
    "detections",
    "rank correlation of quality and IoU",
    "of score and IoU",
]
CALIBRATION_HEADER += ["of the right: quality", "score", "calibration error of quality"]
CALIBRATION_HEADER += ["mean quality", "mean IoU"]


def progress_result(
    job: Any, config: Path, seconds: dict[str, float], pictures: Path
) -> dict[str, Any]:
    """The record of the run on COCO, and its pictures.

    Args:
        job: `pais_pseudo_labels.PseudoLabels`, all stages done.
        config: of its runs.
        seconds: of the stages, one after the other.
        pictures: folder that they are written to.

    Raises:
        DataError: a label file or a run does not have what it should.
    """
    floor = float(job.cfg.MODEL.PAIS.SCORE_FLOOR)
    floors = sorted({*FLOORS, floor})
    steps = {
        step: summarize(compare_files(job.labels(step), job.hidden), floors)
        for step in job.checkpoints()
    }
    last = steps[max(steps)]
    draw_progress(steps, floor, pictures / f"{PROGRESS}.png")
    title = f"Teacher after {max(steps)} iterations of PAIS, hidden masks"
    draw_comparison(last, pictures / f"{PROGRESS}_last.png", title)
    runs = {name: last_evaluation(job.run_of(name)[0]) for name in ("start", "pais")}
    raw = {"floor": floor, "opts": job.opts, "steps": steps, "val": runs}
    raw["labelled_by"] = {step: _labeler(job.labels(step)) for step in steps}
    text = _progress_text(last, read_json(job.labelled), floor)
    result = measurement(PROGRESS, text, PROGRESS_HEADER, progress_rows(steps, floor), raw)
    return result | {
        "note": _progress_note(last, floor, runs),
        "seeds": [job.seed],
        "data": {"labelled": data_facts(job.labelled), "hidden": data_facts(job.hidden)},
        "configs": {"pais": config_facts(config)},
        "seconds": seconds,
    }


def at_floor(summary: Mapping[str, Any], floor: float) -> dict[str, Any]:
    """The row of a floor."""
    return next(row for row in summary["floors"] if row["floor"] == floor)


def progress_rows(steps: Mapping[int, Mapping], floor: float) -> list[list[str]]:
    """The cells: one row per checkpoint."""
    rows = []
    for step, summary in sorted(steps.items()):
        row = at_floor(summary, floor)
        counts = [str(row["kept"]), f"{row['kept_per_image']:.2f}", str(row["matched"])]
        keys = ("precision", "recall", "mean_iou", "quality_spearman")
        name = f"{step}" if step else "0 (supervised start)"
        rows.append([name, *counts, *(_cell(row[key]) for key in keys)])
    return rows


def _progress_text(last: Mapping[str, Any], labelled: dict, floor: float) -> str:
    classes = ", ".join(last["classes"])
    return (
        f"PAIS with the masks of {len(labelled['images'])} images of coco_dev ({classes}): the "
        f"teacher's detections on the other {last['images']} images, compared with their human "
        f"masks ({last['truths']} instances), which no run has seen. Kept: a class score above "
        f"{floor:g}, as in training. Right: mask IoU of {last['threshold']:g} or more with an "
        "instance of its class, one to one."
    )


def _progress_note(last: Mapping[str, Any], floor: float, runs: Mapping[str, Mapping]) -> str:
    sentences = []
    if not at_floor(last, floor)["kept"]:
        top = max((k for k, n in enumerate(last["scores"]) if n), default=None)
        reach = "there is no detection" if top is None else f"no score exceeds {(top + 1) / 20:g}"
        sentences.append(f"At the end nothing passes the floor: {reach}.")
    parts = []
    for name, table in last["classes"].items():
        row = at_floor(table, floor)
        parts.append(
            f"{name} {row['kept']} kept, precision {_cell(row['precision'])}, recall "
            f"{_cell(row['recall'])} of {table['truths']}"
        )
    sentences.append(f"By class at the end: {'; '.join(parts)}.")
    for key in ("quality", "score"):
        if last[key] is not None:
            best = last[key]["best"]
            sentences.append(
                f"Of all {best['n']} detections at the end, {key} and true mask IoU have a rank "
                f"correlation of {_cell(best['spearman'])} (linear {_cell(best['pearson'])}); "
                f"calibration error {_cell(best['calibration_error'])}."
            )
    aps = ", ".join(f"{name} {_ap(run['segm/AP'])}" for name, run in runs.items())
    sentences.append(f"Mask AP of the teacher on val: {aps}.")
    pictures = (
        f"![Precision and recall over time](pictures/{PROGRESS}.png)\n\n"
        f"![Floors and reliability at the end](pictures/{PROGRESS}_last.png)"
    )
    return f"{' '.join(sentences)}\n\n{pictures}"


def draw_progress(steps: Mapping[int, Mapping], floor: float, path: Path) -> None:
    """Writes a PNG: precision and recall, number kept, and the scores of first and last.

    Args:
        steps: iteration -> `hidden_truth.summarize`, which has a row of `floor`.
        floor: of the score.
        path: of the picture.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(13, 3.9), layout="constrained")
    shares, counts, scores = figure.subplots(1, 3)
    order = sorted(steps)
    rows = [at_floor(steps[step], floor) for step in order]
    for key, colour, marker in (("precision", BLUE, "o"), ("recall", ORANGE, "s")):
        values = [float("nan") if row[key] is None else row[key] for row in rows]
        shares.plot(order, values, color=colour, marker=marker, label=key)
    shares.set(xlabel="iteration of PAIS", ylabel="share", ylim=(0, 1), title=f"score > {floor:g}")
    shares.legend()
    for key, colour, marker in (("kept", BLUE, "o"), ("matched", ORANGE, "s")):
        label = "kept" if key == "kept" else "of these right"
        values = [row[key] / steps[step]["images"] for step, row in zip(order, rows)]
        counts.plot(order, values, color=colour, marker=marker, label=label)
    counts.set(xlabel="iteration of PAIS", ylabel="pseudo-labels per image", ylim=(0, None))
    counts.legend()
    for step, colour in ((order[0], GREY), (order[-1], BLUE)):
        values = steps[step]["scores"]
        edges = [k / len(values) for k in range(len(values) + 1)]
        scores.stairs(values, edges, color=colour, label=f"iteration {step}")
    scores.axvline(floor, color=ORANGE, linestyle="--", label="floor")
    scores.set(xlabel="class score", ylabel="detections", yscale="symlog", xlim=(0, 1))
    scores.legend()
    for axes in (shares, counts, scores):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def calibration_result(job: Any, seconds: dict[str, float], pictures: Path) -> dict[str, Any]:
    """The record of the runs on nuclei, and a picture of all of them together.

    Args:
        job: `pais_pseudo_labels.NucleiCalibration`, all stages done.
        seconds: of the stages, one after the other.
        pictures: folder that they are written to.

    Raises:
        DataError: a label file does not have what it should.
    """
    found = {name: compare_files(*job.files(name)) for name in job.runs}
    groups: dict[str, list[Comparison]] = {}
    for name, comparison in found.items():
        groups.setdefault(name.partition("_")[0], []).append(comparison)
    together = {
        f"{percent} %, {len(group)} together": summarize(pool(group))
        for percent, group in groups.items()
    }
    single = {run_title(name): summarize(comparison) for name, comparison in found.items()}
    draw_calibration(together, pictures / f"{CALIBRATION}.png")
    raw = {"runs": single, "together": together}
    raw["labelled_by"] = {name: _labeler(job.files(name)[0]) for name in job.runs}
    rows = [calibration_row(title, summary) for title, summary in (single | together).items()]
    text = (
        "The last teacher of each PAIS run on nuclei looks at the training images whose masks its "
        "run did not have. All of its detections, the doubtful ones too: predicted quality and "
        "class score against the largest mask IoU with a human mask of their image. Right: matched "
        f"one to one with an IoU of {next(iter(found.values())).threshold:g} or more; for these, "
        "the IoU with the mask that they are matched to."
    )
    result = measurement(CALIBRATION, text, CALIBRATION_HEADER, rows, raw)
    return result | {
        "note": f"![Stated against true mask IoU](pictures/{CALIBRATION}.png)",
        "data": {"train": data_facts(job.truth)},
        "seconds": seconds,
    }


def run_title(name: str) -> str:
    """A run's folder as the table calls it: 10_fold2 is "10 %, fold 2"."""
    percent, _, fold = name.partition("_fold")
    return f"{percent} %, fold {fold}" if fold else name


def calibration_row(title: str, summary: Mapping[str, Any]) -> list[str]:
    """The cells of one run, or of several together."""
    quality, score = summary["quality"], summary["score"]
    numbers = [quality["best"]["spearman"], score["best"]["spearman"]]
    numbers += [quality["matched"]["spearman"], score["matched"]["spearman"]]
    numbers += [quality["best"][key] for key in ("calibration_error", "mean_stated", "mean_iou")]
    return [title, str(quality["best"]["n"]), *map(_cell, numbers)]


def draw_calibration(summaries: Mapping[str, Mapping], path: Path) -> None:
    """Writes a PNG: reliability of quality and score, one panel per summary."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(4.6 * len(summaries), 4.4), layout="constrained")
    panels = figure.subplots(1, len(summaries), squeeze=False)[0]
    for axes, (title, summary) in zip(panels, summaries.items(), strict=True):
        draw_reliability(axes, summary)
        axes.set_title(title)
    save_figure(figure, path)


def _labeler(labels: Path) -> dict[str, Any]:
    """What the manifest says of the network that has made a label file."""
    return read_json(labels.with_suffix(".manifest.json"))["labeler"]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _ap(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
