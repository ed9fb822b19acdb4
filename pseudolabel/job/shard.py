"""One shard of a job: images in, a part file and its receipt out; doing it twice is harmless."""

import functools
import json
import platform
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.checks import strict_json
from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.job.categories import label_with_categories
from pseudolabel.job.durable import read_lines, read_record, write_lines
from pseudolabel.job.found import category_ids, find_in_image
from pseudolabel.job.plan import PlanRow, ids_hash, json_hash
from pseudolabel.job.receipt import Receipt, proven_receipt, write_receipt
from pseudolabel.label_job import label_image
from pseudolabel.labeler import Labeler
from pseudolabel.store import ImageJob, LabelResult

# Sections of a part file, in this order; annotations are the bulk and come last.
SECTIONS = ("images", "rejects", "annotations")

OnImage = Callable[[ImageJob, str], None]


def ignore_progress(job: ImageJob, status: str) -> None:
    """Takes no notice of a labelled image."""


def label_shard(
    row: PlanRow,
    labeler: Labeler,
    job: Path,
    image_root: str | Path,
    on_image: OnImage = ignore_progress,
) -> Receipt:
    """Labels one shard, unless its receipt and part are there already.

    The part file is on disk under its name before the receipt is. On a CPU its bytes depend on the
    plan and the labeler alone.

    Args:
        row: what to label.
        labeler: must be the one of the plan.
        job: the folder of the job.
        image_root: folder of the images.
        on_image: called after each image with its status.

    Raises:
        DataError: the labeler is another, the shard's input is damaged, or the accounts fail.
        OSError: the part or the receipt cannot be written.
    """
    done = proven_receipt(row, job)
    if done is not None:
        return done
    if json_hash(labeler.describe()) != row.labeler_sha256:
        raise DataError(job, "this labeler is not the one of the plan", "give the same options")
    started = time.perf_counter()
    result, given = LabelResult(), []
    annotate = annotator(labeler, read_category_ids(job) if row.finds_boxes else None)
    seed_process(row.seed)
    for image in read_input(row, job):
        given.extend(a["id"] for a in (*image.boxes, *image.crowds))
        annotate(image, row.source, image_root, labeler, result, allow_links=row.allow_links)
        on_image(image, result.images[-1]["status"])
    out = [] if row.finds_boxes else [a["id"] for a in (*result.annotations, *result.rejects)]
    if sorted(out) != sorted(given) or len(result.images) != row.images:
        wrong = sorted(set(out) ^ set(given))[:5] or "twice or images"
        raise DataError(job, f"shard {row.name}: {wrong} not accounted for", "report this bug")
    write_part(row.part_path(job), result, row.finds_boxes)
    receipt = Receipt(
        shard=row.shard,
        input_sha256=row.input_sha256,
        labeler_sha256=row.labeler_sha256,
        ids_sha256=ids_hash(out),
        seed=row.seed,
        part_sha256=file_hash(row.part_path(job)),
        part_bytes=row.part_path(job).stat().st_size,
        images=len(result.images),
        annotations_in=len(given),
        counts=result.counts(),
        run=run_facts(labeler, time.perf_counter() - started),
    )
    write_receipt(row, job, receipt)
    return receipt


def annotator(labeler: Labeler, found: frozenset[int] | None) -> Callable[..., None]:
    """What labels an image: `label_image`, or the one of its two variants that a labeler needs.

    Args:
        labeler: may be of someone else; any error of it names it and the image.
        found: the categories that it may find; None where the boxes are given.
    """
    if found is not None:
        annotate: Callable[..., None] = functools.partial(find_in_image, categories=found)
    else:
        aware = getattr(labeler, "needs_categories", False)
        annotate = label_with_categories if aware else label_image

    def annotate_or_name(image: ImageJob, *arguments: Any, **options: Any) -> None:
        try:
            annotate(image, *arguments, **options)
        except (DataError, OSError):
            raise
        except Exception as error:  # a labeler of someone else may raise anything
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            raise DataError(
                f"labeler {labeler.name}",
                f"failed: {type(error).__name__} at {where}: {error}",
                "correct it; it gives one record for each box, in their order",
                f"image {image.image['id']}",
            ) from error

    return annotate_or_name


def read_category_ids(job: Path) -> frozenset[int]:
    """The categories of a job's output.

    Raises:
        DataError: head.json is damaged.
    """
    path = job / "head.json"
    try:
        return category_ids(read_record(path) or {})
    except (KeyError, TypeError) as error:
        raise DataError(path, "is damaged", "start anew with --restart") from error


def seed_process(seed: int) -> None:
    """Seeds all generators before each shard: no shard depends on those before it."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # A yardstick needs no torch, and its import takes seconds.
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def read_input(row: PlanRow, job: Path) -> Iterator[ImageJob]:
    """The images of a shard.

    Raises:
        DataError: the file is not the one of the plan.
    """
    path = row.input_path(job)
    if not path.is_file() or file_hash(path) != row.input_sha256:
        raise DataError(path, "is missing or not the file of the plan", "use --restart")
    for line in read_lines(path):
        yield ImageJob(**json.loads(line))


def write_part(path: Path, result: LabelResult, found: bool) -> None:
    """One JSON object per line: images by id, rejects, annotations by id (found: by image).

    An image that no JSON gives a size and that cannot be read has none: it is a reject only.
    """
    sized = [image for image in result.images if "height" in image]
    images = sorted(sized, key=lambda image: image["id"])
    annotations = result.annotations
    if not found:
        annotations = sorted(annotations, key=lambda annotation: annotation["id"])
    with write_lines(path) as file:
        for section, rows in zip(SECTIONS, (images, result.rejects, annotations), strict=True):
            for entry in rows:
                file.write(f'{{"{section}":{_text(section, entry)}}}\n')


def _text(section: str, entry: dict) -> str:
    # The rejects file has always been spaced.
    return json.dumps(entry, allow_nan=False) if section == "rejects" else strict_json(entry)


def run_facts(labeler: Labeler, seconds: float) -> dict[str, Any]:
    """Device, dtype, host and seconds, for the receipt."""
    facts = labeler.describe()
    return {
        "device": facts.get("device", "cpu"),
        "dtype": facts.get("dtype", "float32"),
        "host": platform.node(),
        "seconds": round(seconds, 3),
    }
