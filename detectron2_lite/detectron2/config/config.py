"""`CfgNode`, the global config and the `configurable` decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode as _FvcoreCfgNode
from yacs.config import CfgNode as _YacsCfgNode

from ..utils.env import not_in_lite
from ..utils.file_io import PathManager

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]

CONFIG_VERSION = 2


class CfgNode(_FvcoreCfgNode):
    """A yacs config tree whose files may inherit from each other through `_BASE_`."""

    @classmethod
    def _open_cfg(cls, filename: str) -> Any:
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Merge a YAML file, and the files that its `_BASE_` names, into this tree.

        Args:
            cfg_filename: path or URL of the YAML file; `_BASE_` is relative to it.
            allow_unsafe: as upstream, lets YAML tags construct Python objects (with a
                warning). Pass False for a file that you have not read: such tags run code.

        Raises:
            FileNotFoundError: the file does not exist.
            KeyError: the file has a key that this tree lacks.
            NotInLiteError: the file is in the format of before 2019 (VERSION 1).
        """
        if not PathManager.isfile(cfg_filename):
            raise FileNotFoundError(f"Config file {cfg_filename!r} does not exist")
        loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe) or {}
        version = loaded.get("VERSION", CONFIG_VERSION)
        if version < CONFIG_VERSION:
            not_in_lite(f"Upgrading {cfg_filename!r} from config VERSION {version}")
        if version > CONFIG_VERSION:
            raise ValueError(
                f"{cfg_filename!r} has VERSION {version}, newer than {CONFIG_VERSION}: update"
            )
        self.merge_from_other_cfg(type(self)(loaded))


def get_cfg() -> CfgNode:
    """Return a fresh, editable copy of the default config."""
    from .defaults import _C

    return _C.clone()


global_cfg = CfgNode()


def set_global_cfg(cfg: CfgNode) -> None:
    """Make `detectron2.config.global_cfg` hold the same values as `cfg`."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(
    init_func: Callable[..., Any] | None = None,
    *,
    from_config: Callable[..., dict[str, Any]] | None = None,
) -> Callable[..., Any]:
    """Let an `__init__` or a function be called with a config in place of its arguments.

    On a class, decorate `__init__` and give the class a classmethod
    `from_config(cls, cfg, ...)` that returns the dict of arguments. On a function, pass that
    mapping as `@configurable(from_config=mapping)`. A call whose first argument (or `cfg=`) is
    a config goes through the mapping; keyword arguments that the mapping does not take
    override its result. Any other call is passed on untouched.

    Raises (when called):
        AttributeError: the class has no `from_config`.
        TypeError: `from_config` is not a classmethod, its first argument is not named `cfg`,
            or an argument does not fit.
    """
    if init_func is not None:
        if from_config is not None or getattr(init_func, "__name__", "") != "__init__":
            raise TypeError(
                "Use @configurable on an __init__, or @configurable(from_config=...) on a function"
            )
        return _configurable_init(init_func)
    if from_config is None:
        return configurable
    if not inspect.isfunction(from_config):
        raise TypeError("@configurable(from_config=...) takes a function")
    return functools.partial(_configurable_function, mapping=from_config)


def _configurable_init(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        mapping = getattr(cls, "from_config", None)
        if mapping is None:
            raise AttributeError(f"{cls.__name__} uses @configurable but defines no from_config")
        if not inspect.ismethod(mapping):
            raise TypeError(f"{cls.__name__}.from_config must be a classmethod")
        if _has_config(args, kwargs):
            args, kwargs = (), _map_arguments(mapping, args, kwargs)
        init(self, *args, **kwargs)

    return construct


def _configurable_function(
    function: Callable[..., Any], mapping: Callable[..., dict[str, Any]]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _has_config(args, kwargs):
            args, kwargs = (), _map_arguments(mapping, args, kwargs)
        return function(*args, **kwargs)

    call.from_config = mapping
    return call


def _has_config(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    candidate = args[0] if args else kwargs.get("cfg")
    # An OmegaConf tree counts as a config too; the name is compared so that OmegaConf, which
    # this build does without, need not be installed.
    return isinstance(candidate, _YacsCfgNode) or type(candidate).__name__ == "DictConfig"


def _map_arguments(
    mapping: Callable[..., dict[str, Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Run `mapping` on what it accepts; the remaining keywords override its result."""
    parameters = inspect.signature(mapping).parameters
    owner = getattr(mapping, "__qualname__", repr(mapping))
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"The first argument of {owner} must be named 'cfg'")
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for name, value in kwargs.items():
        (accepted if takes_any or name in parameters else overrides)[name] = value
    return {**mapping(*args, **accepted), **overrides}
