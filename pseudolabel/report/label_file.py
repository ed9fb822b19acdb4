"""A pseudo-label file as the report reads it: records as arrays, accounts, rejects by reason.

Shape legend: N records.
"""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pseudolabel.checks import image_name, is_integer, is_number, quote
from pseudolabel.errors import DataError
from pseudolabel.files import file_hash, read_json
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.store import output_paths, read_labels, refuse_bare

# Rejects kept per reason, for the page.
EXAMPLES = 5
UNSTATED = "not stated"


@dataclass
class Rejects:
    """The list of rejects: numbers, and the first of each reason.

    Attributes:
        reasons: {reason: number}.
        examples: {reason: first lines of the file}.
    """

    reasons: Counter = field(default_factory=Counter)
    examples: dict[str, list[dict]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: dict) -> None:
        """Counts one line of the file."""
        reason = str(row.get("reason", UNSTATED))
        self.reasons[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append(row)


def read_rejects(path: Path) -> Rejects | None:
    """Reads `*.rejects.jsonl` line by line; None where there is no such file.

    Raises:
        DataError: a line is no JSON object.
    """
    if not path.exists():
        return None
    rejects = Rejects()
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                rejects.add(_json_object(line, path, number))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read ({error})", "label again") from error
    return rejects


def _json_object(line: str, path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise DataError(path, "is no JSON object", "label again", f"line {number}")
    return row


@dataclass(frozen=True)
class Account:
    """What becomes of the input.

    Attributes:
        unit: "boxes", or "images" where the labeler has found its own boxes.
        kept, rejected: counted in the files.
        stated: what went in, as the manifest says.
    """

    unit: str
    kept: int
    rejected: int
    stated: int

    @property
    def fits(self) -> bool:
        """Whether nothing is lost or invented."""
        return self.kept + self.rejected == self.stated


class LabelFile:
    """A pseudo-label file with its manifest and rejects.

    Args:
        path: the label file.
        masks: whether to check every mask; drawing checks the few that it draws by itself.

    Attributes:
        images: {id: entry}.
        annotations: the records, in file order.
        names: {category id: name}, as text.
        ids, image_ids, categories: int64 (N,).
        quality, agreement: float64 (N,), NaN where a record has none.
        box_area: float64 (N,), square pixels.
        sources: `mask_source` of each record, text.
        crowd: bool (N,).
        fitted: bool (N,): on an image that the quality was calibrated on, as the manifest says.
        manifest: None where there is none.
        rejects: None where there is no list.

    Raises:
        DataError: a file is malformed, or a record has no mask.
    """

    def __init__(self, path: str | Path, masks: bool = False):
        self.path, rejects_path, manifest_path = output_paths(path)
        self.data = data = read_labels(path, masks=masks)
        refuse_bare(path, data["annotations"])
        self.images = {image["id"]: image for image in data["images"]}
        self.annotations = data["annotations"]
        self.names = {c["id"]: str(c["name"]) for c in data["categories"]}
        self.manifest = read_json(manifest_path) if manifest_path.exists() else None
        self.rejects = read_rejects(rejects_path)
        self._check_manifest(manifest_path)
        self._hashes = {"output_sha256": Path(path), "rejects_sha256": rejects_path}
        self.ids = self._whole("id")
        self.image_ids = self._whole("image_id")
        self.categories = self._whole("category_id")
        self.quality = self._numbers("quality")
        self.agreement = self._numbers("agreement")
        self.crowd = np.array([bool(a.get("iscrowd", 0)) for a in self.annotations], dtype=bool)
        used = self._calibration_images()
        self.fitted = np.array([a["image_id"] in used for a in self.annotations], dtype=bool)
        boxes = np.array([a["bbox"] for a in self.annotations], dtype=np.float64).reshape(-1, 4)
        self.box_area = boxes[:, 2] * boxes[:, 3]
        self.sources = [str(a.get("mask_source", UNSTATED)) for a in self.annotations]

    def _check_manifest(self, path: Path) -> None:
        if self.manifest is None:
            return
        where, key = self.manifest, "annotations_in"
        if self._finds_boxes():
            where, key = self.manifest["job"], "images"
        if not is_integer(where.get(key)):
            raise DataError(path, f"has no whole number {key}", "label again, or remove it")

    def _calibration_images(self) -> set[int]:
        """Ids of the images that human masks were taken from to calibrate the quality.

        Another data set may have the same ids, so that the file names count as well where the
        manifest has them.
        """
        labeler = (self.manifest or {}).get("labeler")
        facts = labeler.get("calibration") if isinstance(labeler, dict) else None
        ids = facts.get("image_ids") if isinstance(facts, dict) else None
        if not isinstance(ids, list):
            return set()
        names = facts.get("file_names")
        if not isinstance(names, list) or len(names) != len(ids):
            names = [None] * len(ids)
        return {
            key
            for key, name in zip(ids, names)
            if is_integer(key)
            and key in self.images
            and (name is None or name == image_name(self.images[key]))
        }

    def _whole(self, key: str) -> np.ndarray:
        values = [a[key] for a in self.annotations]
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError as error:
            raise DataError(
                self.path, f"holds a {key} beyond 64 bits", "number the records anew"
            ) from error

    def _numbers(self, key: str) -> np.ndarray:
        values = [a.get(key) for a in self.annotations]
        for annotation, value in zip(self.annotations, values):
            if value is not None and not (is_number(value) and 0 <= value <= 1):
                raise DataError(
                    self.path,
                    f"{key} is {quote(value)}",
                    "write a number in [0, 1], or remove the key",
                    f"annotation {annotation['id']}",
                )
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    def account(self) -> "Account | None":
        """What went in and where it is; None without manifest or rejects."""
        if self.manifest is None or self.rejects is None:
            return None
        lost = self.rejects.reasons.total()
        if self._finds_boxes():
            # A rejected image may be listed among the images as well.
            kept = sum(image.get("status") != "rejected" for image in self.images.values())
            return Account("images", kept, lost, self.manifest["job"]["images"])
        return Account("boxes", len(self.annotations), lost, self.manifest["annotations_in"])

    def _finds_boxes(self) -> bool:
        job = self.manifest.get("job")
        return isinstance(job, dict) and job.get("mode") == "found"

    def hashes(self) -> dict[str, tuple[str, bool | None]]:
        """{file name: (its hash as it is, whether the manifest has the same)}."""
        found = {}
        for key, path in self._hashes.items():
            if path.exists():
                value = file_hash(path)
                stated = None if self.manifest is None else self.manifest.get(key)
                found[path.name] = value, None if stated is None else stated == value
        return found

    def name(self, category: int) -> str:
        """The class's name."""
        return self.names[int(category)]


def true_ious(labels: LabelFile, truth_file: str | Path) -> tuple[np.ndarray, TrueMasks]:
    """IoU of every record with its human mask, where there is one.

    Args:
        truth_file: COCO or LVIS JSON with masks, of all or some of the labels' annotations.

    Returns:
        float64 (N,), NaN for crowds and where there is no human mask; the human masks.

    Raises:
        DataError: the file is malformed, has no record in common, or is of other images.
    """
    truth = TrueMasks(truth_file)
    ious = np.full(len(labels.annotations), np.nan)
    for row, annotation in enumerate(labels.annotations):
        true = truth.annotations.get(annotation["id"])
        if true is None or labels.crowd[row] or not true.get("segmentation"):
            continue
        found = (annotation["id"], annotation["segmentation"], annotation["image_id"])
        ious[row] = truth.compare(*found)[0]
    if np.isnan(ious).all():
        raise DataError(
            truth_file,
            f"has no human mask of any annotation in {labels.path.name}",
            "give the human masks of the same data set",
        )
    return ious, truth
