"""The pseudo-label file: a COCO/LVIS JSON with masks, a manifest and a list of rejects beside it.

Every input annotation is found again, in the output or among the rejects with a reason.
"""

import hashlib
import json
import os
import platform
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pseudolabel.checks import box_problem, image_name, is_box, strict_json
from pseudolabel.errors import DataError
from pseudolabel.files import atomic_write, file_hash, read_json
from pseudolabel.labeler import MaskRecord
from pseudolabel.masks import decode_segmentation, encode_rle, filled_box_mask, xywh_to_xyxy
from pseudolabel.validation import iterate_defects, refuse_first

VERSIONED = (
    *("masksmith", "detectron2", "torch", "torchvision"),
    *("timm", "numpy", "pycocotools", "Pillow"),
)
# The quality digits that a JSON keeps; more would be noise between machines.
DIGITS = 4
# What stops only the annotation or the image that has it, or is no concern of a labeler.
REJECTED_ALONE = frozenset(
    {
        *("box_missing", "box_malformed", "box_not_finite", "box_negative", "box_zero"),
        *("box_outside", "box_huge", "image_size_huge", "file_name_unsafe"),
        *("iscrowd", "area_malformed", "score_range", "category_name", "unknown_listed_category"),
    }
)


@dataclass
class ImageJob:
    """One image of the input with its annotations, crowds apart.

    Attributes:
        image: the entry of `images`, with a `file_name` in any case.
        boxes: annotations to label, in id order.
        crowds: annotations with `iscrowd`, which keep their own region.
    """

    image: dict[str, Any]
    boxes: list[dict] = field(default_factory=list)
    crowds: list[dict] = field(default_factory=list)


class BoxFile:
    """A COCO or LVIS JSON of boxes, grouped by image and checked.

    A bad box stops only itself: the label job rejects it by name, be it missing, NaN or outside
    its image. Everything that would be copied to the output must be sound, since it cannot be
    written otherwise. LVIS v1 has no `file_name`; the last part of its `coco_url` becomes it.

    Args:
        path: the JSON. Masks in it are not read, except for crowds.

    Raises:
        DataError: ids are missing or duplicate, an image or category is unknown, an image has no
            size or file name, or NaN or infinity stand elsewhere than in a box or a mask.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = read_json(path)
        refuse_first(path, iterate_defects(self.data, masks=False), REJECTED_ALONE)
        self.jobs = self._group()

    def _group(self) -> list[ImageJob]:
        # An LVIS image without a file_name gets one, since the output is a COCO file.
        jobs = {
            image["id"]: ImageJob({**image, "file_name": image_name(image)})
            for image in self.data["images"]
        }
        for annotation in self.data["annotations"]:
            job = jobs[annotation["image_id"]]
            (job.crowds if annotation.get("iscrowd", 0) else job.boxes).append(annotation)
        for job in jobs.values():
            job.boxes.sort(key=lambda annotation: annotation["id"])
        return [jobs[key] for key in sorted(jobs)]


def labelled_annotation(annotation: dict, record: MaskRecord) -> dict[str, Any]:
    """The input annotation with its mask; id, box, category, crowd flag and unknown keys stay.

    Two exceptions: an `agreement` in the input speaks of another labeler's mask and goes, and an
    absent `iscrowd` (LVIS) becomes 0, because COCOeval reads the key of every annotation.
    """
    kept = {key: value for key, value in annotation.items() if key != "agreement"}
    result = {
        **kept,
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
    """A crowd with its own region as RLE, or the filled box where it has none; never a model's.

    Raises:
        ValueError: box or region are malformed, miss the image, or leave no pixel.
    """
    problem = box_problem(annotation, height, width)
    if problem is not None:
        raise ValueError(f"{problem}: {describe_box(annotation, height, width)}")
    if annotation.get("segmentation"):
        mask = decode_segmentation(annotation["segmentation"], height, width)
        source = "input"
    else:
        mask = filled_box_mask(xywh_to_xyxy(annotation["bbox"]), height, width)
        source = "filled_tiny"
    if not mask.any():
        raise ValueError(f"the segmentation has no pixel in the {width}x{height} image")
    return {
        **annotation,
        "segmentation": encode_rle(mask),
        "area": int(mask.sum()),
        "mask_source": source,
    }


def describe_box(annotation: dict, height: int, width: int) -> str:
    """What a reject says of a bad box."""
    return f"bbox {annotation.get('bbox')!r:.200} on a {width}x{height} image"


def reject_row(annotation: dict, reason: str, detail: str) -> dict[str, Any]:
    """The line of the rejects file for one annotation.

    A malformed `bbox` is quoted as text, since NaN in it is no JSON; a missing one is null.
    """
    box = annotation.get("bbox")
    return {
        "id": annotation["id"],
        "image_id": annotation["image_id"],
        "bbox": box if box is None or is_box(box) else f"{box!r:.200}",
        "reason": reason,
        "detail": detail,
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


def output_paths(path: str | Path) -> tuple[Path, Path, Path]:
    """Where a label job writes: labels, rejects, manifest."""
    path = Path(path)
    return path, path.with_suffix(".rejects.jsonl"), path.with_suffix(".manifest.json")


def write_label_file(
    path: str | Path, source: BoxFile, result: LabelResult, labeler: dict, extra: dict | None = None
) -> dict[str, Any]:
    """Writes rejects, labels and manifest: a full disk changes none of the three.

    All three are complete on disk before the first of them replaces its predecessor. The manifest
    goes last and holds the hashes of the other two, so that files which a kill has left from two
    different runs do not match it.

    Returns:
        The manifest.

    Raises:
        DataError: labels and rejects do not add up to the input; nothing is written then.
        OSError: the files cannot be written; what was there before stays.
    """
    path, rejects_path, manifest_path = output_paths(path)
    _check_accounts(path, source, result)
    labels = {
        **source.data,
        "images": sorted(result.images, key=lambda image: image["id"]),
        "annotations": sorted(result.annotations, key=lambda annotation: annotation["id"]),
    }
    text = strict_json(labels) + "\n"
    rejects = "".join(json.dumps(row, allow_nan=False) + "\n" for row in result.rejects)
    manifest = {
        "input": source.path.name,
        "input_sha256": file_hash(source.path),
        "output": path.name,
        "output_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rejects_sha256": hashlib.sha256(rejects.encode()).hexdigest(),
        "annotations_in": len(source.data["annotations"]),
        "counts": result.counts(),
        "labeler": labeler,
        "versions": {name: _version(name) for name in VERSIONED},
        "python": platform.python_version(),
        **(extra or {}),
    }
    _write_in_order(
        (rejects_path, rejects),
        (path, text),
        (manifest_path, json.dumps(manifest, indent=1, allow_nan=False) + "\n"),
    )
    return manifest


def _check_accounts(path: Path, source: BoxFile, result: LabelResult) -> None:
    accounted = Counter(a["id"] for a in (*result.annotations, *result.rejects))
    expected = Counter(a["id"] for a in source.data["annotations"])
    if accounted != expected:
        wrong = sorted((accounted - expected) | (expected - accounted))[:5]
        raise DataError(path, f"annotations {wrong} are not accounted for", "report this bug")


def _version(name: str) -> str | None:
    """Of an installed distribution; None where e.g. upstream is on the path but not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _write_in_order(*texts: tuple[Path, str]) -> None:
    with ExitStack() as stack:
        # The stack is left last in, first out.
        for path, text in reversed(texts):
            file = stack.enter_context(atomic_write(path))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
