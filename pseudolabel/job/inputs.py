"""The three kinds of input of a labelling job, by the files that a command names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.job.found import ImageSource
from pseudolabel.job.plan import Source
from pseudolabel.store import BoxFile


@dataclass(frozen=True)
class JobInput:
    """What is to be labelled.

    Attributes:
        images: folder of the images.
        boxes: COCO or LVIS JSON, or COCO results; None lets the labeler find the boxes.
        images_json: the images and categories of results, or of images without boxes.
        categories: of a labeler that finds boxes.
    """

    images: Path
    boxes: Path | None = None
    images_json: Path | None = None
    categories: tuple[dict[str, Any], ...] = ()

    def open(self) -> Source:
        """Reads and checks all of it.

        Raises:
            DataError: it is not sound.
        """
        if self.boxes is not None:
            return BoxFile(self.boxes, self.images_json)
        return ImageSource(self.images, list(self.categories), self.images_json)

    def identity(self) -> dict[str, Any]:
        """Mode, names and hashes of the files; the JSON is not parsed.

        Raises:
            DataError: a file cannot be read.
        """
        if self.boxes is None and self.images_json is None:
            digest = ImageSource(self.images, list(self.categories)).list_sha256()
            return {"mode": "found", "input": self.images.name, "input_sha256": digest}
        if self.boxes is None:
            return {"mode": "found", **_named("input", self.images_json)}
        if self.images_json is None:
            return {"mode": "boxes", **_named("input", self.boxes)}
        return {
            "mode": "results",
            **_named("input", self.boxes),
            **_named("images_json", self.images_json),
        }


def _named(key: str, path: Path) -> dict[str, str]:
    try:
        return {key: path.name, f"{key}_sha256": file_hash(path)}
    except FileNotFoundError as error:
        raise DataError(path, "the file does not exist", "check the path") from error
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "check the path") from error
