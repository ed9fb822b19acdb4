"""Merge: the parts of a finished job become one label file; memory does not grow with it."""

import hashlib
import heapq
import json
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pseudolabel.checks import strict_json
from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.job.durable import read_lines, sync_folder, write_lines
from pseudolabel.job.plan import Plan, PlanRow
from pseudolabel.job.receipt import Receipt, proven_receipt, read_receipt
from pseudolabel.job.shard import SECTIONS
from pseudolabel.store import installed_versions, output_paths

# Parts that are merged at once; each is an open file.
FAN_IN = 64
NAMED = 10
AGAIN = "repeat the command (of a cluster, all its tasks), which labels what is missing"


def merge(plan: Plan, job: Path, output: str | Path, extra: dict | None = None) -> dict[str, Any]:
    """Writes labels, rejects and manifest from the parts of a job.

    All three are complete on disk before the first of them replaces its predecessor. The manifest
    goes last and holds the hashes of the other two, so that files which a kill has left from two
    different runs do not match it.

    Args:
        plan: of the job.
        job: its folder, on the file system of the output.
        output: the label JSON; rejects and manifest stand beside it.
        extra: further facts for the manifest.

    Returns:
        The manifest.

    Raises:
        DataError: receipts are missing or do not add up to the plan; nothing is written then.
        OSError: the files cannot be written; what was there before stays.
    """
    paths = output_paths(output)
    receipts = checked_receipts(plan, job)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    rejected = sum(receipt.counts["annotations_rejected"] for receipt in receipts)
    # A merge that was taken for dead may be alive: the drafts of two never share a name.
    with tempfile.TemporaryDirectory(dir=job, prefix=".merged.") as folder:
        drafts = tuple(Path(folder, kind) for kind in ("labels", "rejects", "manifest"))
        labels = _write(drafts[0], _label_text(plan, job, rejected))
        rejects = _write(drafts[1], (f"{line}\n" for line in _in_order(plan.rows, job, "rejects")))
        manifest = _manifest(plan, receipts, labels, rejects, paths[0].name, extra or {})
        _write(drafts[2], [json.dumps(manifest, indent=1, allow_nan=False) + "\n"])
        for draft, path in zip((drafts[1], drafts[0], drafts[2]), (paths[1], paths[0], paths[2])):
            os.replace(draft, path)
    sync_folder(paths[0].parent)
    return manifest


def checked_receipts(plan: Plan, job: Path) -> list[Receipt]:
    """The receipts of all shards; every part is read, to compare its hash.

    A receipt whose part is not the file that was labelled is removed, so that whoever has the shard
    labels it again.

    Raises:
        DataError: a receipt is missing or has been removed.
    """
    receipts = [read_receipt(row, job) for row in plan.rows]
    missing = [row.name for row, receipt in zip(plan.rows, receipts) if receipt is None]
    if missing:
        boxes = sum(row.annotations for row in plan.rows if row.name in set(missing))
        raise DataError(
            job,
            f"{len(missing)} of {len(plan.rows)} shards with {boxes} boxes are not labelled: "
            f"{_list(missing)}",
            AGAIN,
        )
    damaged = [row for row in plan.rows if proven_receipt(row, job) is None]
    for row in damaged:
        row.receipt_path(job).unlink(missing_ok=True)
    if damaged:
        more = f" (and {len(damaged) - 1} others)" if len(damaged) > 1 else ""
        problem = f"is missing or not the file of its receipt{more}"
        raise DataError(damaged[0].part_path(job), problem, AGAIN)
    if file_hash(job / "head.json") != plan.head_sha256:
        raise DataError(job / "head.json", "is damaged", "start anew with --restart")
    return receipts


def _list(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _label_text(plan: Plan, job: Path, rejected: int) -> Iterator[str]:
    """The label file, as `strict_json` would write all of it."""
    head = json.loads((job / "head.json").read_text())
    mark = "{"
    for key, value in head.items():
        yield f"{mark}{strict_json(key)}:"
        if key in ("images", "annotations"):
            lines = _in_order(plan.rows, job, key)
            if key == "annotations":
                lines = _number(lines) if plan.finds_boxes else _by_id(plan, job, rejected)
            yield from _list_text(lines)
        else:
            yield strict_json(value)
        mark = ","
    yield "}\n"


def _list_text(lines: Iterable[str]) -> Iterator[str]:
    mark = "["
    for line in lines:
        yield mark + line
        mark = ","
    yield "[]" if mark == "[" else "]"


def _section(path: Path, section: str) -> Iterator[str]:
    """The JSON texts of one section of a part file; what comes behind it is not read."""
    start = f'{{"{section}":'
    later = tuple(f'{{"{name}":' for name in SECTIONS[SECTIONS.index(section) + 1 :])
    for line in read_lines(path):
        if line.startswith(start):
            yield line[len(start) : -1]
        elif line.startswith(later):
            return


def _in_order(rows: Iterable[PlanRow], job: Path, section: str) -> Iterator[str]:
    for row in rows:
        yield from _section(row.part_path(job), section)


def _number(lines: Iterable[str]) -> Iterator[str]:
    """What was found gets the ids 1, 2, ... in the order of images."""
    for number, line in enumerate(lines, 1):
        yield f'{{"id":{number},{line[1:]}'


def _by_id(plan: Plan, job: Path, rejected: int) -> Iterator[str]:
    """Annotations by id. Parts are sorted; groups of them are merged into runs until few are left.

    Raises:
        DataError: the ids of outputs and rejects are not as many as the boxes of the input.
    """
    expected, count, last = plan.annotations - rejected, 0, None
    with tempfile.TemporaryDirectory(dir=job, prefix=".merge.") as folder:
        streams = [_keyed(_section(row.part_path(job), "annotations")) for row in plan.rows]
        level = 0
        while len(streams) > FAN_IN:
            groups = [streams[k : k + FAN_IN] for k in range(0, len(streams), FAN_IN)]
            paths = [Path(folder, f"{level}.{k}.gz") for k in range(len(groups))]
            for path, group in zip(paths, groups):
                with write_lines(path) as run:
                    run.writelines(f"{line}\n" for _, line in heapq.merge(*group))
            streams, level = [_keyed(read_lines(path)) for path in paths], level + 1
        for key, line in heapq.merge(*streams):
            if last is not None and key <= last:
                raise DataError(job, f"annotation {key} comes twice", "report this bug")
            count, last = count + 1, key
            yield line
    if count != expected:
        problem = f"{count} annotations and {rejected} rejects for {plan.annotations} boxes"
        raise DataError(job, problem, "report this bug")


def _keyed(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for line in lines:
        yield json.loads(line)["id"], line


def _write(path: Path, texts: Iterable[str]) -> str:
    """Writes and syncs a file of the job folder; returns its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for text in texts:
            data = text.encode()
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def add_counts(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The sum of the counts of several shards, keys sorted."""
    total: dict[str, Any] = {}
    for counts in parts:
        for key, value in counts.items():
            if isinstance(value, dict):
                total.setdefault(key, Counter()).update(value)
            else:
                total[key] = total.get(key, 0) + value
    return {
        key: dict(sorted(value.items())) if isinstance(value, Counter) else value
        for key, value in total.items()
    }


def nothing_labelled(manifest: dict[str, Any]) -> bool:
    """Whether every image was rejected, which a wrong image folder does."""
    images = manifest["job"]["images"]
    return images > 0 and manifest["counts"]["images"].get("rejected", 0) == images


EMPTY = {"images": {}, "annotations_out": 0, "annotations_rejected": 0, "mask_source": {}}


def _manifest(
    plan: Plan, receipts: list[Receipt], labels: str, rejects: str, name: str, extra: dict
) -> dict[str, Any]:
    identity = plan.identity
    files = {key: value for key, value in identity.items() if key.startswith(("input", "images_"))}
    counts = add_counts([{**EMPTY, "rejects": {}}, *(receipt.counts for receipt in receipts)])
    return {
        **files,
        "output": name,
        "output_sha256": labels,
        "rejects_sha256": rejects,
        "annotations_in": plan.annotations,
        "counts": counts,
        "labeler": identity["labeler"],
        "versions": installed_versions(),
        "python": platform.python_version(),
        "seed": identity["seed"],
        "seconds": round(sum(receipt.run["seconds"] for receipt in receipts), 1),
        "job": {
            "plan_sha256": plan.sha256(),
            "identity": identity,
            "mode": identity["mode"],
            "shards": len(plan.rows),
            "shard_boxes": identity["shard_boxes"],
            "images": plan.images,
            **{
                f"{key}s": sorted({str(receipt.run[key]) for receipt in receipts})
                for key in ("device", "dtype", "host")
            },
        },
        **extra,
    }
