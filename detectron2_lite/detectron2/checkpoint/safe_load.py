"""Reading weights without running code that a file may carry."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import IO, Any

import torch

__all__ = ["load_pickle", "load_torch"]

# What a pickled {name: ndarray} consists of. numpy moved its core between 1.x and 2.x, and files of
# both ages exist; Python 2 called builtins __builtin__ and copyreg copy_reg.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    *(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    ),
    *((m, "_frombuffer") for m in ("numpy.core.numeric", "numpy._core.numeric")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (module, name)
        for module in ("builtins", "__builtin__")
        for name in ("dict", "list", "tuple", "set", "str", "int", "float", "complex", "bytearray")
    ),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in _ALLOWED
        # Concrete dtypes such as numpy.dtypes.Float32DType are data only.
        if known or (module == "numpy.dtypes" and name.endswith("DType") and name.isidentifier()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def load_pickle(file: IO[bytes], name: str) -> Any:
    """Unpickle arrays and plain containers (latin1, as model-zoo files need it).

    Args:
        file: an open binary file. name: shown in errors.

    Raises:
        pickle.UnpicklingError: when the file refers to anything else.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(file.read()), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(
            f"{name}: {error}. Only arrays and plain containers are read from .pkl files. If you "
            "trust the file, convert its weights to a .pth with torch.save({'model': tensors})."
        ) from error


def load_torch(path: str) -> Mapping[str, Any]:
    """``torch.load`` onto the CPU, tensors and plain containers only.

    Raises:
        pickle.UnpicklingError: when the file holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(
            f"{path}: holds something else than tensors and plain containers, or is damaged. If "
            "you trust the file, re-save its tensors with torch.save({'model': tensors}). "
            f"Reason: {error}"
        ) from error
