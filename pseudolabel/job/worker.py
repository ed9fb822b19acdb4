"""A worker: claims shards by lease, labels them, until none is left."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pseudolabel.errors import DataError
from pseudolabel.job.lease import TIMEOUT, acquire, holder
from pseudolabel.job.plan import Plan, PlanRow
from pseudolabel.job.receipt import read_receipt
from pseudolabel.job.shard import OnImage, ignore_progress, label_shard
from pseudolabel.labeler import Labeler

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


def limit_threads() -> None:
    """One thread for this process: sums then have one order, and workers do not compete."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def work(
    plan: Plan,
    rows: list[PlanRow],
    labeler: Labeler,
    job: Path,
    image_root: str | Path,
    on_image: OnImage = ignore_progress,
    lease_timeout: float = TIMEOUT,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Labels all of `rows` that nobody else labels, and waits for those that others hold.

    A shard whose holder dies is taken over. Returns when every row has a receipt, or when the job
    folder is gone, because another process has merged.

    Args:
        plan: of the job.
        rows: what to label, in claiming order.
        labeler, job, image_root, on_image: see `label_shard`.
        lease_timeout: seconds without a sign of life after which a lease is void.
        on_wait: called now and then while others hold what is left.
    """
    limit_threads()
    left = list(rows)
    while left and (job / "plan.json").exists():
        before = len(left)
        for row in list(left):
            if _label_if_free(row, labeler, job, image_root, on_image, lease_timeout):
                left.remove(row)
        if left and len(left) == before:
            on_wait()
            logger.debug("waiting for %s", holder(_lease_path(left[0], job)))
            time.sleep(POLL_SECONDS)


def _lease_path(row: PlanRow, job: Path) -> Path:
    return job / "leases" / row.name


def _label_if_free(
    row: PlanRow,
    labeler: Labeler,
    job: Path,
    image_root: str | Path,
    on_image: OnImage,
    lease_timeout: float,
) -> bool:
    """Whether the row has a receipt now."""
    try:
        if read_receipt(row, job) is not None:
            return True
        lease = acquire(_lease_path(row, job), lease_timeout)
        if lease is None:
            return False
        with lease:
            # Its last holder may have finished between the two looks.
            if read_receipt(row, job) is None:
                label_shard(row, labeler, job, image_root, on_image)
    except (DataError, FileNotFoundError):
        # Where the plan is gone, all was done, and another process has merged.
        if (job / "plan.json").exists():
            raise
    return True
