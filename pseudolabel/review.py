"""The way back from a label tool: a corrected JSON is merged into the labels by annotation id.

What a person has not touched keeps everything. No number is invented: a mask that a person changed
is `mask_source: input`, without the quality and agreement that were estimated for the old one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.checks import image_name, quote
from pseudolabel.errors import DataError
from pseudolabel.export.outlines import patch_iou, segmentation_patch
from pseudolabel.files import file_hash
from pseudolabel.masks import rle_from_patch
from pseudolabel.review_files import read_rejected
from pseudolabel.store import read_labels

BOX_TOLERANCE = 0.5
"""Pixels by which a coordinate of an unchanged box may differ: tools round."""
KINDS = ("unchanged", "untouched", "changed", "deleted", "added")
NAMED = 5
LAST_ID = 2**63 - 1
ESTIMATES = ("quality", "agreement")


@dataclass(frozen=True)
class Change:
    """What the review did to one record.

    Attributes:
        id: of the annotation, in the merged file.
        kind: one of `KINDS`; "untouched" is absent from a partial file.
        details: for "changed" what differs, `mask_iou` (old with new), `class`, `box` and
            `crowd_kept` (old and new each); for "added" the `given_id` of the corrected file.
    """

    id: int
    kind: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = []
        for key, value in self.details.items():
            if key == "mask_iou":
                parts.append(f"mask changed (IoU {value:.3f})")
            elif key == "given_id":
                parts.append(f"was {value} in the corrected file")
            elif key == "crowd_kept":
                parts.append(f"iscrowd stays {value[0]}, the corrected file has {value[1]}")
            else:
                parts.append(f"{key} changed {value[0]!r} -> {value[1]!r}")
        text = ", ".join(parts)
        if self.kind == "changed":
            return f"annotation {self.id}: {text}"
        return f"annotation {self.id}: {self.kind}" + (f" ({text})" if text else "")


@dataclass
class Review:
    """The merged labels and what became of every record.

    Attributes:
        data: the merged JSON, sorted by id.
        changes: one for each record of the labels, in id order, and for each added one.
    """

    data: dict[str, Any]
    changes: list[Change]

    def counts(self) -> dict[str, int]:
        """Number of records by kind, of all kinds."""
        found = Counter(change.kind for change in self.changes)
        return {kind: found[kind] for kind in KINDS}

    def lines(self) -> list[str]:
        """The diff for people, without the records that stay, and the totals last."""
        quiet = ("unchanged", "untouched")
        lines = [str(c) for c in self.changes if c.kind not in quiet or c.details]
        counts = self.counts()
        total = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        records = sum(counts.values()) - counts["added"]
        out = len(self.data["annotations"])
        return [*lines, f"{records} annotations in: {total}; {out} out"]

    def as_json(self, labels: str | Path, corrected: str | Path) -> dict[str, Any]:
        """The diff for programs, with the hashes of both files."""
        return {
            "labels_sha256": file_hash(labels),
            "corrected_sha256": file_hash(corrected),
            "counts": self.counts(),
            "changes": [{"id": c.id, "kind": c.kind, **c.details} for c in self.changes],
        }


@dataclass(frozen=True)
class Rules:
    """How a corrected file is read.

    Attributes:
        partial: records that are absent are untouched.
        scope: ids that the reviewer was given (a queue); None for all. Others that are absent are
            untouched.
        deletions: records that are absent otherwise are deleted, instead of refused.
        crowds: `iscrowd` is taken from the corrected file. Label tools set it for every mask that
            they write as run lengths, so that it is not by default.
        same_iou: masks with this IoU or more count as unchanged, for tools that round.
    """

    partial: bool = False
    scope: Collection[int] | None = None
    deletions: bool = False
    crowds: bool = False
    same_iou: float = 1.0


def review_labels(labels: str | Path, corrected: str | Path, rules: Rules | None = None) -> Review:
    """Merges a corrected file into the labels.

    Args:
        labels: the pseudo-label JSON.
        corrected: COCO JSON with the same image, category and annotation ids; polygons or run
            lengths. A record without a mask keeps the one that it has. Keys other than
            `image_id`, `category_id`, `bbox`, `segmentation` and `iscrowd` are not read.
        rules: see `Rules`.

    Raises:
        DataError: one of the files has an error; the ids do not fit; records are absent from a
            file that must be complete; an added record has no mask.
    """
    return _Merge(Path(labels), Path(corrected), rules or Rules()).run()


class _Merge:
    """Both files and the accounts."""

    def __init__(self, labels: Path, corrected: Path, rules: Rules):
        self.labels, self.corrected, self.rules = labels, corrected, rules
        self.old = read_labels(labels)
        lost = {i["id"] for i in self.old["images"] if i.get("status") == "rejected"}
        self.new = read_labels(corrected, rejected=lost)
        self.images = {image["id"]: image for image in self.old["images"]}
        self.names = {c["id"]: c["name"] for c in self.old["categories"]}
        self.rejects = read_rejected(labels)
        self.changes: list[Change] = []

    def run(self) -> Review:
        """Checks that ids mean the same in both files, then goes through the records by id."""
        self._check_images()
        self._check_categories()
        found = {a["id"]: a for a in self.new["annotations"]}
        records = sorted(self.old["annotations"], key=lambda a: a["id"])
        self._check_absent([a["id"] for a in records if a["id"] not in found])
        annotations = []
        for record in records:
            entry = found.pop(record["id"], None)
            merged = self._absent(record) if entry is None else self._merge(record, entry)
            if merged is not None:
                annotations.append(merged)
        last = max(0, *self._ids(), *self.rejects.annotations)
        if last + len(found) > LAST_ID:
            remedy = "number the annotations anew, from 1"
            raise DataError(self.labels, f"no id is left above {last}", remedy)
        for number, key in enumerate(sorted(found), last + 1):
            annotations.append(self._added(found[key], number))
            self.changes.append(Change(number, "added", {"given_id": key}))
        images = self._with_status(annotations)
        return Review({**self.old, "images": images, "annotations": annotations}, self.changes)

    def _ids(self) -> Iterable[int]:
        return (a["id"] for data in (self.old, self.new) for a in data["annotations"])

    def _error(self, problem: str, remedy: str, record: str) -> DataError:
        return DataError(self.corrected, problem, remedy, record)

    def _check_images(self) -> None:
        for image in self.new["images"]:
            record, known = f"image {image['id']}", self.images.get(image["id"])
            if known is None:
                remedy = "keep the image ids; new images are labelled with tools/label.py"
                raise self._error("is not in the labels", remedy, record)
            for value, expected in (
                ((image["width"], image["height"]), (known["width"], known["height"])),
                (_plain_name(image), _plain_name(known)),
            ):
                if value != expected:
                    problem = f"is {quote(value)}, in the labels {quote(expected)}"
                    remedy = "keep ids, names and sizes of the images"
                    raise self._error(problem, remedy, record)

    def _check_categories(self) -> None:
        """Categories that no record has do not matter: tools bring their own."""
        names = {category["id"]: category["name"] for category in self.new["categories"]}
        for entry in self.new["annotations"]:
            key = entry["category_id"]
            if key not in self.names or names[key] != self.names[key]:
                known = quote(self.names[key]) if key in self.names else "unknown"
                raise self._error(
                    f"has category {key}, {quote(names[key])}, which is {known} in the labels",
                    "keep the category ids and names; add a class to the labels first",
                    f"annotation {entry['id']}",
                )

    def _check_absent(self, absent: list[int]) -> None:
        scope = self.rules.scope
        known = {record["id"] for record in self.old["annotations"]}
        if scope is not None and not known.issuperset(scope):
            strange = sorted(set(scope) - known)[:NAMED]
            problem = f"lacks annotations {strange} of the queue"
            raise DataError(self.labels, problem, "give the queue that was made from these labels")
        if self.rules.deletions or self.rules.partial:
            return
        missing = [key for key in absent if scope is None or key in scope]
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise DataError(
                self.corrected,
                f"lacks annotations {', '.join(map(str, missing[:NAMED]))}{more}",
                "say whether they are deleted (--deletions), or the file holds a part (--partial)",
            )

    def _absent(self, record: dict) -> dict | None:
        scope = self.rules.scope
        if self.rules.partial or (scope is not None and record["id"] not in scope):
            self.changes.append(Change(record["id"], "untouched"))
            return record
        self.changes.append(Change(record["id"], "deleted"))
        return None

    def _merge(self, record: dict, entry: dict) -> dict:
        if record["image_id"] != entry["image_id"]:
            raise self._error(
                f"is on image {entry['image_id']}, in the labels on image {record['image_id']}",
                "keep the annotation ids; give a new object a new id",
                f"annotation {record['id']}",
            )
        details: dict[str, Any] = {}
        merged = self._merge_mask(record, entry, details)
        if entry["category_id"] != record["category_id"]:
            merged["category_id"] = entry["category_id"]
            # The confidence was that of the other class.
            merged.pop("score", None)
            details["class"] = [self.names[r["category_id"]] for r in (record, entry)]
        if not self._same_box(record, entry, "mask_iou" in details):
            merged["bbox"] = entry["bbox"]
            details["box"] = [record["bbox"], entry["bbox"]]
        kind = "changed" if details else "unchanged"
        crowd = [r.get("iscrowd", 0) for r in (record, entry)]
        if crowd[0] != crowd[1] and self.rules.crowds:
            details["crowd"], kind = crowd, "changed"
            merged = {**_without_estimates(merged), "iscrowd": crowd[1], "mask_source": "input"}
        elif crowd[0] != crowd[1]:
            details["crowd_kept"] = crowd
        self.changes.append(Change(record["id"], kind, details))
        return merged

    def _merge_mask(self, record: dict, entry: dict, details: dict[str, Any]) -> dict:
        """A copy of the record, with the mask of the entry where a person changed it."""
        if not entry.get("segmentation"):
            return dict(record)
        size = self._size(record)
        new = segmentation_patch(entry["segmentation"], *size)
        self._check_drawn(new[0], entry)
        if record.get("segmentation"):
            iou = patch_iou(segmentation_patch(record["segmentation"], *size), new)
        else:
            iou = 0.0
        if iou >= self.rules.same_iou:
            return dict(record)
        if iou == 0 and record.get("segmentation"):
            raise self._error(
                "shares no pixel with the mask of this id in the labels",
                "keep the annotation ids; give a new object a new id",
                f"annotation {entry['id']}",
            )
        details["mask_iou"] = iou
        return {**_without_estimates(record), **_mask_keys(new, size)}

    def _same_box(self, record: dict, entry: dict, mask_changed: bool) -> bool:
        """Tools write the tight box of a mask in place of the input box; that is no correction."""
        if _close(record["bbox"], entry["bbox"]):
            return True
        if mask_changed or not entry.get("segmentation"):
            return False
        patch, x0, y0 = segmentation_patch(entry["segmentation"], *self._size(record))
        return _close(entry["bbox"], [x0, y0, patch.shape[1], patch.shape[0]])

    def _added(self, entry: dict, number: int) -> dict[str, Any]:
        if not entry.get("segmentation"):
            remedy = "draw one, or give its box to tools/label.py"
            raise self._error("is new and has no mask", remedy, f"annotation {entry['id']}")
        size = self._size(entry)
        new = segmentation_patch(entry["segmentation"], *size)
        self._check_drawn(new[0], entry)
        kept = {key: entry[key] for key in ("image_id", "category_id", "bbox")}
        crowd = entry.get("iscrowd", 0) if self.rules.crowds else 0
        return {"id": number, **kept, "iscrowd": crowd, **_mask_keys(new, size)}

    def _check_drawn(self, patch: np.ndarray, entry: dict) -> None:
        if not patch.any():
            remedy = "draw it, or delete the record"
            raise self._error("its mask has no pixel", remedy, f"annotation {entry['id']}")

    def _size(self, entry: dict) -> tuple[int, int]:
        image = self.images[entry["image_id"]]
        return image["height"], image["width"]

    def _with_status(self, annotations: list[dict]) -> list[dict]:
        """Images whose records came or went get the status that fits, if they have any."""
        before = {a["image_id"] for a in self.old["annotations"]}
        after = {a["image_id"] for a in annotations}
        images = []
        for image in self.old["images"]:
            key = image["id"]
            if "status" in image and (key in before) != (key in after):
                without = "rejected" if key in self.rejects.images else "empty"
                image = {**image, "status": "labelled" if key in after else without}
            images.append(image)
        return images


def _plain_name(image: dict) -> str | None:
    name = image_name(image)
    return None if name is None else name.replace("\\", "/")


def _close(box: list, other: list) -> bool:
    return max(abs(a - b) for a, b in zip(box, other)) <= BOX_TOLERANCE


def _without_estimates(record: dict) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ESTIMATES}


def _mask_keys(patch: tuple[np.ndarray, int, int], size: tuple[int, int]) -> dict[str, Any]:
    mask, x0, y0 = patch
    return {
        "segmentation": rle_from_patch(mask, y0, x0, *size),
        "area": int(np.count_nonzero(mask)),
        "mask_source": "input",
    }
