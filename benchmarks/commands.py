"""How a benchmark command ends: with its table, one clear error line, or word on how to go on."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import record
from stages import StageError, say
from tables import measurement_table

from pseudolabel.errors import DataError


def data_folder(name: str) -> Path | None:
    """A folder of `$MASKSMITH_DATA`; where it is absent one clear error line, and None."""
    folder = Path(os.environ.get("MASKSMITH_DATA", ""), name).resolve()
    if folder.is_dir():
        return folder
    print(f"error: no folder {folder}. Remedy: export MASKSMITH_DATA", file=sys.stderr)
    return None


def finish(work: Callable[[], Any]) -> tuple[int, Any]:
    """Does the work of a resumable command.

    Returns:
        The exit status, and what the work returned: 0; 1 after one clear error line; 130 after
        Ctrl-C, with word on how to go on.
    """
    try:
        return 0, work()
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130, None
    except (StageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1, None


def finish_measurement(work: Callable[[], dict[str, Any]], keep: bool) -> int:
    """As `finish`, for work that gives a `results.measurement`: prints its table.

    Args:
        work: makes the measurement.
        keep: write it to docs/results as well.

    Returns:
        The exit status.
    """
    status, result = finish(work)
    if result is not None:
        say(measurement_table(result))
        if keep:
            say(f"recorded in {record(result)}")
    return status
