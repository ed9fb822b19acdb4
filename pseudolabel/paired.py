"""Numbers of several seeds: mean, spread, and differences paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a few numbers.

    Attributes:
        mean: NaN of no numbers.
        std: with n - 1 in the denominator; NaN below two numbers.
        n: how many numbers there were.
    """

    mean: float
    std: float
    n: int

    def show(self, digits: int, sign: bool = False) -> str:
        """`mean ± std`; the mean alone of a single number, a dash of none."""
        if math.isnan(self.mean):
            return "–"
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return mean if math.isnan(self.std) else f"{mean} ± {self.std:.{digits}f}"

    def json(self) -> dict[str, float | int | None]:
        """For a results file, where NaN is null."""
        plain = [None if math.isnan(value) else value for value in (self.mean, self.std)]
        return {"mean": plain[0], "std": plain[1], "n": self.n}


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of the numbers."""
    return Spread(
        statistics.fmean(values) if values else math.nan,
        statistics.stdev(values) if len(values) > 1 else math.nan,
        len(values),
    )


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread:
    """Of ours - theirs over the seeds that both have.

    Args:
        ours, theirs: seed -> number.
    """
    return spread([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def paired_percent(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Spread:
    """Of 100 * ours / theirs over the seeds that both have, but for those where theirs is 0."""
    seeds = sorted(seed for seed in ours.keys() & theirs.keys() if theirs[seed])
    return spread([100 * ours[seed] / theirs[seed] for seed in seeds])
