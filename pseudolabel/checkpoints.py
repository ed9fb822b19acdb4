"""Reading checkpoints safely and completely."""

import pickle
import struct
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

from pseudolabel.errors import DataError

# What reading a damaged or unsafe file raises.
UNREADABLE = (pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError)


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
