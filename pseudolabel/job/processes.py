"""The local processes of a job, what they tell of their progress, and how they stop."""

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pseudolabel.errors import DataError
from pseudolabel.job.options import JobOptions
from pseudolabel.job.plan import Plan, PlanRow, load_plan
from pseudolabel.job.stopping import obey_the_launcher, stop_held_back
from pseudolabel.job.worker import work
from pseudolabel.labeler import Labeler
from pseudolabel.progress import Progress
from pseudolabel.store import ImageJob

logger = logging.getLogger(__name__)

STATUSES = ("labelled", "empty", "rejected")
UPDATE_SECONDS = 0.2
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

BuildLabeler = Callable[[], Labeler]


class Tally:
    """What workers have done: boxes, and images by status.

    Args:
        cells: one row of four integers per worker, in memory that the processes share. Each worker
            writes its own row, so that none can die with a lock.
    """

    def __init__(self, cells: Any, worker: int = 0):
        self.cells, self._first = cells, worker * (len(STATUSES) + 1)

    def add(self, job: ImageJob, status: str) -> None:
        """One image is done."""
        self.cells[self._first] += len(job.boxes) + len(job.crowds)
        self.cells[self._first + 1 + STATUSES.index(status)] += 1

    def boxes(self) -> int:
        """Of all workers."""
        return sum(self.cells[:: len(STATUSES) + 1])

    def images(self) -> dict[str, int]:
        """Of all workers, by status."""
        step = len(STATUSES) + 1
        return {name: sum(self.cells[1 + k :: step]) for k, name in enumerate(STATUSES)}


class Meter:
    """Logs the progress of a job from the tally of its workers.

    Args:
        plan: of the job.
        done: rows that were done before.
        tally: of the workers.
    """

    def __init__(self, plan: Plan, done: list[PlanRow], tally: Tally):
        self._tally, self._by_image = tally, plan.finds_boxes
        total = plan.images if plan.finds_boxes else plan.annotations
        before = sum(row.images if plan.finds_boxes else row.annotations for row in done)
        unit = "images" if plan.finds_boxes else "boxes"
        self._progress = Progress(total, unit, logger, done=before)
        self._seen = 0

    def update(self) -> None:
        """Takes the tally over."""
        images = self._tally.images()
        now = sum(images.values()) if self._by_image else self._tally.boxes()
        counts = {f"images {name}": number for name, number in images.items()}
        if now != self._seen:
            self._progress.update(now - self._seen, counts)
            self._seen = now


@contextmanager
def one_thread_each():
    """Children started inside use one thread for their sums."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def run_here(
    plan: Plan, rows: list[PlanRow], done: list[PlanRow], labeler: Labeler, job: Path, images: Path
) -> None:
    """Labels `rows` in this process."""
    tally = Tally([0] * (len(STATUSES) + 1))
    meter = Meter(plan, done, tally)

    def on_image(image: ImageJob, status: str) -> None:
        tally.add(image, status)
        meter.update()

    work(plan, rows, labeler, job, images, on_image)


def run_processes(
    plan: Plan,
    rows: list[PlanRow],
    done: list[PlanRow],
    build: BuildLabeler,
    options: JobOptions,
) -> None:
    """Labels `rows` in several processes of this machine.

    Args:
        plan, rows, done: see `Meter`; `rows` are left to do.
        build: makes the labeler in each process; picklable, unless the processes are forked.
        options: number of workers, start method and folders. A fork would copy the threads and the
            GPU of a labeler.

    Raises:
        DataError: a process ended with an error or was killed, and not all is done.
        KeyboardInterrupt: passed on after the processes have stopped.
    """
    workers, job = options.workers, options.job
    context = multiprocessing.get_context(options.start_method)
    cells = context.RawArray("q", workers * (len(STATUSES) + 1))
    numbers = [row.shard for row in rows]
    meter = Meter(plan, done, Tally(cells))
    children: list[BaseProcess] = []
    if options.start_method == "spawn":
        # Begun later, it would lift the block of Ctrl-C for the first worker.
        resource_tracker.ensure_running()
    try:
        with one_thread_each(), stop_held_back():
            for k in range(workers):
                arguments = build, job, options.images, numbers, cells, k
                child = context.Process(target=_child, args=arguments)
                child.start()
                children.append(child)
        while any(child.is_alive() for child in children):
            for child in children:
                child.join(UPDATE_SECONDS / workers)
            meter.update()
    except BaseException:
        _stop(children)
        raise
    failed = [child.exitcode for child in children if child.exitcode]
    if failed and len(failed) == workers:
        raise DataError(job, f"every worker failed ({_ends(failed)})", "see the messages above")
    if failed:
        logger.warning("%s of %d workers failed (%s)", len(failed), workers, _ends(failed))


def _ends(codes: list[int]) -> str:
    return ", ".join(f"signal {-code}" if code < 0 else f"status {code}" for code in codes)


def _stop(children: list[BaseProcess]) -> None:
    for child in children:
        if child.is_alive():
            child.terminate()
    for child in children:
        child.join(10)
        if child.is_alive():
            child.kill()
            child.join()


def _child(
    build: BuildLabeler, job: Path, images: Path, numbers: list[int], cells: Any, k: int
) -> None:
    obey_the_launcher()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        plan = load_plan(job)
        if plan is not None:
            wanted = set(numbers)
            rows = [row for row in plan.claiming_order() if row.shard in wanted]
            work(plan, rows, build(), job, images, Tally(cells, k).add)
    except (DataError, OSError) as error:
        logger.error("worker %d: %s", k, error)
        sys.exit(1)
