"""The mean field at labelling time: masks snap to the colours of the image.

Legend: B crops, S crop side, M side of the network's map, R side of the refined map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .mean_field import mean_field, mean_field_kernel
from .resampling import resize_maps

# Keeps the log odds of a threshold of 0 or 1 finite.
EPSILON = 1e-6
# Where a refined map is cut.
CUT = 0.5


@dataclass(frozen=True)
class LabelRefinement:
    """The refinement that makes the training target, with one network and its own clean crop.

    The mean field takes sides at .5, so a threshold t acts before it: log odds are counted from
    those of t, and the state is cut at .5. Where no neighbour has the same colour, the mask is the
    network's own at t.

    Attributes:
        kernel: options of `mean_field_kernel`.
        iterations, low, high, unary: of `mean_field`.
        scale: R / M.

    Raises:
        ValueError: no iteration, or a scale that is not positive.
    """

    kernel: dict = field(default_factory=dict)
    iterations: int = 100
    low: float = 0.1
    high: float = 0.9
    unary: float = 0.0
    scale: float = 1.0

    def __post_init__(self):
        if self.iterations < 1:
            raise ValueError(f"MODEL.MAL.TEST.CRF_ITERATIONS {self.iterations}: use 0 or more")
        if self.scale <= 0:
            raise ValueError(f"MODEL.MAL.TEST.CRF_SCALE {self.scale}: use a number above 0")

    @torch.no_grad()
    def __call__(self, logits: Tensor, images: Tensor, box: Tensor, thresholds: Tensor) -> Tensor:
        """Refine masks inside their boxes.

        Args:
            logits: (B, M, M).
            images: (B, 3, S, S), the normalised crops.
            box: (B, S, S), 1 inside the box.
            thresholds: (B,), probabilities.

        Returns:
            (B, R, R), float32: the last state, foreground above .5, background outside the box.
        """
        side = max(1, round(self.scale * logits.shape[-1]))
        zero = thresholds.to(logits.device).float().logit(EPSILON)[:, None, None]
        start = (resize_maps(logits[:, None], side)[:, 0] - zero).sigmoid()
        inside = resize_maps(box[:, None], side)[:, 0]
        kernel = mean_field_kernel(resize_maps(images, side), **self.kernel)
        options = {"low": self.low, "high": self.high, "unary": self.unary, "hard": False}
        return mean_field(inside * start, inside, kernel, self.iterations, **options)
