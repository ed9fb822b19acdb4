"""The records most worth a human look, as a subset for a label tool."""

import csv
import heapq
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.checks import strict_json
from pseudolabel.files import atomic_write
from pseudolabel.report.label_file import LabelFile

# Suspicion of a mask that is no model's, at least; a box of two pixels has little to correct.
FILLED = {"filled_empty": 1.0, "filled_tiny": 0.5}
# Of a record that states neither quality nor agreement.
UNKNOWN = 0.5
# What a record of the same class, or on the same image, takes from those still waiting.
CLASS_DISCOUNT, IMAGE_DISCOUNT = 0.8, 0.5
COLUMNS = "rank id image_id file_name category suspicion quality agreement mask_source reason"


def suspicion(labels: LabelFile) -> tuple[np.ndarray, list[str]]:
    """How much each record deserves a look, and why.

    The larger of 1 - quality and 1 - agreement; at least 1 for `filled_empty` and 0.5 for
    `filled_tiny`; 0.5 where a record states neither number. Crowds are left out.

    Returns:
        float64 (N,), NaN for crowds; the reason in words.
    """
    values, reasons = [], []
    for row, source in enumerate(labels.sources):
        found = {
            "low quality": 1 - labels.quality[row],
            "student and teacher disagree": 1 - labels.agreement[row],
            source: FILLED.get(source, np.nan),
        }
        known = {reason: value for reason, value in found.items() if value == value}
        reason = max(known, key=known.get, default="no quality stated")
        crowd = labels.crowd[row]
        values.append(np.nan if crowd else known.get(reason, UNKNOWN))
        reasons.append(reason)
    return np.array(values, dtype=np.float64), reasons


def choose(labels: LabelFile, values: np.ndarray, number: int) -> list[int]:
    """Picks rows one by one: the most suspicious first, spread over classes and images.

    Each time the record with the largest suspicion x 0.8^c x 0.5^i is taken, where c records of
    its class and i of its image have been taken before; among equals the lowest id.

    Args:
        values: suspicion (N,), NaN leaves a record out.
        number: at most so many.
    """
    waiting: dict[int, list[tuple[float, int, int, int]]] = {}
    for row in np.flatnonzero(~np.isnan(values)).tolist():
        heap = waiting.setdefault(int(labels.categories[row]), [])
        heap.append((-float(values[row]), int(labels.ids[row]), row, 0))
    for heap in waiting.values():
        heapq.heapify(heap)
    classes, images, chosen = Counter(), Counter(), []
    while waiting and len(chosen) < number:
        for heap in waiting.values():
            _refresh(heap, labels, values, images)
        best = min(waiting, key=lambda c: (waiting[c][0][0] * CLASS_DISCOUNT ** classes[c], c))
        row = heapq.heappop(waiting[best])[2]
        if not waiting[best]:
            del waiting[best]
        classes[best] += 1
        images[int(labels.image_ids[row])] += 1
        chosen.append(row)
    return chosen


def _refresh(heap: list, labels: LabelFile, values: np.ndarray, images: Counter) -> None:
    """Brings the first entry of a heap up to date; entries only ever lose, so the rest may wait."""
    while True:
        _, key, row, seen = heap[0]
        now = images[int(labels.image_ids[row])]
        if now == seen:
            return
        heapq.heapreplace(heap, (-float(values[row]) * IMAGE_DISCOUNT**now, key, row, now))


def write_queue(labels: LabelFile, number: int, path: str | Path) -> list[int]:
    """Writes the records most worth a look as COCO JSON, and beside it a CSV of the same ids.

    The annotations are those of the label file, ids and all, with `queue_rank` and `queue_reason`;
    images without a chosen record are left out.

    Returns:
        The rows chosen, the most suspicious first.

    Raises:
        OSError: a file cannot be written.
    """
    values, reasons = suspicion(labels)
    rows = choose(labels, values, number)
    table = [
        _csv_row(labels, rank, row, values[row], reasons[row]) for rank, row in enumerate(rows, 1)
    ]
    used = {int(labels.image_ids[row]) for row in rows}
    annotations = [
        {**labels.annotations[row], "queue_rank": rank, "queue_reason": reasons[row]}
        for rank, row in enumerate(rows, 1)
    ]
    subset = {
        **{
            key: value for key, value in labels.data.items() if key not in ("images", "annotations")
        },
        "images": [image for key, image in sorted(labels.images.items()) if key in used],
        "annotations": sorted(annotations, key=lambda annotation: annotation["id"]),
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS.split(), *table])
    with atomic_write(path) as file:
        file.write(strict_json(subset) + "\n")
        with atomic_write(Path(path).with_suffix(".csv")) as sheet:
            sheet.write(text.getvalue())
    return rows


def _csv_row(labels: LabelFile, rank: int, row: int, value: float, reason: str) -> list[Any]:
    image = labels.images[int(labels.image_ids[row])]
    numbers = (labels.quality[row], labels.agreement[row])
    words = (labels.sources[row], reason)
    return [
        *(rank, int(labels.ids[row]), int(labels.image_ids[row])),
        *(_inert(str(image.get("file_name"))), _inert(labels.name(labels.categories[row]))),
        round(float(value), 4),
        *("" if n != n else round(float(n), 4) for n in numbers),
        *(_inert(word) for word in words),
    ]


def _inert(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
