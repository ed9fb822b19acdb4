"""Watches how much of its box a mask fills: the cheap sign of a collapse.

A labeler trained from boxes can settle on the filled box (seen with random weights and with a
learning rate too high) or on nothing. Both show in the fill long before anything is labelled.
"""

import logging

from torch import Tensor

logger = logging.getLogger(__name__)

FILL_HIGH, FILL_LOW = 0.9, 0.1


def box_fill(mask: Tensor, box_mask: Tensor) -> Tensor:
    """Share of each box's pixels with a mask above .5.

    Args:
        mask: (B, M, M) probabilities or a hard mask.
        box_mask: (B, M, M), positive inside the box.

    Returns:
        (B,), in [0, 1].
    """
    inside = box_mask > 0.5
    filled = ((mask > 0.5) & inside).flatten(1).sum(1)
    return filled / inside.flatten(1).sum(1).clamp(min=1)


class FillMonitor:
    """Smooths a fill over iterations and warns, now and then, when it leaves (.1, .9).

    Args:
        name: what is watched, for the message.
        momentum: of the running mean.
        patience: updates before the first warning, and between two.
    """

    def __init__(self, name: str, momentum: float = 0.95, patience: int = 100):
        self.name, self.momentum, self.patience = name, momentum, patience
        self.mean: float | None = None
        self._quiet = patience

    def update(self, fill: float) -> float:
        """Takes the mean fill of a batch; returns the running mean."""
        self.mean = fill if self.mean is None else self._blend(fill)
        self._quiet -= 1
        if self._quiet <= 0 and not FILL_LOW <= self.mean <= FILL_HIGH:
            self._quiet = self.patience
            kind = "the filled box" if self.mean > FILL_HIGH else "nothing"
            logger.warning(
                "%s fills %.2f of its box: training may be collapsing to %s. Remedy: start from "
                "pretrained weights, lower the learning rate (SOLVER.LR_PER_SAMPLE where it is not"
                " 0, else SOLVER.BASE_LR), or use MODEL.MAL.ENCODER.STEM 'conv'",
                *(self.name, self.mean, kind),
            )
        return self.mean

    def _blend(self, fill: float) -> float:
        return self.momentum * self.mean + (1 - self.momentum) * fill
