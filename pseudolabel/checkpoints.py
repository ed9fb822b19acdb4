"""Reading checkpoints safely and completely."""

import pickle
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pseudolabel.errors import DataError

# What reading a damaged or unsafe file raises.
UNREADABLE = (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError)

# What a pickle of arrays refers to; numpy has moved its core, Python 2 named builtins otherwise.
_HARMLESS = {
    "collections": ("OrderedDict",),
    "_codecs": ("encode",),
    "numpy": ("ndarray", "dtype"),
    **dict.fromkeys(("builtins", "__builtin__"), ("bytearray", "complex", "set")),
    **{f"numpy.{core}.multiarray": ("_reconstruct", "scalar") for core in ("core", "_core")},
    **{f"numpy.{core}.numeric": ("_frombuffer",) for core in ("core", "_core")},
}


class _HarmlessUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        plain = global_name.isidentifier() and global_name.endswith("DType")
        is_dtype = module_name == "numpy.dtypes" and plain
        if not is_dtype and global_name not in _HARMLESS.get(module_name, ()):
            raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def check_pickle(path: str | Path) -> None:
    """Refuses a pickle of weights that is more than tables of arrays: reading it may run code.

    The file is read once here, and nothing in it is called. Readers that call whatever a pickle
    asks for, as Detectron2's of its `.pkl` files, may read it afterwards.

    Raises:
        pickle.UnpicklingError: it refers to something else, holds no table, or is damaged.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            content = _HarmlessUnpickler(file, encoding="latin1").load()
        except OSError:
            raise
        except Exception as error:  # damaged ones raise anything
            problem = f"no safe pickle of weights ({error!s:.200})"
            raise pickle.UnpicklingError(problem) from error
    if not isinstance(content, dict) or not isinstance(content.get("model", {}), dict):
        raise pickle.UnpicklingError("no table of weights")


def load_strictly(model: nn.Module, path: str | Path, prefix: str = "") -> None:
    """Loads a training checkpoint; every parameter must be there, and nothing else.

    Args:
        model: receives the weights in place.
        path: file of Detectron2's checkpointer, or a bare state dict.
        prefix: takes only the entries that begin with it, and cuts it off.

    Raises:
        DataError: the file is missing, is no safe checkpoint, or does not fit the model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(path, "the checkpoint does not exist", "train first") from error
    except UNREADABLE as error:
        raise DataError(path, f"not a safe checkpoint ({error})", "save it again") from error
    state = content.get("model", content) if isinstance(content, dict) else {}
    state = {k[len(prefix) :]: value for k, value in state.items() if k.startswith(prefix)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(
            path, f"does not fit the model ({error})", "use the config of its own training run"
        ) from error


def refuse_missing(path: str | Path, model: nn.Module, missing: Collection[str]) -> None:
    """Refuses a checkpoint that leaves a part of the model as initialised.

    Args:
        path: of the checkpoint, for the message.
        model: which has been loaded.
        missing: names of its state that the checkpoint lacks, or has in another shape.

    Raises:
        DataError: `missing` is not empty.
    """
    if missing:
        raise DataError(
            path,
            f"{len(missing)} of the model's {len(model.state_dict())} weights are not in it, or "
            f"in another shape, first {min(missing)}",
            "give the config of its own training run",
        )
