"""Progress lines of a batch job: done, rate and remaining time."""

import datetime
import logging
import time


class Progress:
    """Logs the state of a job at most every `period` seconds, and at its end.

    Args:
        total: number of things to do.
        unit: what they are.
        logger: where the lines go.
        period: seconds.
    """

    def __init__(self, total: int, unit: str, logger: logging.Logger, period: float = 5.0):
        self.total, self.unit, self.logger, self.period = total, unit, logger, period
        self.done = 0
        self._start = self._last = time.monotonic()

    def update(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        now = time.monotonic()
        if now - self._last < self.period and self.done < self.total:
            return
        self._last = now
        rate = self.done / max(now - self._start, 1e-9)
        left = datetime.timedelta(seconds=round((self.total - self.done) / max(rate, 1e-9)))
        self.logger.info(
            "%d of %d %s, %.1f per second, ETA %s", self.done, self.total, self.unit, rate, left
        )
