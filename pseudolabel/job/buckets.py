"""Groups annotations by image through files: memory for one bucket of images at a time."""

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.store import ImageJob, group_by_image

if TYPE_CHECKING:
    from pseudolabel.job.plan import Source

# Images per bucket, and buckets at most (each is a file); characters held before they are written.
IMAGES, BUCKETS, HELD = 1024, 512, 16 << 20
_INPUT = json.JSONEncoder(separators=(",", ":"))


def bucket_jobs(source: "Source", scratch: Path) -> Iterator[ImageJob]:
    """The images of a source in id order, each with its annotations."""
    size = max(IMAGES, -(-len(source.image_ids) // BUCKETS))
    folder = Path(tempfile.mkdtemp(dir=scratch, prefix=".sort."))
    try:
        spool = _Spool(folder)
        for image in source.images():
            spool.add(_rank(source.image_ids, image["id"]) // size, "i", image)
        for annotation in source.annotations():
            bucket = _rank(source.image_ids, annotation["image_id"]) // size
            spool.add(bucket, "a", _without_mask(annotation))
        spool.flush()
        for bucket in range(-(-len(source.image_ids) // size)):
            yield from spool.read(bucket)
    except RecursionError as error:
        raise DataError(scratch, "a record is nested too deep", "write the input anew") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rank(ids: np.ndarray, key: int) -> int:
    return int(np.searchsorted(ids, key))


def _without_mask(annotation: dict) -> dict:
    """The key stays, at its place; only a crowd's own region is ever read."""
    if annotation.get("iscrowd", 0) or "segmentation" not in annotation:
        return annotation
    return {**annotation, "segmentation": None}


class _Spool:
    def __init__(self, folder: Path):
        self._folder, self._held = folder, 0
        self._lines: dict[int, list[str]] = defaultdict(list)

    def add(self, bucket: int, kind: str, entry: dict) -> None:
        line = kind + _INPUT.encode(entry) + "\n"
        self._lines[bucket].append(line)
        self._held += len(line)
        if self._held > HELD:
            self.flush()

    def flush(self) -> None:
        for bucket, lines in self._lines.items():
            with open(self._folder / str(bucket), "a", encoding="utf-8") as file:
                file.writelines(lines)
        self._lines.clear()
        self._held = 0

    def read(self, bucket: int) -> list[ImageJob]:
        entries: dict[str, list[dict]] = {"i": [], "a": []}
        path = self._folder / str(bucket)
        with open(path, encoding="utf-8") as file:
            for line in file:
                entries[line[0]].append(json.loads(line[1:]))
        path.unlink()
        return group_by_image(entries["i"], entries["a"])
