"""Samples of a batch as plain containers and tensors, which torch loads without running code.

What a model takes holds objects of Detectron2 and numpy. They are written as dicts whose key
`CLASS` names what they were, and built again from those.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from pseudolabel.errors import DataError

CLASS = "<class>"


def _instances(parts: dict[str, Any]) -> Instances:
    return Instances(parts["image_size"], **parts["fields"])


# Class -> its parts, and what builds it from them.
_KINDS: dict[type, tuple[Callable[[Any], dict[str, Any]], Callable[[dict[str, Any]], Any]]] = {
    np.ndarray: (
        lambda value: {"values": torch.from_numpy(value.copy())},
        lambda parts: parts["values"].numpy(),
    ),
    Boxes: (lambda value: {"tensor": value.tensor}, lambda parts: Boxes(parts["tensor"])),
    BitMasks: (lambda value: {"tensor": value.tensor}, lambda parts: BitMasks(parts["tensor"])),
    PolygonMasks: (
        lambda value: {"polygons": value.polygons},
        lambda parts: PolygonMasks(parts["polygons"]),
    ),
    Instances: (
        lambda value: {"image_size": value.image_size, "fields": value.get_fields()},
        _instances,
    ),
}
_BUILDERS = {kind.__name__: build for kind, (_, build) in _KINDS.items()}


def to_plain(value: Any) -> Any:
    """Dicts, lists, tuples, numbers, strings and tensors in place of what a sample is made of.

    Args:
        value: a sample, or anything in one.

    Returns:
        The same at every depth. Of an object of a class that is not known here only the name of
        the class is left: a dump of the rest is better than none.
    """
    if value is None or isinstance(value, torch.Tensor):
        return value
    # Also what derives from them, such as the members of an enumeration of integers.
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, dict):
        return {to_plain(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(map(to_plain, value))
    if isinstance(value, np.number | np.bool_):
        return value.item()
    name, parts = type(value).__name__, {}
    known = type(value) in _KINDS and getattr(value, "dtype", None) is not np.dtype(object)
    if known:
        parts = to_plain(_KINDS[type(value)][0](value))
    return {CLASS: name if known else f"unknown {name}", **parts}


def from_plain(value: Any) -> Any:
    """What `to_plain` was given.

    Raises:
        DataError: something was of a class that is not known here.
    """
    if isinstance(value, list | tuple):
        return type(value)(map(from_plain, value))
    if not isinstance(value, dict):
        return value
    parts = {key: from_plain(each) for key, each in value.items()}
    name = parts.pop(CLASS, None)
    if name is None:
        return parts
    if name not in _BUILDERS:
        remedy = "teach pseudolabel/plain_samples.py the class and let the run fail again"
        raise DataError("dumped batch", f"an object was left out ({name})", remedy)
    return _BUILDERS[name](parts)
