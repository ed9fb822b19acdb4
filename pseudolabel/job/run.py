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
from pseudolabel.job.identity import Command, differences, refuse_other
from pseudolabel.job.inputs import JobInput
from pseudolabel.job.lease import acquire, holder
from pseudolabel.job.merge import merge, nothing_labelled
from pseudolabel.job.options import JobOptions
from pseudolabel.job.plan import FOLDERS, Plan, load_plan, make_plan
from pseudolabel.job.processes import BuildLabeler, run_here, run_processes
from pseudolabel.job.receipt import drop_unproven, likely_receipt
from pseudolabel.labeler import Labeler
from pseudolabel.store import output_paths

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
REMOVALS = 5


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
        The manifest, also of a command that had finished before; None where other processes have
        shards still to label (`options.shard`).

    Raises:
        DataError: bad input, an unfinished job of another command, or a job that does not add up.
    """
    job = options.job
    refuse_foreign(job)
    command = Command(given, labeler, options)
    refuse_shared(options.output)
    if not options.restart and load_plan(job) is None:
        manifest = complete_output(command, options.output)
        if manifest is not None:
            logger.info("finished: %s is complete (--restart makes it anew)", options.output)
            return manifest
    plan = _plan(given, command, options)
    mine = plan.claiming_order()
    if options.shard is not None:
        mine = mine[options.shard[0] :: options.shard[1]]
    own = {row.shard for row in mine}
    done = {receipt.shard for receipt in drop_unproven(mine, job)}
    done |= {r.shard for r in plan.rows if r.shard not in own and likely_receipt(r, job)}
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
    refuse_foreign(options.job)
    return _plan(given, Command(given, labeler, options), options)


def _plan(given: JobInput, command: Command, options: JobOptions) -> Plan:
    job, source = options.job, None
    anew = options.restart and job.exists()
    while anew or (plan := load_plan(job)) is None:
        # Bad input leaves no folder behind, and costs none that is there.
        source = source or given.open()
        if anew:
            remove_job(job)
            anew = False
        for name in FOLDERS:
            (job / name).mkdir(parents=True, exist_ok=True)
        try:
            lease = acquire(job / "leases" / "plan")
        except FileNotFoundError:
            # Another process has finished with the folder meanwhile.
            continue
        if lease is None:
            time.sleep(POLL_SECONDS)
            continue
        with lease:
            if load_plan(job) is None:
                make_plan(source, job, command.begin(source))
    refuse_other(job, plan.identity, command.repeat(plan.identity))
    return plan


def merge_once(plan: Plan, options: JobOptions) -> dict[str, Any]:
    """Merges, unless another process does it: then waits for that.

    Raises:
        DataError: see `merge`; or the job has vanished without a label file; or the labels there
            are this job's and have been changed since.
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
            refuse_shared(options.output)
            manifest = _manifest_beside(options.output)
            # The folder of a job that is done may have been kept, or a kill have left it.
            if not options.restart and _job_of(manifest).get("plan_sha256") == plan.sha256():
                refuse_edited(manifest, options.output)
            extra = {"command": options.command} if options.command else {}
            manifest = merge(plan, job, options.output, extra)
            # Where nothing was labelled, the job shows what went wrong.
            if not (options.keep_job or nothing_labelled(manifest)):
                remove_job(job)
            return manifest
    manifest = _manifest_beside(options.output)
    if _job_of(manifest).get("plan_sha256") != plan.sha256() or changed(manifest, options.output):
        raise DataError(job, "has been removed by another process", "repeat the command")
    return manifest


def complete_output(command: Command, output: Path) -> dict[str, Any] | None:
    """The manifest beside labels that this very command has finished before, else None.

    Raises:
        DataError: it has, and the files have been changed since, by hand perhaps.
    """
    manifest = _manifest_beside(output)
    identity = _job_of(manifest).get("identity")
    if not isinstance(identity, dict) or differences(identity, command.repeat(identity)):
        return None
    return None if refuse_edited(manifest, output) else manifest


def refuse_edited(manifest: dict[str, Any], output: Path) -> list[Path]:
    """Stops where labels or rejects are there, but are not the files of their manifest.

    Returns:
        Those of the two that are missing.

    Raises:
        DataError: naming the file.
    """
    different = changed(manifest, output)
    there = [path for path in different if path.exists()]
    if there:
        raise DataError(
            there[0],
            "has been changed since this command finished it",
            "move the file away to keep it, or make it anew with --restart",
        )
    return different


def refuse_shared(output: Path) -> None:
    """Stops where rejects and manifest, which have no suffix of the output, are another file's.

    Raises:
        DataError: the manifest there is of labels that lie beside it under another name.
    """
    path = output_paths(output)[2]
    other = _manifest_beside(output).get("output")
    if isinstance(other, str) and other != output.name and (output.parent / other).is_file():
        remedy = "choose a name for --output that differs before its suffix"
        raise DataError(path, f"belongs to {other}", remedy)


def _manifest_beside(output: Path) -> dict[str, Any]:
    return read_record(output_paths(output)[2]) or {}


def changed(manifest: dict[str, Any], output: Path) -> list[Path]:
    """Those of labels and rejects that are missing or not the files of their manifest."""
    files = zip(output_paths(output), ("output_sha256", "rejects_sha256"))
    return [p for p, key in files if not p.is_file() or file_hash(p) != manifest.get(key)]


def _job_of(manifest: dict[str, Any]) -> dict[str, Any]:
    job = manifest.get("job")
    return job if isinstance(job, dict) else {}


def refuse_foreign(job: Path) -> None:
    """Stops where the folder of the job, which is removed at the end, holds something else.

    Raises:
        DataError: it is not a folder, or has entries that no job writes.
    """
    try:
        names = [path.name for path in job.iterdir()]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        if not job.exists():
            return
        names = ["itself"]
    # A plan without the folders that were made before it is somebody else's.
    known = (*FOLDERS, "head.json", *(["plan.json"] if {*FOLDERS} <= {*names} else []))
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
            # Again where a heartbeat has made a file in it meanwhile: a folder must be empty to go.
            for _ in range(REMOVALS):
                shutil.rmtree(path, ignore_errors=True)
                if not path.exists():
                    break


def _all_done(plan: Plan, job: Path) -> bool:
    """By the look of it; the merge reads every part."""
    return all(likely_receipt(row, job) for row in plan.rows)
