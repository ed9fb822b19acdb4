"""Where the image of a COCO or LVIS record lies below its image folder."""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pseudolabel.errors import DataError
from pseudolabel.files import guarded_join

# LVIS v0.5 names its images as COCO did in 2014; the files of 2017 are called by their id alone.
NAME_OF_2014 = re.compile(r"COCO_[A-Za-z]+\d{4}_(\d{12}\.\w+)")


def image_candidates(image: dict[str, Any], root: str | os.PathLike, source: object) -> list[Path]:
    """The paths at which the image of a record may lie, in the order in which they are tried.

    1. `file_name` as it is; 2. without its 2014 prefix (LVIS v0.5); 3. the last two parts of
    `coco_url`, "train2017/000000000009.jpg" (LVIS v1 has no `file_name`); 4. the last part of it.

    Args:
        image: an entry of `images`.
        root: the image folder.
        source: the JSON, for the error message.

    Raises:
        DataError: a path leaves the folder, or the record names none.
    """
    names = []
    if image.get("file_name"):
        name = PurePosixPath(str(image["file_name"]).replace("\\", "/"))
        names.append(image["file_name"])
        if renamed := NAME_OF_2014.fullmatch(name.name):
            names.append(str(name.with_name(renamed[1])))
    if isinstance(image.get("coco_url"), str):
        parts = [part for part in urlsplit(image["coco_url"]).path.split("/") if part]
        if len(parts) > 1:
            names.append("/".join(parts[-2:]))
        if parts:
            names.append(parts[-1])
    if not names:
        raise DataError(
            source,
            "has neither a file_name nor a coco_url that ends in one",
            "add it, or drop the record",
            f"image {image.get('id')}",
        )
    return [guarded_join(root, name, source) for name in dict.fromkeys(names)]


def image_path(image: dict[str, Any], root: str | os.PathLike, source: object) -> Path:
    """The first of `image_candidates` at which a file stands; the first of all where none does."""
    candidates = image_candidates(image, root, source)
    return next((path for path in candidates if path.is_file()), candidates[0])
