"""How good a mask is, judged without a human mask: from probabilities and how firm they are.

Every measure is a pure function of what is known about one record, a number of [0, 1] that rises
with the mask's IoU with the true one; no measure compares a record with the rest of a data set.

Shape legend: N boxes, G x G points spread evenly over one box. The points are the same for all the
views of a box (another network, the mirrored crop, another margin), whatever its size in pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pseudolabel.masks import mask_iou

# Half width of the band of thresholds that `stability` asks about, as a share of the way from the
# threshold to the nearer end of [0, 1]: .4 at a threshold of .5.
DELTA = 0.8
# Keeps logarithms finite.
_FLOOR = 1e-4
_SMALL = 0.05


@dataclass(frozen=True)
class Evidence:
    """What a labeler knows about one mask.

    Attributes:
        probability: (G, G) of the map that the mask was cut from.
        threshold: where it was cut; foreground lies above.
        views: further maps (G, G) of the same box by name, see `Measure.views`.
        crowding: share of the box that other boxes of the image cover, [0, 1].
        area: of the box in the image, square pixels.
    """

    probability: np.ndarray
    threshold: float
    views: Mapping[str, np.ndarray] = field(default_factory=dict)
    crowding: float = 0.0
    area: float = 1.0

    def __post_init__(self):
        for name, values in {"probability": self.probability, **self.views}.items():
            # NaN fails every comparison.
            if not bool(((values >= 0) & (values <= 1)).all()):
                raise ValueError(f"{name}: a probability is not in [0, 1] or is no number")

    @property
    def mask(self) -> np.ndarray:
        """(G, G), foreground."""
        return self.probability > self.threshold


def soft_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Sum of the smaller over sum of the larger of two maps' probabilities (Ruzicka).

    The IoU of masks where both hold nothing but 0 and 1; 0 where both hold nothing.
    """
    larger = float(np.maximum(first, second).sum(dtype=np.float64))
    return float(np.minimum(first, second).sum(dtype=np.float64)) / larger if larger else 0.0


def expected_iou(probability: np.ndarray, mask: np.ndarray) -> float:
    """IoU that a mask would have if every pixel were foreground with its stated probability.

    Expected intersection over expected union: sum of p inside the mask over the mask's size plus
    the sum of p outside. As good as the probabilities are calibrated; 0 for an empty mask.
    """
    inside = float(probability[mask].sum(dtype=np.float64))
    union = float(mask.sum()) + float(probability[~mask].sum(dtype=np.float64))
    return min(1.0, inside / union) if union else 0.0


def mean_probability(probability: np.ndarray, mask: np.ndarray) -> float:
    """Mean probability inside the mask; 0 for an empty one."""
    return float(probability[mask].mean(dtype=np.float64)) if mask.any() else 0.0


def stability(probability: np.ndarray, threshold: float, delta: float = DELTA) -> float:
    """IoU of the masks at threshold + d and threshold - d; 0 where nothing is above.

    d = delta * min(threshold, 1 - threshold), so that both stay between 0 and 1.

    The stricter mask lies in the looser one, so this is the ratio of their sizes.
    """
    half = delta * min(threshold, 1 - threshold)
    loose = np.count_nonzero(probability > threshold - half)
    return np.count_nonzero(probability > threshold + half) / loose if loose else 0.0


def decision(probability: np.ndarray) -> float:
    """Mean distance of the log odds from 0, natural logarithm.

    Unlike a probability it still tells sure from surer where both are close to 0 or 1.
    """
    odds = np.log((probability + _FLOOR) / (1 - probability + _FLOOR))
    return float(np.abs(odds).mean(dtype=np.float64))


def certainty(probability: np.ndarray) -> float:
    """1 minus the mean binary entropy in bits: 0 for a map of .5, 1 for one of 0 and 1."""
    p = np.clip(probability, _FLOOR, 1 - _FLOOR)
    return float(1 + (p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(dtype=np.float64))


def inscribed_ellipse(side: int) -> np.ndarray:
    """(side, side) 1.0 inside of the ellipse that touches the four sides of the box."""
    axis = (2 * np.arange(side) + 1) / side - 1
    return (axis[:, None] ** 2 + axis**2 <= 1).astype(np.float32)


def crowding(boxes: np.ndarray, parts: int = 48) -> np.ndarray:
    """Share of each box that is covered by the others, of whatever class.

    Args:
        boxes: (N, 4), XYXY.
        parts: a box is looked at in parts x parts points.

    Returns:
        (N,) in [0, 1]; 1 for a box that occurs twice.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    centres = (np.arange(parts) + 0.5) / parts
    result = np.zeros(len(boxes))
    for index, own in enumerate(boxes):
        others = np.delete(boxes, index, axis=0)
        meets = (others[:, :2] < own[2:]).all(axis=1) & (others[:, 2:] > own[:2]).all(axis=1)
        columns, rows = (
            _within(own[axis] + centres * (own[axis + 2] - own[axis]), others[meets], axis)
            for axis in (0, 1)
        )
        result[index] = (rows.T @ columns > 0).mean()
    return result


def _within(points: np.ndarray, boxes: np.ndarray, axis: int) -> np.ndarray:
    """(len(boxes), len(points)) 1.0 where a point lies between a box's sides along one axis."""
    low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
    return ((points >= low) & (points < high)).astype(np.float32)


@dataclass(frozen=True)
class Measure:
    """A named measure of quality and what it has to be told.

    Attributes:
        compute: `Evidence` -> [0, 1].
        views: maps beside the mask's own that it compares: "other" (student where the teacher
            labels, and the other way round), "mirror" (the mirrored crop). Each costs a forward
            pass.
        crowding: whether it asks for `Evidence.crowding`.
    """

    compute: Callable[[Evidence], float]
    views: tuple[str, ...] = ()
    crowding: bool = False

    def __call__(self, evidence: Evidence) -> float:
        return min(1.0, max(0.0, self.compute(evidence)))


def _against(view: str, compare: Callable) -> Measure:
    """Soft or hard overlap with one view."""
    return Measure(lambda e: compare(e, e.views[view]), (view,))


def _hard(evidence: Evidence, view: np.ndarray) -> float:
    return mask_iou(evidence.mask, view > evidence.threshold)


def _soft(evidence: Evidence, view: np.ndarray) -> float:
    return soft_iou(evidence.probability, view)


def estimate_features(evidence: Evidence) -> np.ndarray:
    """What `estimate` weighs, in the order of `ESTIMATE_WEIGHTS`; finite for any evidence.

    "decided": log of the mean log odds. "agreed": soft agreement with the other network, times the
    share of the box that no other box covers. "rounded": log of how like an ellipse in the box what
    the two networks agree on is; few objects leave the middle of their box. "large": log of the
    area. "mean", "expected", "certain": mean probability in the mask, log of the expected IoU, and
    certainty. "confirmed": share of the foreground that the other network confirms.
    """
    p, other = evidence.probability, evidence.views["other"]
    shape = inscribed_ellipse(len(p))
    both, either = np.minimum(p, other), np.maximum(p, other)
    total = float(p.sum(dtype=np.float64))
    rounded = np.minimum(both, shape).sum() / np.maximum(either, shape).sum()
    mask = evidence.mask
    return np.array(
        [
            np.log(_SMALL + decision(p)),
            (1 - evidence.crowding) * soft_iou(p, other),
            np.log(_SMALL + rounded),
            np.log(1 + evidence.area),
            mean_probability(p, mask),
            np.log(_SMALL + expected_iou(p, mask)),
            certainty(p),
            float(both.sum(dtype=np.float64)) / total if total else 0.0,
        ]
    )


def estimate(evidence: Evidence) -> float:
    """Expected IoU by a logistic regression on `estimate_features`."""
    weights = np.array(list(ESTIMATE_WEIGHTS.values()))
    score = estimate_features(evidence) @ weights + ESTIMATE_BIAS
    return float(1 / (1 + np.exp(-score)))


# Fitted once, on images that MAL was trained on: `benchmarks/quality.py --fit`, docs/quality.md.
ESTIMATE_WEIGHTS = {
    "decided": 3.1,
    "agreed": 0.493,
    "rounded": 1.742,
    "large": 0.0685,
    "mean": -5.677,
    "expected": 4.442,
    "certain": -4.502,
    "confirmed": 4.057,
}
ESTIMATE_BIAS = 0.8

MEASURES = {
    "estimate": Measure(estimate, ("other",), crowding=True),
    "expected_iou": Measure(lambda e: expected_iou(e.probability, e.mask)),
    "mean_probability": Measure(lambda e: mean_probability(e.probability, e.mask)),
    "stability": Measure(lambda e: stability(e.probability, e.threshold)),
    "agreement": _against("other", _hard),
    "soft_agreement": _against("other", _soft),
    "flip_agreement": _against("mirror", _hard),
    "soft_flip_agreement": _against("mirror", _soft),
}
