"""The pseudo-label file: a COCO/LVIS JSON with masks, a manifest and a list of rejects beside it.

Every input annotation is found again, in the output or among the rejects with a reason.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.checks import box_problem, image_name, is_box, is_integer, quote
from pseudolabel.defects import Defect
from pseudolabel.errors import DataError
from pseudolabel.files import read_json
from pseudolabel.job.json_stream import JsonFile, Section
from pseudolabel.labeler import MaskRecord
from pseudolabel.masks import decode_segmentation, encode_rle, filled_box_mask, xywh_to_xyxy
from pseudolabel.validation import TOLERATED, iterate_defects, refuse_first, settle
from pseudolabel.validation_records import Known, Subject, check_annotation, check_images, subjects

VERSIONED = (
    *("masksmith", "detectron2", "torch", "torchvision"),
    *("timm", "numpy", "pycocotools", "Pillow"),
)
# The quality digits that a JSON keeps; more would be noise between machines.
DIGITS = 4
STREAMED = ("images", "annotations")
# What stops only the annotation or the image that has it, or is no concern of a labeler.
REJECTED_ALONE = frozenset(
    {
        *("box_missing", "box_malformed", "box_not_finite", "box_negative", "box_zero"),
        *("box_outside", "box_huge", "image_size_huge", "file_name_unsafe"),
        *("area_malformed", "unknown_listed_category"),
    }
)


# What may be wrong with an image that a job has rejected; the accounts need its entry as it came.
REJECTED_IMAGE = frozenset({"file_name_unsafe", "image_size_huge"})


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
    """A COCO or LVIS JSON of boxes, or a COCO results file; checked, and read piece by piece.

    A bad box stops only itself: the label job rejects it by name, be it missing, NaN or outside
    its image. Everything that would be copied to the output must be sound, since it cannot be
    written otherwise. LVIS v1 has no `file_name`; the last part of its `coco_url` becomes it.
    The rows of a results file get the ids 1, 2, ... in the order of the file.

    Memory: about 16 bytes per annotation and 400 per image.

    Args:
        path: the JSON. Masks in it are not read, except for crowds.
        images_json: for a results file, the JSON with images and categories.

    Attributes:
        head: the top level of the output but for images and annotations, which are None.
        image_ids: int64 (images,), ascending.
        annotations_in: number of annotations.

    Raises:
        DataError: ids are missing or duplicate, an image or category is unknown, an image has no
            size or file name, NaN or infinity stand elsewhere than in a box or a mask, or a
            results file has no `images_json` or another file has one.
    """

    def __init__(self, path: str | Path, images_json: str | Path | None = None):
        self.path = Path(path)
        self.images_json = None if images_json is None else Path(images_json)
        self._boxes = JsonFile(path)
        self.is_results = self._boxes.rows is not None
        if self.is_results and images_json is None:
            raise DataError(
                path, "is a list of results without images", "name their JSON with --images-json"
            )
        if images_json is not None and not self.is_results:
            raise DataError(
                path, "has images of its own, and --images-json names others", "leave that out"
            )
        self._info = JsonFile(images_json) if self.is_results else self._boxes
        self._ids = array("q")
        self.annotations_in = 0
        refuse_first(path, self._defects(), REJECTED_ALONE)
        self.head = {k: None if k in STREAMED else v for k, v in self._info.head.items()}
        self.head.setdefault("annotations", None)
        self.image_ids = np.sort(np.array(self._ids, dtype=np.int64))
        del self._ids

    def images(self) -> Iterator[dict]:
        """The images in the order of the file, with a `file_name` in any case."""
        # An LVIS image without one gets it, since the output is a COCO file.
        for image in self._info.iterate(self._info.head["images"]):
            yield {**image, "file_name": image_name(image)}

    def annotations(self) -> Iterator[dict]:
        """The annotations in the order of the file."""
        if not self.is_results:
            yield from self._boxes.iterate(self._boxes.head["annotations"])
            return
        for number, row in enumerate(self._boxes.iterate(self._boxes.rows), 1):
            yield {**row, "id": number} if isinstance(row, dict) else row

    def select(self, image_ids: Iterable[int]) -> list[ImageJob]:
        """Some of the images with their annotations, in id order; they are held in memory."""
        wanted = set(image_ids)
        images = [image for image in self.images() if image["id"] in wanted]
        return group_by_image(images, (a for a in self.annotations() if a["image_id"] in wanted))

    @property
    def jobs(self) -> list[ImageJob]:
        """All images of a small file."""
        return self.select(self.image_ids.tolist())

    def _defects(self) -> Iterator[Defect]:
        rest = {k: v for k, v in self._info.head.items() if not isinstance(v, Section)}
        # The streamed lists are examined below; empty ones stand in for them.
        lists = {k: [] for k, v in self._info.head.items() if isinstance(v, Section)}
        if self.is_results:
            lists["annotations"] = []
        yield from iterate_defects({**rest, **lists})
        if not {"images", "annotations"} <= lists.keys():
            return
        known = Known(categories=_ids_of(rest.get("categories")))
        images = self._info.iterate(self._info.head["images"])
        yield from check_images(images, known, need_size=True)
        for key in filter(is_integer, known.sizes):
            self._ids.append(_int64(self.path, "image", key))
        yield from self._annotation_defects(known)

    def _annotation_defects(self, known: Known) -> Iterator[Defect]:
        ids = array("q")
        for subject, wrong in subjects("annotations", self.annotations()):
            yield from wrong
            if wrong:
                continue
            self.annotations_in += 1
            yield from check_annotation(subject, known, ())
            if is_integer(subject.entry.get("id")):
                ids.append(_int64(self.path, "annotation", subject.entry["id"]))
        ordered = np.sort(np.array(ids, dtype=np.int64))
        del ids
        for key in np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).tolist():
            yield Subject("annotations", -1, {"id": key}).defect(
                "duplicate_annotation_id", f"id {key} occurs twice", "id"
            )


def _ids_of(categories: object) -> set:
    entries = categories if isinstance(categories, list) else []
    found = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    return {key for key in found if isinstance(key, str | int)}


def _int64(path: Path, kind: str, key: int) -> int:
    if abs(key) >= 2**63:
        raise DataError(path, "the id does not fit 64 bits", "number anew", f"{kind} {quote(key)}")
    return key


def group_by_image(images: Iterable[dict], annotations: Iterable[dict]) -> list[ImageJob]:
    """Images in id order with their annotations, boxes in id order, crowds in given order."""
    jobs = {image["id"]: ImageJob(image) for image in images}
    for annotation in annotations:
        job = jobs[annotation["image_id"]]
        (job.crowds if annotation.get("iscrowd", 0) else job.boxes).append(annotation)
    for job in jobs.values():
        job.boxes.sort(key=lambda annotation: annotation["id"])
    return [jobs[key] for key in sorted(jobs)]


def labelled_annotation(annotation: dict, record: MaskRecord) -> dict[str, Any]:
    """The input annotation with its mask; id, box, category, crowd flag and unknown keys stay.

    Two exceptions: an `agreement` in the input speaks of another labeler's mask and goes, and an
    absent or null `iscrowd` becomes 0, because COCOeval reads the key of every annotation.
    """
    kept = {key: value for key, value in annotation.items() if key != "agreement"}
    result = {
        **kept,
        "segmentation": record.segmentation,
        "area": record.area,
        "iscrowd": annotation.get("iscrowd") or 0,
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


def read_labels(
    path: str | Path, *, masks: bool = True, rejected: Collection[int] = ()
) -> dict[str, Any]:
    """Reads a label file, checked (`validation.read_checked`), whatever input it was made of.

    A job copies what is no concern of a labeler: lists of unknown categories, and the entry of an
    image that it rejects for its name or size. These pass, as long as no annotation needs them.

    Args:
        masks: whether to check every mask.
        rejected: further images that count as rejected, for files that do not state a `status`.

    Raises:
        DataError: the first error of the file, and how many more there are.
    """
    data = read_json(path)
    defects = iterate_defects(data, masks=masks, plausibility=False)
    standing = _without_rejected(data, defects, rejected)
    refuse_first(path, standing, TOLERATED | {"unknown_listed_category"})
    if masks:
        settle(data["annotations"])
    return data


def _without_rejected(
    data: dict, defects: Iterable[Defect], rejected: Collection[int]
) -> Iterator[Defect]:
    used = None
    for defect in defects:
        if defect.kind in REJECTED_IMAGE and defect.place is not None:
            image, key = data["images"][defect.place[1]], defect.record
            used = _images_in_use(data) if used is None else used
            listed = is_integer(image.get("id")) and image["id"] in rejected
            if key not in used and (listed or image.get("status") == "rejected"):
                continue
        yield defect


def _images_in_use(data: dict) -> set[str]:
    """The images with annotations, each as a defect names it."""
    entries = data["annotations"] if isinstance(data.get("annotations"), list) else []
    keys = (entry.get("image_id") for entry in entries if isinstance(entry, dict))
    return {f"image {key}" for key in keys if is_integer(key)}


def refuse_bare(path: str | Path, annotations: Iterable[dict]) -> None:
    """Stops readers of masks where one is missing.

    Raises:
        DataError: naming the first annotation without one.
    """
    for annotation in annotations:
        if not annotation.get("segmentation"):
            record = f"annotation {annotation['id']}"
            raise DataError(path, "has no mask", "label it, or remove it", record)


def output_paths(path: str | Path) -> tuple[Path, Path, Path]:
    """Where a label job writes: labels, rejects, manifest."""
    path = Path(path)
    return path, path.with_suffix(".rejects.jsonl"), path.with_suffix(".manifest.json")


def installed_versions() -> dict[str, str | None]:
    """Versions of the distributions that a label can depend on."""
    return {name: version_of(name) for name in VERSIONED}


def version_of(name: str) -> str | None:
    """Of an installed distribution; None where e.g. upstream is on the path but not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
