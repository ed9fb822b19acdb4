"""The pseudo-label file: a COCO/LVIS JSON with masks, a manifest and a list of rejects beside it.

Every input annotation is found again, in the output or among the rejects with a reason.
"""

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write, file_hash, read_json, write_json
from pseudolabel.labeler import MaskRecord
from pseudolabel.masks import decode_segmentation, encode_rle, filled_box_mask, xywh_to_xyxy

VERSIONED = ("masksmith", "torch", "torchvision", "timm", "numpy", "pycocotools", "Pillow")
# The quality digits that a JSON keeps; more would be noise between machines.
DIGITS = 4


@dataclass
class ImageJob:
    """One image of the input with its annotations, crowds apart.

    Attributes:
        image: the entry of `images`.
        boxes: annotations to label, in id order.
        crowds: annotations with `iscrowd`, which keep their own region.
    """

    image: dict[str, Any]
    boxes: list[dict] = field(default_factory=list)
    crowds: list[dict] = field(default_factory=list)


class BoxFile:
    """A COCO or LVIS JSON of boxes, grouped by image and checked.

    Args:
        path: the JSON. Masks in it are ignored, except for crowds.

    Raises:
        DataError: ids are missing or duplicate, an image or category is unknown, or a box is no
            list of four finite numbers.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = read_json(path)
        for key in ("images", "annotations", "categories"):
            if not isinstance(self.data.get(key), list):
                raise DataError(path, f"has no list {key!r}", "give a COCO instances file")
        self.jobs = self._group()

    def _group(self) -> list[ImageJob]:
        jobs = {image["id"]: ImageJob(image) for image in self._unique("images")}
        categories = {category["id"] for category in self._unique("categories")}
        for annotation in self._unique("annotations"):
            record = f"annotation {annotation['id']}"
            job = jobs.get(annotation.get("image_id"))
            if job is None:
                self._refuse(record, f"unknown image_id {annotation.get('image_id')}")
            if annotation.get("category_id") not in categories:
                self._refuse(record, f"unknown category_id {annotation.get('category_id')}")
            (job.crowds if annotation.get("iscrowd", 0) else job.boxes).append(annotation)
        for job in jobs.values():
            job.boxes.sort(key=lambda annotation: annotation["id"])
        return [jobs[key] for key in sorted(jobs)]

    def _unique(self, kind: str) -> list[dict]:
        seen: set[int] = set()
        for entry in self.data[kind]:
            key = entry.get("id")
            if not isinstance(key, int) or isinstance(key, bool):
                self._refuse(f"{kind} entry {json.dumps(entry)[:80]}", "has no integer id")
            if key in seen:
                self._refuse(f"{kind} id {key}", "occurs twice")
            seen.add(key)
        return self.data[kind]

    def _refuse(self, record: str, problem: str) -> None:
        raise DataError(self.path, problem, "correct this record and label again", record)


def box_problem(annotation: dict, height: int, width: int) -> str | None:
    """Why a box cannot be labelled: "box_malformed", "box_degenerate", "box_outside", or None."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return "box_malformed"
    if not all(isinstance(v, int | float) and abs(v) < float("inf") for v in box):
        return "box_malformed"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return "box_degenerate"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box_outside"
    return None


def labelled_annotation(annotation: dict, record: MaskRecord) -> dict[str, Any]:
    """The input annotation with its mask; id, box, category, crowd flag and unknown keys stay."""
    result = {
        **annotation,
        "segmentation": record.segmentation,
        "area": record.area,
        "iscrowd": annotation.get("iscrowd", 0),
        "quality": round(record.quality, DIGITS),
        "mask_source": record.mask_source,
    }
    if record.agreement is not None:
        result["agreement"] = round(record.agreement, DIGITS)
    return result


def crowd_annotation(annotation: dict, height: int, width: int) -> dict[str, Any]:
    """A crowd with its own region as RLE, or the filled box where it has none; never a model's."""
    if annotation.get("segmentation"):
        mask = decode_segmentation(annotation["segmentation"], height, width)
        source = "input"
    else:
        mask = filled_box_mask(xywh_to_xyxy(annotation["bbox"]), height, width)
        source = "filled_tiny"
    return {
        **annotation,
        "segmentation": encode_rle(mask),
        "area": int(mask.sum()),
        "mask_source": source,
    }


@dataclass
class LabelResult:
    """What a label job has produced: images with status, annotations, rejects."""

    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    rejects: list[dict] = field(default_factory=list)

    def counts(self) -> dict[str, Any]:
        """Numbers for the manifest and the closing line of the job."""
        return {
            "images": dict(sorted(Counter(i["status"] for i in self.images).items())),
            "annotations_out": len(self.annotations),
            "annotations_rejected": len(self.rejects),
            "mask_source": dict(
                sorted(Counter(a["mask_source"] for a in self.annotations).items())
            ),
            "rejects": dict(sorted(Counter(r["reason"] for r in self.rejects).items())),
        }


def write_label_file(
    path: str | Path, source: BoxFile, result: LabelResult, labeler: dict, extra: dict | None = None
) -> dict[str, Any]:
    """Writes labels, rejects and manifest, the label file last and each one atomically.

    Returns:
        The manifest.

    Raises:
        DataError: labels and rejects do not add up to the input; nothing is written then.
    """
    path = Path(path)
    accounted = Counter(a["id"] for a in (*result.annotations, *result.rejects))
    expected = Counter(a["id"] for a in source.data["annotations"])
    if accounted != expected:
        wrong = sorted((accounted - expected) | (expected - accounted))[:5]
        raise DataError(path, f"annotations {wrong} are not accounted for", "report this bug")
    labels = {
        **source.data,
        "images": sorted(result.images, key=lambda image: image["id"]),
        "annotations": sorted(result.annotations, key=lambda annotation: annotation["id"]),
    }
    text = json.dumps(labels, allow_nan=False, separators=(",", ":")) + "\n"
    manifest = {
        "input": source.path.name,
        "input_sha256": file_hash(source.path),
        "output": path.name,
        "output_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "annotations_in": len(source.data["annotations"]),
        "counts": result.counts(),
        "labeler": labeler,
        "versions": {name: version(name) for name in VERSIONED},
        "python": platform.python_version(),
        **(extra or {}),
    }
    _write_lines(path.with_suffix(".rejects.jsonl"), result.rejects)
    write_json(path.with_suffix(".manifest.json"), manifest, indent=1)
    with atomic_write(path) as file:
        file.write(text)
    return manifest


def _write_lines(path: Path, rows: Iterable[dict]) -> None:
    with atomic_write(path) as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
