"""Files of a job that are whole, on disk and byte for byte reproducible, or not there at all."""

import gzip
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pseudolabel.errors import DataError

# Fast enough never to be the bottleneck of a job; RLE is compressed already.
LEVEL = 3


def sync_folder(folder: Path) -> None:
    """Makes a rename in a folder survive a power cut, where the file system lets one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Some network file systems know no sync of a folder; they sync at the rename.
        pass
    finally:
        os.close(handle)


@contextmanager
def durable_write(path: Path, scratch: Path | None = None) -> Iterator[IO[bytes]]:
    """A temporary file that replaces `path` when the block ends well: written, synced, renamed.

    Args:
        path: what to write; its folder exists.
        scratch: folder for the temporary file, on the same file system; else that of `path`.
    """
    folder = path.parent if scratch is None else scratch
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def write_lines(path: Path) -> Iterator[IO[str]]:
    """A gzip text file, durable; equal text gives equal bytes, since no time or name is in it."""
    with (
        durable_write(path) as file,
        gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text,
    ):
        yield text


def read_lines(path: Path) -> Iterator[str]:
    """The lines of such a file without their ends.

    Raises:
        DataError: it is missing, cut off or damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line.rstrip("\n")
    except (EOFError, OSError, UnicodeDecodeError, gzip.zlib.error) as error:
        raise DataError(path, f"cannot be read ({error})", "repeat the command") from error


def write_record(path: Path, value: object) -> None:
    """A small JSON file, durable."""
    with durable_write(path) as file:
        file.write((json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None where it is absent or is no JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, RecursionError, ValueError):
        return None
    return value if isinstance(value, dict) else None
