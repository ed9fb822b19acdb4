"""What a job will cost, from the labelling of a few boxes."""

import datetime
import functools
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.checks import strict_json
from pseudolabel.errors import DataError
from pseudolabel.job.found import ImageSource, category_ids
from pseudolabel.job.plan import Source, default_shard_boxes
from pseudolabel.job.shard import annotator, seed_process, write_part
from pseudolabel.job.worker import limit_threads
from pseudolabel.labeler import Labeler
from pseudolabel.store import LabelResult, group_by_image

BOXES = 200
# A labeler that finds the boxes is measured on so many images.
IMAGES = 25


class _Timed:
    """A labeler whose own time is measured."""

    def __init__(self, labeler: Labeler):
        self._labeler, self.name, self.seconds = labeler, labeler.name, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._labeler, name)

    def label(self, image: np.ndarray, boxes: np.ndarray | None, **more: Any) -> list:
        begin = time.perf_counter()
        found = self._labeler.label(image, boxes, **more)
        self.seconds += time.perf_counter() - begin
        return found


@dataclass
class Cost:
    """Measured on a sample, per box (or per image where the labeler finds the boxes).

    Attributes:
        images, boxes: of the whole job.
        sample_images, sample_boxes: what was measured.
        seconds: {"decode", "network", "write"}: of one process and one thread, for the sample.
        label_bytes, part_bytes: of the sample's labels as JSON, and as a compressed part.
        device: where the labeler runs.
        rejected: images of the sample that could not be read.
    """

    images: int
    boxes: int
    sample_images: int
    sample_boxes: int
    seconds: dict[str, float] = field(default_factory=dict)
    label_bytes: int = 0
    part_bytes: int = 0
    device: str = "cpu"
    rejected: int = 0

    def hours(self, scale: float) -> dict[str, float]:
        """Hours by stage for the job times `scale`: decoding goes by images, the rest by boxes."""
        images = scale * self.images / max(self.sample_images, 1)
        boxes = scale * self.boxes / self.sample_boxes if self.sample_boxes else images
        factor = {"decode": images, "network": boxes, "write": boxes}
        return {name: seconds * factor[name] / 3600 for name, seconds in self.seconds.items()}


def calibrate(
    source: Source,
    labeler: Labeler,
    image_root: Path,
    seed: int,
    boxes: int = BOXES,
    *,
    allow_links: bool = False,
) -> Cost:
    """Labels about `boxes` boxes, on images evenly spread over the input, and takes the time.

    Raises:
        DataError: no image of the sample can be read.
    """
    limit_threads()
    seed_process(seed)
    ids = source.image_ids
    per_image = max(source.annotations_in / max(len(ids), 1), boxes / IMAGES / 4)
    picks = np.linspace(0, len(ids) - 1, min(len(ids), int(boxes / per_image) + 1))
    wanted = set(ids[picks.astype(np.int64)].tolist())
    images = [image for image in source.images() if image["id"] in wanted]
    jobs = group_by_image(images, (a for a in source.annotations() if a["image_id"] in wanted))
    # A JSON of boxes may have none.
    finds = isinstance(source, ImageSource)
    annotate = functools.partial(
        annotator(labeler, category_ids(source.head) if finds else None), allow_links=allow_links
    )
    timed, result = _Timed(labeler), LabelResult()
    if jobs:
        # The first call of a network is slow.
        annotate(jobs[0], source, image_root, labeler, LabelResult())
    begin = time.perf_counter()
    for job in jobs:
        annotate(job, source, image_root, timed, result)
    labelled = time.perf_counter() - begin
    cost = Cost(len(ids), source.annotations_in, len(jobs), sum(len(j.boxes) for j in jobs))
    cost.rejected = sum(image["status"] == "rejected" for image in result.images)
    if jobs and cost.rejected == len(jobs):
        detail = result.rejects[0]["detail"] if result.rejects else "no image can be read"
        raise DataError(image_root, f"none of {len(jobs)} images was labelled ({detail})", "see it")
    begin = time.perf_counter()
    cost.label_bytes = sum(len(strict_json(row)) + 1 for row in result.annotations)
    cost.label_bytes += sum(len(strict_json(row)) + 1 for row in result.images)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder, "part")
        write_part(part, result, finds)
        cost.part_bytes = part.stat().st_size
    written = time.perf_counter() - begin
    cost.seconds = {"decode": labelled - timed.seconds, "network": timed.seconds, "write": written}
    cost.device = str(labeler.describe().get("device", "cpu"))
    return cost


def describe_cost(
    cost: Cost, source: Source, shard_boxes: int | None, workers: int, scale_to: int | None = None
) -> str:
    """The lines of `--dry-run`.

    Args:
        cost: from `calibrate`.
        source: the input.
        shard_boxes: of the command.
        workers: of the command, for the wall time.
        scale_to: boxes (images without boxes: images) of an imagined input of the same kind.

    Raises:
        DataError: `scale_to` is not positive.
    """
    if scale_to is not None and scale_to < 1:
        raise DataError("--scale-to", f"{scale_to} is no number of boxes", "give 1 or more")
    size = max(cost.boxes or cost.images, 1)
    scale = 1.0 if scale_to is None else scale_to / size
    hours = cost.hours(scale)
    total = sum(hours.values())
    kind = "core" if cost.device == "cpu" else "GPU"
    slowest = max(hours, key=hours.get)
    shares = ", ".join(f"{k} {100 * v / max(total, 1e-12):.0f} %" for k, v in hours.items())
    images, boxes = round(scale * cost.images), round(scale * cost.boxes)
    per_shard = shard_boxes or (default_shard_boxes(source) if scale_to is None else 15_000)
    shards = max(1, -(-max(images, boxes) // per_shard))
    parts = cost.sample_boxes or cost.sample_images
    factor = scale * size / max(parts, 1)
    wall = datetime.timedelta(hours=round(total / workers, 4))
    first = "plan" if scale_to is None else f"EXTRAPOLATED to {scale_to:,} from {size:,}"
    return "\n".join(
        [
            f"{first}: {images:,} images, {boxes:,} boxes, about {shards:,} shards",
            f"measured on {cost.sample_images} images with {cost.sample_boxes} boxes "
            f"({cost.rejected} unreadable), one process with one thread, device {cost.device}",
            f"labelling: {total:,.2f} {kind}-hours ({shares}); bottleneck: {slowest}",
            f"with --workers {workers}: {str(wall).split('.')[0]} on a machine with as many free "
            f"{kind}s" + ("" if kind == "core" else " (decoding shares the GPU process)"),
            f"disk: labels {_bytes(cost.label_bytes * factor)}, "
            f"parts while the job runs {_bytes(cost.part_bytes * factor)}",
        ]
    )


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.2f} TB"
