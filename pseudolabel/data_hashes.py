"""Which label files a training run saw: their hashes, beside its config.yaml."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, file_hash, read_json, write_json

NAME = "data_hashes.json"
logger = logging.getLogger(__name__)


def hash_data(cfg: Any) -> dict[str, str]:
    """sha256 of the JSON of every registered data set that a config trains or tests on, by name."""
    entries = {entry["name"]: entry for entry in cfg.DATASETS.REGISTER}
    used = [name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if name in entries]
    return {name: file_hash(expand_path(entries[name]["json"])) for name in used}


def write_data_hashes(cfg: Any) -> None:
    """Writes `data_hashes.json` to OUTPUT_DIR; a resumed run on other files hears of it."""
    path = Path(cfg.OUTPUT_DIR, NAME)
    now, before = hash_data(cfg), read_data_hashes(path.parent)
    changed = sorted(name for name in now.keys() & before.keys() if now[name] != before[name])
    if changed:
        logger.warning("the JSON of %s has changed since this run began", ", ".join(changed))
    write_json(path, now, indent=1)


def read_data_hashes(folder: Path) -> Mapping[str, str]:
    """What `write_data_hashes` wrote to the folder of a run; empty of a run without it.

    Raises:
        DataError: the file is no such list.
    """
    path = folder / NAME
    if not path.is_file():
        return {}
    found = read_json(path)
    if not (isinstance(found, dict) and all(isinstance(v, str) for v in found.values())):
        raise DataError(path, "is no list of hashes by name", "train this run again")
    return found
