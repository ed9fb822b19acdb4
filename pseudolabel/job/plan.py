"""The plan of a labelling job: sorted images cut into shards, as a function of the input alone.

The folder of a job:

    plan.json             what is to be labelled, by what: hashes, seed, one row per shard
    head.json             the top level of the output but for its lists
    input/00000.jsonl.gz  the images of a shard with their boxes, one image per line
    parts/, receipts/     what `label_shard` leaves
    leases/               who is at work on what
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.job.buckets import bucket_jobs
from pseudolabel.job.durable import read_record, write_lines, write_record
from pseudolabel.store import ImageJob

FORMAT = 3
SHARD_BOXES = 15_000
# A small input is cut finer, so that it has shards for several workers.
FEWEST_BOXES, FEWEST_SHARDS = 250, 32
FOLDERS = ("input", "parts", "receipts", "leases")
RESTART = "repeat the first command to go on, or start anew with --restart"


class Source(Protocol):
    """What a plan is made of: `store.BoxFile`, or `found.ImageSource` for images without boxes."""

    head: dict[str, Any]
    image_ids: np.ndarray
    annotations_in: int

    def images(self) -> Iterable[dict]: ...

    def annotations(self) -> Iterable[dict]: ...


@dataclass(frozen=True)
class PlanRow:
    """One shard.

    Attributes:
        shard: its number in the order of image ids.
        images, annotations: how many it has.
        weight: what it costs, in boxes; an image without boxes counts as one.
        input_sha256: of its input file.
        ids_sha256: of its annotation ids, ascending.
        finds_boxes: whether the labeler finds the boxes too.
        seed, labeler_sha256: what the labeler must be.
        allow_links: whether links below the image folder may lead out of it.
        source: name of the file, or folder, that lists the images; for messages.
    """

    shard: int
    images: int
    annotations: int
    weight: int
    input_sha256: str
    ids_sha256: str
    finds_boxes: bool
    seed: int
    labeler_sha256: str
    allow_links: bool
    source: str

    @property
    def name(self) -> str:
        return f"{self.shard:06d}"

    def input_path(self, job: Path) -> Path:
        return job / "input" / f"{self.name}.jsonl.gz"

    def part_path(self, job: Path) -> Path:
        return job / "parts" / f"{self.name}.jsonl.gz"

    def receipt_path(self, job: Path) -> Path:
        return job / "receipts" / f"{self.name}.json"


@dataclass(frozen=True)
class Plan:
    """All shards of a job, and what they depend on.

    Attributes:
        identity: of the job, see `identity.Command`; equal identities give equal labels.
        rows: in the order of image ids.
        head_sha256: of head.json.
    """

    identity: dict[str, Any]
    rows: list[PlanRow] = field(default_factory=list)
    head_sha256: str = ""

    @property
    def images(self) -> int:
        return sum(row.images for row in self.rows)

    @property
    def annotations(self) -> int:
        return sum(row.annotations for row in self.rows)

    @property
    def finds_boxes(self) -> bool:
        return self.identity["mode"] == "found"

    def claiming_order(self) -> list[PlanRow]:
        """Costliest first, so that no worker begins a long shard when the others are done."""
        return sorted(self.rows, key=lambda row: (-row.weight, row.shard))

    def sha256(self) -> str:
        """Hash of everything in the plan."""
        return json_hash(asdict(self))


def json_hash(value: object) -> str:
    """Hash of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def ids_hash(ids: Iterable[int]) -> str:
    """Hash of a set of annotation ids."""
    return hashlib.sha256(",".join(map(str, sorted(ids))).encode()).hexdigest()


def default_shard_boxes(source: Source) -> int:
    """About 15,000 boxes per shard; fewer for a small input, by its own size alone."""
    boxes = max(source.annotations_in, len(source.image_ids))
    return min(SHARD_BOXES, max(FEWEST_BOXES, boxes // FEWEST_SHARDS))


def make_plan(source: Source, job: Path, identity: dict[str, Any]) -> Plan:
    """Cuts the input into shards and writes their input files and plan.json, the latter last.

    The same source and identity give the same bytes, so that two machines may do it at once.
    """
    for name in FOLDERS:
        (job / name).mkdir(parents=True, exist_ok=True)
    write_record(job / "head.json", source.head)
    labeler_sha256 = json_hash(identity["labeler"])
    rows: list[PlanRow] = []
    for jobs in cut(bucket_jobs(source, job), identity["shard_boxes"]):
        row = PlanRow(
            shard=len(rows),
            images=len(jobs),
            annotations=sum(len(j.boxes) + len(j.crowds) for j in jobs),
            weight=sum(map(weight, jobs)),
            input_sha256="",
            ids_sha256=ids_hash(a["id"] for j in jobs for a in (*j.boxes, *j.crowds)),
            finds_boxes=identity["mode"] == "found",
            seed=identity["seed"],
            labeler_sha256=labeler_sha256,
            allow_links=identity["allow_links"],
            source=identity.get("images_json") or identity["input"] or "images",
        )
        write_input(row.input_path(job), jobs)
        digest = file_hash(row.input_path(job))
        rows.append(PlanRow(**{**asdict(row), "input_sha256": digest}))
    plan = Plan(identity, rows, file_hash(job / "head.json"))
    write_record(job / "plan.json", {**asdict(plan), "sha256": plan.sha256()})
    return plan


def weight(job: ImageJob) -> int:
    """Cost of an image in boxes; decoding one counts as much as a box."""
    return max(1, len(job.boxes) + len(job.crowds))


def cut(jobs: Iterable[ImageJob], shard_boxes: int) -> Iterator[list[ImageJob]]:
    """Shards of at least `shard_boxes` boxes, but for the last; no image is divided."""
    shard: list[ImageJob] = []
    boxes = 0
    for job in jobs:
        shard.append(job)
        boxes += weight(job)
        if boxes >= shard_boxes:
            yield shard
            shard, boxes = [], 0
    if shard:
        yield shard


def write_input(path: Path, jobs: Iterable[ImageJob]) -> None:
    """The images of a shard; NaN in a bad box is kept, for the reject that quotes it."""
    with write_lines(path) as file:
        for job in jobs:
            file.write(json.dumps(vars(job), separators=(",", ":")) + "\n")


def load_plan(job: Path) -> Plan | None:
    """The plan of a job folder, None where there is none yet.

    Raises:
        DataError: plan.json is not what `make_plan` wrote.
    """
    path = job / "plan.json"
    if not path.exists():
        return None
    data = read_record(path) or {}
    try:
        rows = [PlanRow(**row) for row in data["rows"]]
        plan = Plan(data["identity"], rows, data["head_sha256"])
        sound = data["sha256"] == plan.sha256()
    except (KeyError, RecursionError, TypeError):
        sound = False
    if not sound:
        raise DataError(path, "is damaged", "start anew with --restart")
    return plan
