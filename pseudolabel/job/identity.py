"""What the labels of a job depend on; a job goes on only where all of it is as it was."""

import functools
import hashlib
import json
import platform
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pseudolabel.errors import DataError
from pseudolabel.files import file_hash
from pseudolabel.image_paths import image_path
from pseudolabel.job.inputs import JobInput
from pseudolabel.job.options import JobOptions
from pseudolabel.job.plan import FORMAT, RESTART, Source, default_shard_boxes
from pseudolabel.labeler import Labeler
from pseudolabel.store import installed_versions, version_of

# Packages whose code decides about masks; all but the first are there only for labelers that are
# networks. Either build of Detectron2 goes by its one name.
PACKAGES = ("pseudolabel", "mal", "pais", "masksmith_projects", "detectron2")
# One library under several names.
OPENCV = [f"opencv{more}-python{end}" for more in ("", "-contrib") for end in ("", "-headless")]
# So many image files stand for all of them.
SAMPLE = 64


class Command:
    """The identity of a job, as a command asks for it.

    Args:
        given: the input files, which are hashed.
        labeler: describes itself, with the hashes of config and weights.
        options: of the command.

    Raises:
        DataError: an input cannot be read, or the description is no JSON.
    """

    def __init__(self, given: JobInput, labeler: Labeler, options: JobOptions):
        self._options = options
        self._facts = {
            "format": FORMAT,
            **given.identity(),
            "labeler": _plain(labeler),
            "seed": options.seed,
            "allow_links": options.allow_links,
            "versions": versions(),
            "code": code_hashes(labeler),
        }

    def begin(self, source: Source) -> dict[str, Any]:
        """Of a new job."""
        size = self._options.shard_boxes or default_shard_boxes(source)
        return self._with(size, sample_images(source))

    def repeat(self, planned: dict[str, Any]) -> dict[str, Any]:
        """To be compared with that of an earlier job: same size of shards unless one is given,
        and the image files that it has looked at."""
        sample = planned.get("image_files")
        entries = sample if isinstance(sample, list) else []
        named = [entry for entry in entries if isinstance(entry, dict)]
        return self._with(self._options.shard_boxes or planned.get("shard_boxes"), named)

    def _with(self, shard_boxes: int, images: list[dict]) -> dict[str, Any]:
        links = self._options.allow_links
        sizes = [{**image, "bytes": _size(image, self._options.images, links)} for image in images]
        return {**self._facts, "shard_boxes": shard_boxes, "image_files": sizes}


def versions() -> dict[str, str | None]:
    """Of Python and of the libraries that read, resize and compute."""
    opencv = next(filter(None, map(version_of, OPENCV)), None)
    return {"python": platform.python_version(), **installed_versions(), "opencv": opencv}


def code_hashes(labeler: Labeler) -> dict[str, str]:
    """Hash of the source of each of `PACKAGES`, and of the module of a labeler of someone else."""
    hashes = {name: package_hash(name) for name in PACKAGES if find_spec(name)}
    module = type(labeler).__module__
    path = getattr(sys.modules.get(module), "__file__", None)
    if module.split(".")[0] not in PACKAGES and path and Path(path).is_file():
        hashes[module] = file_hash(path)
    return hashes


@functools.cache
def package_hash(name: str) -> str:
    """Hash of the Python files of a package, which is not imported for it."""
    digest = hashlib.sha256()
    for folder in find_spec(name).submodule_search_locations or []:
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def sample_images(source: Source) -> list[dict]:
    """`SAMPLE` images, or all of fewer, spread evenly over the ids: what names their files."""
    ids = source.image_ids
    picks = np.linspace(0, len(ids) - 1, min(len(ids), SAMPLE)).astype(np.int64)
    wanted = set(ids[picks].tolist()) if len(ids) else set()
    entries = {image["id"]: image for image in source.images() if image["id"] in wanted}
    return [
        {key: entries[k][key] for key in ("file_name", "coco_url") if entries[k].get(key)}
        for k in sorted(entries)
    ]


def _size(image: dict, root: Path, allow_links: bool) -> int | None:
    """Bytes of an image file; None where there is none that may be read."""
    try:
        return image_path(image, root, "sample", allow_links=allow_links).stat().st_size
    except (DataError, OSError, ValueError):
        return None


def _plain(labeler: Labeler) -> dict[str, Any]:
    """The description as it comes back from a JSON file."""
    try:
        return json.loads(json.dumps(labeler.describe(), allow_nan=False))
    except (TypeError, ValueError) as error:
        problem = f"describes itself by values that are no JSON ({error})"
        raise DataError(f"labeler {labeler.name}", problem, "correct its describe()") from error


def differences(planned: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two identities, in words; empty where their labels are the same."""
    both = planned, now
    sample = planned.get("image_files"), now.get("image_files")
    libraries, code = (
        tuple(_table(identity, key) for identity in both) for key in ("versions", "code")
    )
    named = ("image_files", "versions", "code")
    was, given = (_flat({k: v for k, v in identity.items() if k not in named}) for identity in both)
    found = [
        f"{key} was {_short(was.get(key))}, is {_short(given.get(key))}"
        for key in _changed(was, given)
    ]
    for name in _changed(*libraries):
        begun, this = (library.get(name) or "absent" for library in libraries)
        found.append(f"this job was begun with {name} {begun}, this is {this}")
    found += [f"the code of {name} has changed since" for name in _changed(*code)]
    if sample[0] != sample[1]:
        found.append(_describe_images(*sample))
    return found


def _table(identity: dict[str, Any], key: str) -> dict:
    """A part of an identity that a file may hold in any form."""
    value = identity.get(key)
    return value if isinstance(value, dict) else {}


def _changed(was: dict, now: dict) -> list[str]:
    return [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]


def _describe_images(was: object, now: Iterable[dict]) -> str:
    if not isinstance(was, list) or not all(isinstance(image, dict) for image in was):
        return "the image files that it began with are not known"
    pairs = [(old, new) for old, new in zip(was, now) if old != new]
    if not pairs:
        return "the list of image files is damaged"
    had, has = (_bytes(image) for image in pairs[0])
    return (
        f"{len(pairs)} of {len(was)} image files that were looked at are others below --images, "
        f"first {_short(pairs[0][1].get('file_name'))} (then {had}, now {has})"
    )


def _bytes(image: dict) -> str:
    size = image.get("bytes")
    return "missing" if size is None else f"{size} bytes"


def refuse_other(job: Path, planned: dict[str, Any], now: dict[str, Any]) -> None:
    """Stops a resume whose labels could differ from those of the job's beginning.

    Raises:
        DataError: naming all that differs.
    """
    different = differences(planned, now)
    if different:
        problem = f"the unfinished job differs from this command: {'; '.join(different)}"
        raise DataError(job, problem, RESTART)


def _flat(value: dict) -> dict[str, Any]:
    """By dotted keys; without recursion, as a damaged file may be of any depth."""
    found, left = {}, list(value.items())
    while left:
        key, entry = left.pop()
        if isinstance(entry, dict):
            left += [(f"{key}.{name}", inner) for name, inner in entry.items()]
        else:
            found[key] = entry
    return found


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a value too deep to print"
    return text if len(text) <= 40 else f"{text[:13]}..."
