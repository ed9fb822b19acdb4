"""Receipts: what a finished shard holds. They are the checkpoint of a job."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pseudolabel.files import file_hash
from pseudolabel.job.durable import read_record, write_record
from pseudolabel.job.plan import PlanRow, json_hash

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Receipt:
    """Proof that a shard is done, and what it cost.

    Attributes:
        shard: number of the shard.
        input_sha256, labeler_sha256, ids_sha256, seed: of the plan; ids those found in the part.
        part_sha256, part_bytes: hash and size of the part file.
        images, annotations_in: what went in.
        counts: `LabelResult.counts()` of what came out.
        run: device, dtype, host, seconds; facts of the run, which no label depends on.
    """

    shard: int
    input_sha256: str
    labeler_sha256: str
    ids_sha256: str
    seed: int
    part_sha256: str
    part_bytes: int
    images: int
    annotations_in: int
    counts: dict[str, Any]
    run: dict[str, Any]

    def fits(self, row: PlanRow) -> bool:
        """Whether this receipt is for a row: same input, labeler and seed, all ids found again."""
        return (
            self.shard == row.shard
            and self.input_sha256 == row.input_sha256
            and self.labeler_sha256 == row.labeler_sha256
            and self.ids_sha256 == row.ids_sha256
            and self.seed == row.seed
            and self.images == row.images == sum(self.counts["images"].values())
            and self.annotations_in == row.annotations
        )


def write_receipt(row: PlanRow, job: Path, receipt: Receipt) -> None:
    """Writes the receipt of a row with a hash of itself: no part file proves its counts."""
    facts = asdict(receipt)
    write_record(row.receipt_path(job), {**facts, "sha256": json_hash(facts)})


def read_receipt(row: PlanRow, job: Path) -> Receipt | None:
    """The receipt of a row; None where there is none, or none that can be used."""
    try:
        facts = read_record(row.receipt_path(job)) or {}
        if facts.pop("sha256", None) != json_hash(facts):
            return None
        receipt = Receipt(**facts)
        return receipt if receipt.fits(row) else None
    except (AttributeError, KeyError, RecursionError, TypeError):
        return None


def proven_receipt(row: PlanRow, job: Path) -> Receipt | None:
    """`read_receipt`, if the part file is there and has the receipt's hash."""
    receipt = read_receipt(row, job)
    try:
        proven = receipt is not None and file_hash(row.part_path(job)) == receipt.part_sha256
    except OSError:
        proven = False
    return receipt if proven else None


def likely_receipt(row: PlanRow, job: Path) -> Receipt | None:
    """`read_receipt`, if a part file of the receipt's size is there, which is cheap to see."""
    receipt = read_receipt(row, job)
    try:
        likely = receipt is not None and row.part_path(job).stat().st_size == receipt.part_bytes
    except OSError:
        likely = False
    return receipt if likely else None


def drop_unproven(rows: Iterable[PlanRow], job: Path) -> list[Receipt]:
    """Removes the receipts that nothing proves, so that their shards are labelled again.

    Returns:
        The receipts that hold.
    """
    kept = []
    for row in rows:
        receipt = proven_receipt(row, job)
        if receipt is not None:
            kept.append(receipt)
        elif row.receipt_path(job).exists():
            logger.warning(
                "shard %s: its receipt or its part file is damaged; labelling it again", row.name
            )
            row.receipt_path(job).unlink(missing_ok=True)
    return kept
