"""Where the image of a COCO or LVIS record lies below its image folder."""

import os
import re
import stat
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pseudolabel.errors import DataError
from pseudolabel.files import guarded_join

# LVIS v0.5 names its images as COCO did in 2014; the files of 2017 are called by their id alone.
NAME_OF_2014 = re.compile(r"COCO_[A-Za-z]+\d{4}_(\d{12}\.\w+)")


def image_candidates(image: dict[str, Any], root: str | os.PathLike, source: object) -> list[Path]:
    """The paths at which the image of a record may lie, in the order in which they are tried.

    1. `file_name` as it is: first letter by letter, then with a backslash, which a name may hold on
    Linux, as the mark between folders; 2. without its 2014 prefix (LVIS v0.5); 3. the last two
    parts of `coco_url`, "train2017/000000000009.jpg" (LVIS v1 has no `file_name`); 4. the last part
    of it.

    Args:
        image: an entry of `images`.
        root: the image folder.
        source: the JSON, for the error message.

    Raises:
        DataError: a path leaves the folder, or the record names none.
    """
    names: list[str] = []
    if stated := str(image.get("file_name") or ""):
        name = PurePosixPath(stated.replace("\\", "/"))
        names.append(stated)
        if renamed := NAME_OF_2014.fullmatch(name.name):
            names.append(str(name.with_name(renamed[1])))
    parts = _url_parts(image.get("coco_url"))
    if len(parts) > 1:
        names.append("/".join(parts[-2:]))
    names += parts[-1:]
    if not names:
        raise DataError(
            source,
            "has neither a file_name nor a coco_url that ends in one",
            "add it, or drop the record",
            f"image {image.get('id')}",
        )
    paths = [guarded_join(root, name, source) for name in dict.fromkeys(names)]
    # Its guarded twin above has been found to stay below the folder.
    literal = [Path(root, stated)] if "\\" in stated else []
    return list(dict.fromkeys([*literal, *paths]))


def _url_parts(url: object) -> list[str]:
    try:
        return [part for part in urlsplit(url).path.split("/") if part] if url else []
    except (AttributeError, TypeError, ValueError):
        # No address, such as "http://[".
        return []


class OutsideError(DataError):
    """An image whose path leads out of the image folder by a link."""


class ImageFolder:
    """Finds the images of records below a folder, and refuses what lies outside of it.

    The folder itself may be a link. Where a folder below it leads is looked up once, so one object
    serves one reading of a file.

    Args:
        root: the image folder.
        source: the JSON, for error messages.
        allow_links: whether links below the folder may lead out of it.
    """

    def __init__(self, root: str | os.PathLike, source: object, *, allow_links: bool = False):
        self.root, self.source, self.allow_links = root, source, allow_links
        self._real_root = Path(os.path.realpath(root))
        self._real_folders: dict[Path, Path] = {}

    def path(self, image: dict[str, Any]) -> Path:
        """The first of `image_candidates` at which a file stands; the first of all if none does.

        Raises:
            OutsideError: the path is, or goes through, a link out of the folder.
            DataError: as `image_candidates`.
        """
        candidates = image_candidates(image, self.root, self.source)
        return next((path for path in candidates if self._holds(path, image)), candidates[0])

    def _holds(self, path: Path, image: dict[str, Any]) -> bool:
        """Whether a file stands at a path, with a single `lstat` for one that is no link."""
        try:
            mode = path.lstat().st_mode
        except (OSError, ValueError):
            return False
        is_link = stat.S_ISLNK(mode)
        if not self.allow_links:
            real = Path(os.path.realpath(path)) if is_link else self._real(path.parent) / path.name
            if not real.is_relative_to(self._real_root):
                raise OutsideError(
                    self.source,
                    f"{str(path.relative_to(self.root))!r} leads by a link to {str(real)!r}, "
                    "outside of the image folder",
                    "put the image into the folder, or allow links, by allow_links: true in its "
                    "entry of DATASETS.REGISTER or by --allow-links of the tool",
                    f"image {image.get('id')}",
                )
        return path.is_file() if is_link else stat.S_ISREG(mode)

    def _real(self, folder: Path) -> Path:
        if folder not in self._real_folders:
            self._real_folders[folder] = Path(os.path.realpath(folder))
        return self._real_folders[folder]


def image_path(
    image: dict[str, Any],
    root: str | os.PathLike,
    source: object,
    *,
    allow_links: bool = False,
) -> Path:
    """`ImageFolder.path` of a single image."""
    return ImageFolder(root, source, allow_links=allow_links).path(image)
