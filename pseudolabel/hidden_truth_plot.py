"""Pictures of `hidden_truth.summarize`: what is right above a floor, and what a number promises."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pseudolabel.files import atomic_write

# Told apart by readers who see few colours; the shapes of the markers differ too.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"


def draw_comparison(summary: Mapping[str, Any], path: str | Path, title: str = "") -> None:
    """Writes a PNG: precision and recall over the floors, and reliability of quality and score.

    Args:
        summary: of `hidden_truth.summarize`.
        path: of the picture.
        title: above it.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_floors(left, summary)
    draw_reliability(right, summary)
    if title:
        figure.suptitle(title)
    save_figure(figure, path)


def draw_floors(axes: Any, summary: Mapping[str, Any]) -> None:
    """Precision and recall against the floor of the score on matplotlib's `axes`."""
    floors = [row["floor"] for row in summary["floors"]]
    for key, colour, marker in (("precision", BLUE, "o"), ("recall", ORANGE, "s")):
        # matplotlib leaves a gap at NaN.
        values = [_number(row[key]) for row in summary["floors"]]
        axes.plot(floors, values, color=colour, marker=marker, label=key)
    for row in summary["floors"]:
        axes.annotate(
            str(row["kept"]),
            (row["floor"], 1.0),
            textcoords="offset points",
            xytext=(0, 4),
            ha="center",
            fontsize=7,
            color=GREY,
        )
    axes.set(xlabel="floor of the score (above: number kept)", ylim=(0, 1.08))
    axes.set_ylabel(f"share (mask IoU ≥ {summary['threshold']:g})")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def draw_reliability(axes: Any, summary: Mapping[str, Any]) -> None:
    """Mean true IoU against the stated number, bins of equal counts, on matplotlib's `axes`."""
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="stated = true")
    for key, colour, marker in (("quality", BLUE, "o"), ("score", ORANGE, "s")):
        if summary[key] is None:
            continue
        bins = summary[key]["reliability"]
        stated, true = ([row[k] for row in bins] for k in ("mean_stated", "mean_iou"))
        axes.plot(stated, true, color=colour, marker=marker, label=_named(key, summary[key]))
    axes.set(xlabel="stated (mean of a bin)", ylabel="true mask IoU (mean of the bin)")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)


def _named(key: str, foretold: Mapping[str, Any]) -> str:
    rank = foretold["best"]["spearman"]
    return key if rank is None else f"{key} (rank correlation {rank:.2f})"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def save_figure(figure: Any, path: str | Path) -> None:
    """Writes matplotlib's figure as a PNG, whole or not at all, with no date in it."""
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
