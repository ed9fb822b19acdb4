"""Files that are either whole or not there: guarded paths, atomic writes, JSON, images."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

from pseudolabel.checks import is_safe_name
from pseudolabel.errors import DataError


def expand_path(path: str | os.PathLike) -> str:
    """Replaces `~` and `$VARIABLE` in a path of a config.

    Raises:
        DataError: a variable is not set.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded:
        raise DataError(path, "an environment variable in this path is not set", "export it")
    return expanded


def guarded_join(root: str | os.PathLike, file_name: str, source: object = "file_name") -> Path:
    """Joins a `file_name` of a JSON to its image root; refuses to leave the root.

    Args:
        root: the image folder.
        file_name: relative path, as the JSON gives it.
        source: the JSON, for the error message.

    Raises:
        DataError: `file_name` is absolute, empty, or climbs out with `..`.
    """
    if not is_safe_name(str(file_name)):
        raise DataError(
            source,
            f"file_name {file_name!r} is not a path below the image folder",
            "write it relative to the image folder, without '..'",
        )
    return Path(root, *PurePosixPath(str(file_name).replace("\\", "/")).parts)


def refuse_overwrite(source: str | os.PathLike, *targets: str | os.PathLike) -> None:
    """Stops a command, before it works, whose output would replace its own input or a folder.

    Raises:
        DataError: a target is a folder, or is the source, by whatever path or link.
    """
    for target in targets:
        if Path(target).resolve() == Path(source).resolve():
            raise DataError(target, "the output would replace the input", "choose another output")
        if Path(target).is_dir():
            raise DataError(target, "the output is a folder", "name a file in it")


def failure_line(error: DataError | OSError, target: object) -> str:
    """What a command says when it cannot go on, in one line.

    Args:
        error: what stopped it.
        target: what it was to write; named where the error of the system names no file.
    """
    if isinstance(error, DataError):
        return str(error)
    where, problem = error.filename or target, error.strerror or error
    return f"{where}: {problem}. Remedy: check disk space and rights."


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary sibling of `path`; it replaces `path` only when the block ends well.

    What stood at `path` before stays intact through any exception, full disk or kill. An OSError of
    writing names `path`.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    prefix = f".{path.name}."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename, error.filename2 = str(path), None
        raise


def write_json(path: str | os.PathLike, value: object, indent: int | None = None) -> None:
    """Writes JSON atomically. NaN and infinity are refused: they are not JSON."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=indent, allow_nan=False)
        file.write("\n")


def nan_to_null(table: Mapping[Any, float]) -> dict[Any, float | None]:
    """A table of numbers as JSON can hold it: NaN, a mean over nothing, becomes None."""
    return {key: None if value != value else value for key, value in table.items()}


def read_json(path: str | os.PathLike) -> dict:
    """Reads a JSON object. NaN and infinity are read, so that the caller can name their place.

    Raises:
        DataError: the file is missing or unreadable, is not JSON, or holds something else than an
            object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(path, "the file does not exist", "check the path") from error
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"not valid JSON ({error})", "write the file again") from error
    if not isinstance(value, dict):
        raise DataError(
            path, "holds no JSON object", "give an instances file with images and annotations"
        )
    return value


def is_deep(mode: str) -> bool:
    """Whether a Pillow mode has more than 8 bits per pixel and channel (I, I;16, F)."""
    return mode == "F" or mode.startswith("I")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image as RGB in its upright orientation.

    Returns:
        uint8 array (H, W, 3).

    Raises:
        DataError: the file is missing, empty, truncated or no image, or has more than 8 bits per
            pixel and channel (modes I, I;16 and F), which Pillow would clip to white.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        # A pipe would be waited for, for ever.
        raise DataError(path, "the image is no regular file", "replace it by the image")
    try:
        with Image.open(path) as image:
            mode = image.mode
            if not is_deep(mode):
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(path, "the image does not exist", "check the image folder") from error
    except Exception as error:  # a decoder of a damaged file may raise anything
        raise DataError(
            path, f"the image cannot be read ({error})", "replace the file or drop its record"
        ) from error
    raise DataError(path, f"the image has mode {mode}, not 8 bit", "convert it to 8 bit")


def check_image_size(
    image: np.ndarray, file: object, height: int, width: int, record: object = None
) -> None:
    """Refuses an image (H, W, ...) whose size is not the one that its JSON states.

    Raises:
        DataError: naming the file and the record.
    """
    if image.shape[:2] != (height, width):
        raise DataError(
            file,
            f"is {image.shape[1]}x{image.shape[0]}, the JSON says {width}x{height}",
            "correct the JSON or the image; boxes refer to the JSON's size",
            record,
        )


def file_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
