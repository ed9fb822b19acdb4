"""Assignment of predictions to ground truth by the quality (usually IoU) of each pair."""

import math
from collections.abc import Sequence

import torch

__all__ = ["Matcher"]


class Matcher:
    """Label every prediction by the quality of its best ground-truth partner.

    M is the number of ground-truth elements, N the number of predictions. The qualities are cut
    into ``len(thresholds) + 1`` half-open bins ``[low, high)``; bin i gives label ``labels[i]``,
    one of -1 (ignore), 0 (negative) and 1 (positive).
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        labels: Sequence[int],
        allow_low_quality_matches: bool = False,
    ):
        """
        Args:
            thresholds: rising, first one positive.
            labels: one more than ``thresholds``.
            allow_low_quality_matches: also make positive, for each ground truth, every prediction
                that ties for its highest quality (Faster R-CNN, section 3.1.2, rule (i)).
        """
        edges = [-math.inf, *thresholds, math.inf]
        assert all(t > 0 for t in thresholds), f"thresholds must be positive, got {thresholds}"
        assert sorted(edges) == edges, f"thresholds must rise, got {list(thresholds)}"
        assert set(labels) <= {-1, 0, 1}, f"labels must be -1, 0 or 1, got {list(labels)}"
        assert len(thresholds) + 1 == len(labels), "one label per bin is needed"
        self.thresholds = edges
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            match_quality_matrix: (M, N), values >= 0.

        Returns:
            (N,) int64 index in [0, M) of the best partner (0 where M is 0), and (N,) int8 labels
            (the lowest bin's where M is 0).
        """
        shape = match_quality_matrix.shape
        assert len(shape) == 2, f"match qualities must be (M, N), got {tuple(shape)}"
        assert (match_quality_matrix >= 0).all(), "match qualities must not be negative"

        if shape[0] == 0:  # nobody to match is as good as a match of quality 0
            quality = match_quality_matrix.new_zeros(shape[1])
            partner = torch.zeros_like(quality, dtype=torch.int64)
        else:
            quality, partner = match_quality_matrix.max(dim=0)
        cuts = quality.new_tensor(self.thresholds[1:-1])
        table = torch.tensor(self.labels, dtype=torch.int8, device=quality.device)
        verdict = table[torch.bucketize(quality, cuts, right=True)]
        if self.allow_low_quality_matches and 0 not in shape:
            self.set_low_quality_matches_(verdict, match_quality_matrix)
        return partner, verdict

    def set_low_quality_matches_(
        self, match_labels: torch.Tensor, match_quality_matrix: torch.Tensor
    ) -> None:
        """Set ``match_labels`` (N,) to 1, in place, where a row of (M, N) has its maximum.

        The partner stays each prediction's own best one, which may be another ground truth.
        """
        row_best = match_quality_matrix.amax(dim=1, keepdim=True)
        match_labels[(match_quality_matrix == row_best).any(dim=0)] = 1
