"""Process environment: random seeds, and the one way in which this build says "not here"."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np
import torch

__all__ = ["NotInLiteError", "not_in_lite", "seed_all_rng", "setup_environment", "upstream_only"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


class NotInLiteError(NotImplementedError, ImportError):
    """A documented Detectron2 feature that only the upstream build provides.

    It is an ImportError as well, so that `try: from detectron2.x import y / except ImportError`
    keeps working where a program treats the feature as optional.
    """


def not_in_lite(what: str) -> NoReturn:
    """Raise the error for a feature outside this build's scope.

    Args:
        what: the feature as the caller wrote it, such as `detectron2.config.LazyConfig`.

    Raises:
        NotInLiteError: always.
    """
    raise NotInLiteError(
        f"{what} is not part of detectron2 0.6+lite, the compile-free subset. Install upstream "
        "Detectron2 instead (https://detectron2.readthedocs.io/tutorials/install.html); "
        "programs written for the subset run unchanged with it."
    )


def upstream_only(module: str, names: Iterable[str] | None = None) -> Callable[[str], Any]:
    """Build a module-level `__getattr__` that answers for names which only upstream has.

    Args:
        module: `__name__` of the module.
        names: the names to answer for; None means every public name.

    Returns:
        A function that raises NotInLiteError for those names and AttributeError for others.
    """
    known = None if names is None else frozenset(names)

    def lookup(name: str) -> Any:
        if (known is None and not name.startswith("_")) or (known is not None and name in known):
            not_in_lite(f"{module}.{name}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return lookup


def seed_all_rng(seed: int | None = None) -> None:
    """Seed Python's, numpy's and torch's global generators.

    Args:
        seed: any integer; None draws a fresh one and logs it, so that a run can be repeated.
    """
    if seed is None:
        entropy = int.from_bytes(os.urandom(4), sys.byteorder)
        seed = (entropy ^ os.getpid() ^ time.time_ns()) & 0x7FFFFFFF
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def setup_environment() -> None:
    """Upstream's hook for custom environment modules; this build has nothing to set up."""
