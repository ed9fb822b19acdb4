"""Sending functions that pickle refuses, such as lambdas, to worker processes."""

from __future__ import annotations

import importlib
import marshal
import pickle
import types
from collections.abc import Callable
from typing import Any

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Wrap a callable so that it can be pickled; calls and attributes go to it.

    A lambda or nested function is sent as its code, default values and closure, and runs with
    the globals of its module, which the receiving process imports. The two processes must run
    the same Python.
    """

    def __init__(self, obj: Any) -> None:
        # A wrapper never holds a wrapper, so that one level is all there can be.
        self._obj = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":
            raise AttributeError(name)
        return getattr(self._obj, name)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        try:
            return _from_pickle, (pickle.dumps(self._obj),)
        except (pickle.PicklingError, AttributeError, TypeError):
            if not isinstance(self._obj, types.FunctionType):
                raise
        function = self._obj
        cells = tuple(_sendable(cell.cell_contents) for cell in function.__closure__ or ())
        defaults = tuple(map(_sendable, function.__defaults__ or ()))
        keywords = {k: _sendable(v) for k, v in (function.__kwdefaults__ or {}).items()}
        code = marshal.dumps(function.__code__)
        return _from_code, (code, function.__module__, function.__name__, defaults, keywords, cells)


def _sendable(value: Any) -> Any:
    return PicklableWrapper(value) if isinstance(value, types.FunctionType) else value


def _from_pickle(data: bytes) -> PicklableWrapper:
    return PicklableWrapper(pickle.loads(data))


def _from_code(
    code: bytes, module: str, name: str, defaults: tuple, keywords: dict, cells: tuple
) -> PicklableWrapper:
    function = types.FunctionType(
        marshal.loads(code),
        vars(importlib.import_module(module)),
        name,
        defaults or None,
        tuple(types.CellType(value) for value in cells),
    )
    function.__kwdefaults__ = keywords or None
    return PicklableWrapper(function)
