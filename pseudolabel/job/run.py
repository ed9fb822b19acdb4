"""A whole labelling job, from input files to label file; repeated, it goes on where it stopped."""

import logging
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.job.durable import read_record
from pseudolabel.job.inputs import JobInput
from pseudolabel.job.lease import acquire, holder
from pseudolabel.job.merge import checked_receipts, merge
from pseudolabel.job.options import JobOptions
from pseudolabel.job.plan import (
    FOLDERS,
    Plan,
    default_shard_boxes,
    load_plan,
    make_identity,
    make_plan,
    refuse_other,
)
from pseudolabel.job.processes import BuildLabeler, run_here, run_processes
from pseudolabel.job.receipt import drop_unproven
from pseudolabel.labeler import Labeler
from pseudolabel.store import output_paths

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


def run_job(
    given: JobInput, labeler: Labeler, build: BuildLabeler, options: JobOptions
) -> dict[str, Any] | None:
    """Plans, labels and merges, or goes on with what an earlier run has left.

    Args:
        given: the input files.
        labeler: for this process, and for the hashes of the plan.
        build: makes an equal labeler in a worker process.
        options: how.

    Returns:
        The manifest; None where other processes have shards still to label (`options.shard`).

    Raises:
        DataError: bad input, an unfinished job of another command, or a job that does not add up.
    """
    job = options.job
    refuse_foreign(job)
    plan = prepare(given, labeler, options)
    done = {receipt.shard for receipt in drop_unproven(plan, job)}
    mine = plan.claiming_order()
    if options.shard is not None:
        mine = mine[options.shard[0] :: options.shard[1]]
    finished = [row for row in plan.rows if row.shard in done]
    rows = [row for row in mine if row.shard not in done]
    if finished:
        logger.info("%s: going on, %d of %d shards done", job, len(finished), len(plan.rows))
    if rows and options.workers > 1:
        run_processes(plan, rows, finished, build, options)
    elif rows:
        run_here(plan, rows, finished, labeler, job, options.images)
    if options.shard is not None and job.exists() and not _all_done(plan, job):
        logger.info("shard %d/%d is done; others are not yet, so nothing is merged", *options.shard)
        return None
    return merge_once(plan, options)


def prepare(given: JobInput, labeler: Labeler, options: JobOptions) -> Plan:
    """The plan of a job: a new one, or the one that lies there, if it is for the same labels.

    With `restart` a job that lies there is thrown away.

    Raises:
        DataError: it is for other labels, naming what differs.
    """
    job = options.job
    settings = (given.identity(), labeler.describe(), options.seed)
    anew = options.restart and job.exists()
    if anew or load_plan(job) is None:
        # Bad input leaves no folder behind, and costs none that is there.
        source = given.open()
        if anew:
            remove_job(job)
        size = options.shard_boxes or default_shard_boxes(source)
        for name in FOLDERS:
            (job / name).mkdir(parents=True, exist_ok=True)
    while (plan := load_plan(job)) is None:
        lease = acquire(job / "leases" / "plan")
        if lease is None:
            time.sleep(POLL_SECONDS)
            continue
        with lease:
            if load_plan(job) is None:
                make_plan(source, job, make_identity(*settings, size, options.allow_links))
    size = options.shard_boxes or plan.identity["shard_boxes"]
    refuse_other(job, plan.identity, make_identity(*settings, size, options.allow_links))
    return plan


def merge_once(plan: Plan, options: JobOptions) -> dict[str, Any]:
    """Merges, unless another process does it: then waits for that.

    Raises:
        DataError: see `merge`, or the job has vanished without a label file.
    """
    job, waited = options.job, False
    while (job / "plan.json").exists():
        try:
            lease = acquire(job / "leases" / "merge")
        except FileNotFoundError:
            break
        if lease is None:
            if not waited:
                logger.info("%s merges", holder(job / "leases" / "merge"))
            waited = True
            time.sleep(POLL_SECONDS)
            continue
        with lease:
            if not (job / "plan.json").exists():
                break
            extra = {"command": options.command} if options.command else {}
            manifest = merge(plan, job, options.output, extra)
            if not options.keep_job:
                remove_job(job)
            return manifest
    manifest = finished_manifest(plan, options.output)
    if manifest is None:
        raise DataError(job, "has been removed by another process", "repeat the command")
    return manifest


def finished_manifest(plan: Plan, output: Path) -> dict[str, Any] | None:
    """The manifest beside an output that was merged from this plan, else None."""
    labels, rejects, manifest_path = output_paths(output)
    manifest = read_record(manifest_path) or {}
    if manifest.get("job", {}).get("plan_sha256") != plan.sha256():
        return None
    for path, key in ((labels, "output_sha256"), (rejects, "rejects_sha256")):
        if not path.is_file() or file_hash(path) != manifest.get(key):
            return None
    return manifest


def refuse_foreign(job: Path) -> None:
    """Stops where the folder of the job, which is removed at the end, holds something else.

    Raises:
        DataError: it is not a folder, or has entries that no job writes and no plan.
    """
    if not job.exists() or (job / "plan.json").exists():
        return
    known = (*FOLDERS, "head.json")
    names = [path.name for path in job.iterdir()] if job.is_dir() else ["itself"]
    strange = [name for name in names if name not in known and not name.startswith(".")]
    if strange:
        problem = f"is no folder of a labelling job ({', '.join(sorted(strange)[:3])})"
        raise DataError(job, problem, "move it away, or choose another --output")


def remove_job(job: Path) -> None:
    """Takes the folder out of sight at once, then deletes it, and others that a kill has left."""
    doomed = f".{job.name}."
    job.rename(job.with_name(f"{doomed}{uuid.uuid4().hex}"))
    for path in job.parent.iterdir():
        if path.name.startswith(doomed):
            shutil.rmtree(path, ignore_errors=True)


def _all_done(plan: Plan, job: Path) -> bool:
    try:
        checked_receipts(plan, job)
    except DataError:
        return False
    return True
