"""Images without boxes: a labeler finds its own instances, and the image is the unit of account."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pseudolabel.checks import box_fault, is_integer, is_number, quote
from pseudolabel.errors import DataError
from pseudolabel.job.json_stream import JsonFile, Section
from pseudolabel.label_job import read_job_image
from pseudolabel.labeler import MaskRecord
from pseudolabel.store import (
    REJECTED_ALONE,
    ImageJob,
    LabelResult,
    image_name,
    labelled_annotation,
)
from pseudolabel.validation import iterate_defects, refuse_first
from pseudolabel.validation_records import Known, check_images

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class FoundInstance:
    """An instance that a labeler has found by itself.

    Attributes:
        box: (4,) XYXY, absolute pixels.
        category_id: one of the labeler's, or of the images JSON.
        score: class confidence, [0, 1].
        record: its mask.
    """

    box: tuple[float, float, float, float]
    category_id: int
    score: float
    record: MaskRecord


class Finder(Protocol):
    """A labeler that needs no boxes.

    Attributes:
        categories: COCO categories of what it finds.
    """

    name: str
    categories: list[dict[str, Any]]

    def label(self, image: np.ndarray, boxes: None = None) -> list[FoundInstance]:
        """The instances on the uint8 RGB image (H, W, 3), in an order of its own, always the same.

        A labeler may have both meanings of `label`; with boxes it is a `labeler.Labeler`.
        """
        ...

    def describe(self) -> dict[str, Any]: ...


def require_finder(labeler: Any) -> None:
    """Stops a labeler that cannot do without boxes.

    Raises:
        DataError: it has no `categories`, or they are none.
    """
    where, categories = f"--labeler {labeler.name}", getattr(labeler, "categories", None)
    if not isinstance(categories, list):
        raise DataError(where, "needs boxes and finds none itself", "give --boxes")
    if not all(isinstance(entry, dict) and is_integer(entry.get("id")) for entry in categories):
        problem = f"its categories are none of COCO's ({quote(categories)})"
        raise DataError(where, problem, "give each of them an id and a name")


def category_ids(head: dict[str, Any]) -> frozenset[int]:
    """The ids of the categories in the top level of a label file."""
    return frozenset(category["id"] for category in head["categories"])


class ImageSource:
    """Images to be labelled without boxes: of a folder, or of a JSON.

    Args:
        image_root: the folder; without `images_json` every image file in it and below is taken, in
            the order of names, with the ids 1, 2, ...
        categories: of the labeler; they are added to those of `images_json`.
        images_json: a JSON with `images`; its annotations are not read.

    Raises:
        DataError: the folder is missing or has no image, or the JSON is not sound or has another
            category under an id of the labeler's.
    """

    annotations_in = 0

    def __init__(
        self,
        image_root: str | Path,
        categories: list[dict[str, Any]],
        images_json: str | Path | None = None,
    ):
        self.root, self._file = Path(image_root), None
        self.head: dict[str, Any] = {"images": None, "annotations": None, "categories": categories}
        if images_json is None:
            self.names = self._list_folder()
            self.image_ids = np.arange(1, len(self.names) + 1, dtype=np.int64)
            return
        self._file = JsonFile(images_json)
        head = self._file.head
        lists = {key: [] for key, value in head.items() if isinstance(value, Section)}
        known = Known()
        refuse_first(images_json, self._defects({**head, **lists}, known), REJECTED_ALONE)
        self.image_ids = np.array(sorted(known.sizes), dtype=np.int64)
        kept = {key: None if isinstance(v, Section) else v for key, v in head.items()}
        joined = _join_categories(kept.get("categories") or [], categories, images_json)
        self.head = {**self.head, **kept, "categories": joined}

    def _list_folder(self) -> list[str]:
        if not self.root.is_dir():
            raise DataError(self.root, "is no folder", "name the folder of the images")
        names = sorted(path.relative_to(self.root).as_posix() for path in _image_files(self.root))
        if not names:
            raise DataError(self.root, "holds no image", "name the folder of the images")
        return names

    def _defects(self, data: dict, known: Known) -> Iterator:
        yield from iterate_defects({"categories": [], **data, "annotations": []})
        if isinstance(self._file.head.get("images"), Section):
            rows = self._file.iterate(self._file.head["images"])
            yield from check_images(rows, known, need_size=False)

    def images(self) -> Iterator[dict]:
        """The images; without height and width where no JSON states them."""
        if self._file is None:
            for key, name in enumerate(self.names, 1):
                yield {"id": key, "file_name": name}
            return
        for image in self._file.iterate(self._file.head["images"]):
            yield {**image, "file_name": image_name(image)}

    def annotations(self) -> Iterator[dict]:
        """None."""
        return iter(())

    def list_sha256(self) -> str:
        """Hash of the names in a folder."""
        return hashlib.sha256(json.dumps(self.names).encode()).hexdigest()


def _join_categories(own: list[dict], found: list[dict], path: object) -> list[dict]:
    """Those of a JSON and of a labeler; every category that the labels name has to be there."""
    names = {category["id"]: category.get("name") for category in own}
    for category in found:
        ours, theirs = names.get(category["id"]), category.get("name")
        if None not in (ours, theirs) and ours != theirs:
            problem = f"category {category['id']} is {ours!r}, of the labeler {theirs!r}"
            raise DataError(path, problem, "leave the categories out, or give the labeler's own")
    return [*own, *(category for category in found if category["id"] not in names)]


def _image_files(root: Path) -> Iterator[Path]:
    """By their suffixes. A link counts, wherever it leads: it is a reject if it may not be followed
    or leads nowhere. Folders that are links are not entered, and a pipe or device is no image."""

    def stop(error: OSError) -> None:
        problem = f"cannot be listed ({error.strerror})"
        raise DataError(error.filename, problem, "correct its rights") from error

    for folder, _, files in os.walk(root, onerror=stop):
        for path in (Path(folder, name) for name in files):
            if path.suffix.lower() in SUFFIXES and (path.is_symlink() or path.is_file()):
                yield path


def find_in_image(
    job: ImageJob,
    source: object,
    image_root: str | Path,
    labeler: Finder,
    result: LabelResult,
    *,
    categories: frozenset[int],
    allow_links: bool = False,
) -> None:
    """Labels one image by a labeler that finds its own boxes, and appends to `result`.

    The image is "labelled", "empty" (nothing found) or "rejected" (not readable; then it is one
    line of the rejects, with a null annotation id). The annotations get their ids at the merge.

    Raises:
        DataError: the labeler gives an instance that no label file may hold, or one of a category
            that is not in `categories`.
    """
    try:
        image = read_job_image(job, source, image_root, allow_links)
    except DataError as error:
        result.images.append({**job.image, "status": "rejected"})
        result.rejects.append(
            {
                "id": None,
                "image_id": job.image["id"],
                "file_name": job.image["file_name"],
                "reason": "image_unreadable",
                "detail": str(error),
            }
        )
        return
    found = labeler.label(image, None)
    for instance in found:
        x0, y0, x1, y1 = map(float, instance.box)
        row = {
            "image_id": job.image["id"],
            "category_id": instance.category_id,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": instance.score,
        }
        problem = _problem(row, categories)
        if problem is not None:
            where, record = f"labeler {labeler.name}", f"image {job.image['id']}"
            raise DataError(where, f"finds an instance {problem}", "correct the labeler", record)
        result.annotations.append(labelled_annotation(row, instance.record))
    size = {"height": image.shape[0], "width": image.shape[1]}
    status = "labelled" if found else "empty"
    result.images.append({**job.image, **size, "status": status})


def _problem(row: dict[str, Any], categories: frozenset[int]) -> str | None:
    """What is wrong with an instance; numbers are Python's, since others are no JSON."""
    key, score, box = row["category_id"], row["score"], row["bbox"]
    if not is_integer(key) or key not in categories:
        return f"of category_id {quote(key)}, which is none of the categories"
    if not is_number(score) or not 0 <= score <= 1:
        return f"of score {quote(score)}, which is no number in [0, 1]"
    return None if box_fault(box) is None else f"with the box {quote(box)} (x, y, width, height)"
