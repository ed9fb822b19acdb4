"""What all writers share: the labels by image, guarded names, whole folders, and the accounts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_rle

from pseudolabel.checks import image_name, quote
from pseudolabel.errors import DataError
from pseudolabel.files import guarded_join
from pseudolabel.masks import parse_segmentation
from pseudolabel.store import read_labels


@dataclass
class ExportReport:
    """The accounts of one export.

    Attributes:
        output: file or folder that was written.
        annotations: number in the labels.
        written: number in the output; the others stand in `left_out`.
        left_out: record ("annotation 12", "image 3") and reason.
        losses: what the format could not hold, in numbers.
        hidden: annotation id to pixels that other objects cover in the output.
    """

    output: str
    annotations: int
    written: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    hidden: dict[int, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for people, the totals last."""
        lines = [f"left out: {record}: {reason}" for record, reason in self.left_out]
        lines += [f"lost: annotation {key}: {n} px hidden" for key, n in self.hidden.items()]
        lines += [f"lost: {loss}" for loss in self.losses]
        missing = self.annotations - self.written
        total = f"{self.annotations} annotations in, {self.written} out, {missing} left out"
        return [*lines, f"{self.output}: {total}"]

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "output": Path(self.output).name,
            "annotations_in": self.annotations,
            "annotations_out": self.written,
            "left_out": [{"record": r, "reason": why} for r, why in self.left_out],
            "losses": self.losses,
            "hidden": [{"id": key, "pixels": n} for key, n in self.hidden.items()],
        }


class Labels:
    """A checked label file, by image.

    Args:
        path: COCO or LVIS JSON with masks.

    Raises:
        DataError: the file has an error that `store.read_labels` names, or an image without a name.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = read_labels(path)
        self.images = sorted(self.data["images"], key=lambda image: image["id"])
        self.sizes = {i["id"]: (i["height"], i["width"]) for i in self.images}
        self.by_image: dict[int, list[dict]] = defaultdict(list)
        for annotation in sorted(self.data["annotations"], key=lambda a: a["id"]):
            self.by_image[annotation["image_id"]].append(annotation)

    def report(self, output: str | Path) -> ExportReport:
        """Empty accounts of an export of this file."""
        return ExportReport(str(output), len(self.data["annotations"]))

    def drawn(self, annotations: list[dict], report: ExportReport) -> Iterator[dict]:
        """Those annotations that have a pixel; the others go to `report.left_out`."""
        for annotation in annotations:
            reason = self._without_pixels(annotation)
            if reason is None:
                yield annotation
            else:
                report.left_out.append((f"annotation {annotation['id']}", reason))

    def _without_pixels(self, annotation: dict) -> str | None:
        segmentation = annotation.get("segmentation")
        if not segmentation:
            return "has no mask"
        height, width = self.sizes[annotation["image_id"]]
        code = parse_segmentation(segmentation, height, width)
        if isinstance(code, list):
            rings = [ring.tolist() for ring in code]
            code = coco_rle.merge(coco_rle.frPyObjects(rings, height, width))
        return None if coco_rle.area(code) else "its mask has no pixel"

    def labelled_images(self, report: ExportReport) -> Iterator[dict]:
        """Images for formats in which an image without an object is background.

        One whose status is "rejected" shows objects; it and its annotations are left out by name.
        """
        for image in self.images:
            if image.get("status") != "rejected":
                yield image
                continue
            report.left_out.append((f"image {image['id']}", "its status is rejected"))
            for annotation in self.by_image[image["id"]]:
                record = f"annotation {annotation['id']}"
                report.left_out.append((record, "the status of its image is rejected"))

    def targets(self, suffix: str) -> dict[int, Path]:
        """For each image id the relative path of its file in the output; folders are kept.

        Rejected images have none.

        Raises:
            DataError: a name leaves the folder or has a line break, or two images share a target
                (also where they differ in case only, which some file systems ignore).
        """
        targets, taken = {}, {}
        for image in self.images:
            if image.get("status") == "rejected":
                continue
            name, record = image_name(image), f"image {image['id']}"
            target = guarded_join("", name, self.path).with_suffix(suffix)
            if not name.isprintable():
                problem = f"file_name {quote(name)} has a letter that does not print"
                raise DataError(self.path, problem, "rename the image", record)
            other = taken.setdefault(str(target).casefold(), image["id"])
            if other != image["id"]:
                raise DataError(
                    self.path,
                    f"would be written to {target}, as image {other} would",
                    "rename one of the images; only their endings or capitals differ",
                    record,
                )
            targets[image["id"]] = target
        return targets


def refuse_existing(output: str | Path) -> None:
    """Stops an export that would replace something; an empty folder may be filled.

    Raises:
        DataError: there is a file, or a folder that holds something.
    """
    path = Path(output)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise DataError(path, "the output exists", "remove it, or choose another output")


@contextmanager
def whole_folder(output: str | Path) -> Iterator[Path]:
    """Yields a temporary sibling that becomes `output` only when the block ends well.

    Raises:
        DataError: `output` exists and is no empty folder.
    """
    output = Path(output)
    refuse_existing(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.", suffix=".tmp"))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def place(folder: Path, target: Path | str) -> Path:
    """The path of a file in the output; its folders are made.

    Raises:
        DataError: it leaves the folder.
    """
    path = guarded_join(folder, str(target), "output")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
