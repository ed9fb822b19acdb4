"""Progress lines of a batch job: done, rate, remaining time and counts."""

import datetime
import logging
import time
from collections.abc import Mapping


class Progress:
    """Logs the state of a job at most every `period` seconds, and at its end.

    Args:
        total: number of things to do.
        unit: what they are.
        logger: where the lines go.
        period: seconds.
        done: how many an earlier run has done; they do not count for the rate.
    """

    def __init__(
        self, total: int, unit: str, logger: logging.Logger, period: float = 5.0, done: int = 0
    ):
        self.total, self.unit, self.logger, self.period = total, unit, logger, period
        self.done = self._before = done
        self._start = self._last = time.monotonic()

    def update(self, count: int, counts: Mapping[str, int] | None = None) -> None:
        """`count` more are done; `counts` is what else the line tells, e.g. images by status."""
        self.done += count
        now = time.monotonic()
        if now - self._last < self.period and self.done < self.total:
            return
        self._last = now
        rate = (self.done - self._before) / max(now - self._start, 1e-9)
        left = datetime.timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
        more = "".join(f", {number} {name}" for name, number in (counts or {}).items() if number)
        self.logger.info(
            "%d of %d %s, %.1f per second, ETA %s%s",
            *(self.done, self.total, self.unit, rate, left, more),
        )
