"""How well quality predicts the true IoU, and what a threshold on it keeps.

Shape legend: N records that have both numbers.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

BINS = 10
# A mask that a person would leave as it is; COCO's AP75 draws the line there as well.
GOOD_IOU = 0.75
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(20))


@dataclass
class Reliability:
    """Quality against true IoU.

    Attributes:
        bins: per bin of quality that has records: (number, mean quality, mean IoU).
        error: expected calibration error, the bins' |mean quality - mean IoU| weighted by number.
        excess: mean quality minus mean IoU.
        spearman: of quality with IoU; None where one of them does not vary.
        spearman_area: of box area with IoU, the rank that costs nothing.
    """

    bins: list[tuple[int, float, float]]
    error: float
    excess: float
    spearman: float | None
    spearman_area: float | None


def reliability(quality: np.ndarray, ious: np.ndarray, box_area: np.ndarray) -> Reliability:
    """Compares quality (N,) with true IoU (N,) in equal bins over [0, 1]; N is at least 1."""
    place = np.minimum((quality * BINS).astype(int), BINS - 1)
    bins = [
        (int(inside.sum()), float(quality[inside].mean()), float(ious[inside].mean()))
        for inside in (place == number for number in np.unique(place))
    ]
    excess = float(quality.mean() - ious.mean())
    error = sum(n * abs(mean - true) for n, mean, true in bins) / len(quality)
    return Reliability(
        bins, error, excess, rank_correlation(quality, ious), rank_correlation(box_area, ious)
    )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's; None where a side does not vary or has fewer than two values."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


@dataclass
class SweepRow:
    """What keeping the records of at least a quality would give.

    Attributes:
        kept: number; share: of all.
        iou: mean over the kept, NaN over none.
        agreement: F1 between "kept" and "good", IoU of at least `GOOD_IOU`.
    """

    threshold: float
    kept: int
    share: float
    iou: float
    agreement: float


def quality_sweep(quality: np.ndarray, ious: np.ndarray) -> tuple[list[SweepRow], int]:
    """Sweeps the threshold on quality over records with a human mask.

    Returns:
        Rows, and the position of the chosen one: the best F1, the lowest threshold among equals.
    """
    good = ious >= GOOD_IOU
    rows = []
    for threshold in THRESHOLDS:
        kept = quality >= threshold
        number = int(kept.sum())
        both = int((kept & good).sum())
        total = number + int(good.sum())
        mean = float(ious[kept].mean()) if number else float("nan")
        rows.append(
            SweepRow(threshold, number, number / len(ious), mean, 2 * both / total if total else 0)
        )
    return rows, max(range(len(rows)), key=lambda i: (rows[i].agreement, -i))
