"""DALoss: pseudo-labels weigh in the losses what the teacher says they are worth.

Pure functions from the teacher's quantities to weights, and the two losses that take them. After
arXiv 2308.05359 and the authors' released code, whose constants are the defaults of
`pais/config.py`.

Shape legend: N pseudo-labels or the regions matched to them, R sampled regions of a batch, K
classes (column K is the background), M side of a mask head's map. s in [0, 1] is a pseudo-label's
class score, u in [0, 1] the mask quality that the teacher predicts for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Floors(NamedTuple):
    """Class scores that a pseudo-label must exceed: at all, for the proposals, for the heads."""

    initial: float
    rpn: float
    roi: float


def mask_weight(quality: Tensor, coef: float, power: float) -> Tensor:
    """w_m(u) = coef u^power, float32, without a gradient.

    Args:
        quality: u, (N,).
        coef, power: 2.5 and 4 in the released code, so that a mask of u = 0.795 weighs as much as
            a human one, a better one more and a worse one less.
    """
    return coef * quality.detach().float() ** power


def class_weight(scores: Tensor, coef: float, saturation: float, power: float) -> Tensor:
    """w_c(s) = coef min(s, saturation)^power, float32, without a gradient.

    Args:
        scores: s, (N,).
        coef, saturation, power: 12, 0.5 and 4 in the released code of the box-free model.
    """
    return coef * scores.detach().float().clamp(max=saturation) ** power


def relative_class_weight(scores: Tensor, coef: float, saturation: float, power: float) -> Tensor:
    """w_c(s) / w_c(1): 1 from the saturation on, less below. For models that weigh positives 1.

    Args:
        scores: s, (N,).
        coef, saturation, power: as of `class_weight`; the coefficient cancels.
    """
    weights = class_weight(scores, coef, saturation, power)
    return weights / class_weight(torch.ones_like(weights), coef, saturation, power)


def weighted_class_loss(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Softmax cross-entropy, sum of w CE over max(sum of w, 1); computed in float32.

    The divisor is the sum of the weights, as in Soft Teacher: what the teacher has doubts about
    takes no part, rather than making everything smaller. Where the weights hardly add up to one
    region it is 1, so that a few doubtful regions do not become a whole loss.

    Args:
        logits: (R, K + 1).
        classes: (R,) in [0, K].
        weights: (R,).

    Returns:
        A scalar; 0 with a gradient where there is no region.
    """
    weights = weights.detach().float()
    each = F.cross_entropy(logits.float(), classes, reduction="none")
    return (weights * each).sum() / weights.sum().clamp(min=1.0)


def weighted_mask_loss(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Sum over regions of w times their mean pixel-wise BCE, over max(N, 1); in float32.

    The divisor is the number of regions and not the sum of weights: where the teacher trusts no
    mask, the loss is small.

    Args:
        logits: (N, M, M).
        target: (N, M, M), 0 and 1 or bool.
        weights: (N,).

    Returns:
        A scalar; 0 with a gradient where there is no region.
    """
    each = F.binary_cross_entropy_with_logits(
        logits.float(), target.to(logits.device, torch.float32), reduction="none"
    )
    sums = each.flatten(1).sum(dim=1) / max(logits.shape[-2] * logits.shape[-1], 1)
    return (weights.detach().float() * sums).sum() / max(len(logits), 1)


@dataclass(frozen=True)
class DALoss:
    """The weights of one config; `pais/config.py` says what its keys mean.

    Args:
        enabled: False weighs every pseudo-label 1, a hard threshold.
        use_mask_weight, mask_coef, mask_power: of `mask_weight`.
        use_class_weight, class_coef, class_max, class_power: of `relative_class_weight`.
        negatives: "teacher", "constant" or "none".
        negative_constant: of "constant".
    """

    enabled: bool = True
    use_mask_weight: bool = True
    mask_coef: float = 2.5
    mask_power: float = 4.0
    use_class_weight: bool = False
    class_coef: float = 12.0
    class_max: float = 0.5
    class_power: float = 4.0
    negatives: str = "teacher"
    negative_constant: float = 0.1225

    @classmethod
    def from_config(cls, pais: Any) -> DALoss:
        """The weights of a config's node MODEL.PAIS."""
        return cls(
            enabled=pais.DALOSS,
            use_mask_weight=pais.MASK_WEIGHT,
            mask_coef=pais.MASK_COEF,
            mask_power=pais.MASK_POWER,
            use_class_weight=pais.CLASS_WEIGHT,
            class_coef=pais.CLASS_COEF,
            class_max=pais.CLASS_MAX,
            class_power=pais.CLASS_POWER,
            negatives=pais.NEGATIVE_WEIGHT,
            negative_constant=pais.NEGATIVE_CONSTANT,
        )

    def masks(self, quality: Tensor) -> Tensor:
        """(N,) weights of the masks of pseudo-labels with these qualities."""
        if not (self.enabled and self.use_mask_weight):
            return torch.ones_like(quality, dtype=torch.float32)
        return mask_weight(quality, self.mask_coef, self.mask_power)

    def positives(self, scores: Tensor) -> Tensor:
        """(N,) weights in the class loss of regions matched to pseudo-labels of these scores."""
        if not (self.enabled and self.use_class_weight):
            return torch.ones_like(scores, dtype=torch.float32)
        return relative_class_weight(scores, self.class_coef, self.class_max, self.class_power)

    @property
    def asks_teacher(self) -> bool:
        """Whether `negatives_of` reads the teacher's probabilities."""
        return self.negatives == "teacher"

    def negatives_of(self, background: Tensor) -> Tensor:
        """(R,) weights of negative regions in the class loss.

        With a hard threshold too: weighting negatives so is older than DALoss.

        Args:
            background: (R,) the teacher's probability of background there.
        """
        if self.asks_teacher:
            return background.detach().float()
        value = self.negative_constant if self.negatives == "constant" else 1.0
        return torch.full_like(background, value, dtype=torch.float32)


def score_floors(pais: Any) -> Floors:
    """The floors of a config's node MODEL.PAIS.

    Weighting classes by score needs pseudo-labels below the common floor: CLASS_FLOOR then takes
    the place of all three.
    """
    if pais.DALOSS and pais.CLASS_WEIGHT:
        return Floors(pais.CLASS_FLOOR, pais.CLASS_FLOOR, pais.CLASS_FLOOR)
    initial = pais.SCORE_FLOOR
    return Floors(initial, max(initial, pais.RPN_SCORE_FLOOR), max(initial, pais.ROI_SCORE_FLOOR))


def without_effect(pais: Any, score_thresh: float) -> list[str]:
    """What a config's node MODEL.PAIS states in vain, a line each.

    Args:
        pais: the node.
        score_thresh: MODEL.ROI_HEADS.SCORE_THRESH_TEST, which cuts the teacher's detections.
    """
    by_class, lines = pais.DALOSS and pais.CLASS_WEIGHT, []
    if pais.CLASS_WEIGHT and not pais.DALOSS:
        lines.append("CLASS_WEIGHT True has no effect: DALOSS is False")
    common = pais.CLASS_FLOOR if by_class else pais.SCORE_FLOOR
    floors = {} if by_class else {"RPN": pais.RPN_SCORE_FLOOR, "ROI": pais.ROI_SCORE_FLOOR}
    for part, floor in floors.items():
        if floor < common:
            lines.append(f"{part}_SCORE_FLOOR {floor:g} has no effect: SCORE_FLOOR is {common:g}")
    if common < score_thresh:
        name = "CLASS_FLOOR" if by_class else "SCORE_FLOOR"
        cut = f"the teacher's detections end at MODEL.ROI_HEADS.SCORE_THRESH_TEST {score_thresh:g}"
        lines.append(f"{name} {common:g} has no effect: {cut}")
    return lines
