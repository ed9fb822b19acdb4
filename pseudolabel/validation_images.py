"""Checks of the image files of a label file: are they there, whole, and as large as stated."""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pseudolabel.checks import image_name, is_number, is_safe_name, quote
from pseudolabel.defects import Defect
from pseudolabel.errors import DataError
from pseudolabel.files import is_deep
from pseudolabel.image_paths import ImageFolder, OutsideError
from pseudolabel.validation_records import Subject

WORKERS = 4
# Images whose results wait in memory at a time.
CHUNK = 256
_ORIENTATION = 0x0112
# EXIF orientations that swap height and width.
_QUARTER_TURNS = (5, 6, 7, 8)


class Header(NamedTuple):
    """What an image file says of itself: size as stored, EXIF orientation, Pillow's mode."""

    height: int
    width: int
    orientation: int
    mode: str

    @property
    def upright(self) -> tuple[int, int]:
        """(H, W) after the turn that EXIF asks for."""
        turned = self.orientation in _QUARTER_TURNS
        return (self.width, self.height) if turned else (self.height, self.width)


def check_images(
    data: object, image_root: str | Path, *, pixels: bool = True, allow_links: bool = False
) -> list[Defect]:
    """What is wrong with the files of the images of a label file.

    A file is looked for where the loaders look for it. Left out are entries that `check_labels`
    finds without a usable name, and images of status "rejected", which no reader opens.

    Args:
        data: the parsed JSON, whatever it is.
        image_root: the image folder; may itself be a link.
        pixels: whether to read the files to their end; else headers only.
        allow_links: whether links below the folder may lead out of it.
    """
    entries = data.get("images") if isinstance(data, dict) else None
    subjects = (
        Subject("images", position, entry)
        for position, entry in enumerate(entries if isinstance(entries, list) else [])
        if _has_file(entry)
    )
    folder = ImageFolder(image_root, "images", allow_links=allow_links)
    found: list[Defect] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(WORKERS) as pool:
        # Of large images, which Pillow reads nevertheless.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        while chunk := list(islice(subjects, CHUNK)):
            for defects in pool.map(lambda s: list(_check_file(s, folder, pixels)), chunk):
                found += defects
    return found


def _has_file(entry: object) -> bool:
    if not isinstance(entry, dict) or entry.get("status") == "rejected":
        return False
    name = image_name(entry)
    return name is not None and is_safe_name(name)


def _check_file(subject: Subject, folder: ImageFolder, pixels: bool) -> Iterator[Defect]:
    name = quote(image_name(subject.entry))
    try:
        path = folder.path(subject.entry)
        name = quote(str(path.relative_to(folder.root)))
        if not path.is_file():
            what = "is no file" if path.exists() else "does not exist"
            yield subject.defect("image_missing", f"{name} {what}", "file_name")
            return
        if path.stat().st_size == 0:
            yield subject.defect("image_empty", f"{name} has 0 bytes", "file_name")
            return
    except OutsideError as error:
        yield subject.defect("image_outside_root", error.problem, "file_name")
        return
    except DataError as error:
        yield subject.defect("file_name_unsafe", error.problem, "coco_url")
        return
    except (OSError, RuntimeError, ValueError) as error:
        # A loop of links is a RuntimeError in older versions of Python.
        yield subject.defect("image_unreadable", f"{name} cannot be reached ({error})", "file_name")
        return
    yield from _check_content(subject, path, name, pixels)


def _check_content(subject: Subject, path: Path, name: str, pixels: bool) -> Iterator[Defect]:
    opened = False
    try:
        with Image.open(path) as image:
            opened = True
            header = Header(image.height, image.width, _orientation(image, pixels), image.mode)
            wrong = list(_check_header(subject, name, header))
            yield from wrong
            # An image that lies about its size may hold gigabytes.
            if pixels and not any(defect.kind == "image_size_differs" for defect in wrong):
                # JPEGs are then decoded small, yet read to their end.
                image.draft(None, (1, 1))
                image.load()
    except Image.DecompressionBombError as error:
        yield subject.defect("image_too_large", f"{name} cannot be read ({error})", "file_name")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        kind = "image_truncated" if opened else "image_unreadable"
        yield subject.defect(kind, f"{name} cannot be read to its end ({error})", "file_name")


def _orientation(image: Image.Image, pixels: bool) -> int:
    # Pillow reads a PNG to its end for EXIF, which may follow the pixels there.
    if image.format == "PNG" and "exif" not in image.info and not pixels:
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def _check_header(subject: Subject, name: str, header: Header) -> Iterator[Defect]:
    if is_deep(header.mode):
        problem = f"{name} has mode {header.mode}, not 8 bit"
        yield subject.defect("image_deep", problem, "file_name")
    if header.mode == "CMYK":
        yield subject.defect("image_cmyk", f"{name} is in CMYK", "file_name")
    if header.height == header.width == 1:
        yield subject.defect("image_one_pixel", f"{name} has a single pixel", "file_name")
    stated = tuple(subject.entry.get(key) for key in ("height", "width"))
    if not all(map(is_number, stated)):
        return
    upright, stored = header.upright, (header.height, header.width)
    says = f"the JSON says {stated[1]}x{stated[0]}"
    turned = f"its EXIF orientation is {header.orientation}"
    if stated == upright:
        if header.orientation not in (0, 1):
            problem = f"{name} is stored as {stored[1]}x{stored[0]}, {turned}; {says}"
            yield subject.defect("image_rotated_as_stated", problem, "file_name")
    elif stated == stored:
        problem = f"{name} is {upright[1]}x{upright[0]} when upright, {turned}; {says}"
        yield subject.defect("image_rotated", problem, "height")
    else:
        problem = f"{name} is {upright[1]}x{upright[0]}, {says}"
        yield subject.defect("image_size_differs", problem, "height")
