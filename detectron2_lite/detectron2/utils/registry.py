"""Name -> class tables, and lookup of an object by its dotted path."""

from __future__ import annotations

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """Return the object at a dotted path such as `package.module.Class`.

    Raises:
        ImportError: nothing can be found there.
    """
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(f"Cannot find an object named {name!r}")
    return found
