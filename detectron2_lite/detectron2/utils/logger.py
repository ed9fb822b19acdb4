"""Logging: one set-up for console and file, and messages that do not repeat themselves."""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import time
from collections import Counter
from functools import lru_cache
from typing import Any

import torch
from tabulate import tabulate
from termcolor import colored

from .file_io import PathManager

__all__ = [
    "create_small_table",
    "log_every_n",
    "log_every_n_seconds",
    "log_first_n",
    "setup_logger",
]

_DATES = "%m/%d %H:%M:%S"
_PLAIN = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
_LEVEL_COLOURS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class _Formatter(logging.Formatter):
    """Shortens the root of logger names and, on request, colours the level."""

    def __init__(self, root: str, short: str, colour: bool) -> None:
        head = "[%(asctime)s %(name)s]: "
        pattern = colored(head, "green", force_color=True) + "%(message)s" if colour else _PLAIN
        super().__init__(pattern, datefmt=_DATES)
        self._root, self._short, self._colour = root, short, colour

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        original = record.name
        if original == self._root or original.startswith(self._root + "."):
            record.name = (self._short + original[len(self._root) :]).lstrip(".")
        text = super().formatMessage(record)
        # Other handlers get the same record.
        record.name = original
        if self._colour and record.levelno in _LEVEL_COLOURS:
            tint = _LEVEL_COLOURS[record.levelno]
            text = f"{colored(record.levelname, tint, force_color=True)} {text}"
        return text


@lru_cache
def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Give a logger its console and file handlers. Repeated equal calls add nothing.

    Args:
        output: file (when it ends in .txt or .log) or folder (then `log.txt` in it); None for
            no file. Ranks other than 0 append `.rank<i>` to it.
        distributed_rank: only rank 0 writes to the console.
        color: colour the console if it is a terminal.
        name: root logger of the program; all loggers below it share the handlers.
        abbrev_name: what to print instead of `name`; "d2" for detectron2, "" for nothing.
        enable_propagation: whether Python's root logger gets the messages as well.
        configure_stdout: whether to write to the console at all.

    Returns:
        The logger.
    """
    short = abbrev_name
    if short is None:
        short = {"detectron2": "d2"}.get(name, name)
    streams = []
    if configure_stdout and distributed_rank == 0:
        streams.append((sys.stdout, color and sys.stdout.isatty()))
    if output is not None:
        streams.append((_log_stream(_log_path(output, distributed_rank)), False))

    logger = logging.getLogger(name)
    logger.propagate = enable_propagation
    logger.setLevel(logging.DEBUG)
    for stream, colourful in streams:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_Formatter(name, short, colourful))
        handler.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    return logger


def _log_path(output: str, rank: int) -> str:
    """File for `setup_logger`'s `output`; its folder is made."""
    file = output
    if not output.endswith((".txt", ".log")):
        file = os.path.join(output, "log.txt")
    if rank > 0:
        file = f"{file}.rank{rank}"
    PathManager.mkdirs(os.path.dirname(file) or ".")
    return file


@lru_cache
def _log_stream(path: str) -> Any:
    """Open a log file once, however many loggers write to it, and close it at exit."""
    stream = PathManager.open(path, "a")
    atexit.register(stream.close)
    return stream


_counts: Counter = Counter()
_last_logged: dict[tuple, float] = {}


def _caller() -> tuple[str, tuple[str, int]]:
    """Module and (file, line) of the code that called the function which calls this one."""
    frame = sys._getframe(2)
    module = frame.f_globals.get("__name__", "__main__")
    return (
        "detectron2" if module == "__main__" else module,
        (frame.f_code.co_filename, frame.f_lineno),
    )


def _emit(name: str, level: int, message: str) -> None:
    logging.getLogger(name).log(level, message)


def log_first_n(
    lvl: int,
    msg: str,
    n: int = 1,
    *,
    name: str | None = None,
    key: str | tuple[str, ...] = "caller",
) -> None:
    """Log only the first n times.

    Args:
        lvl: level, such as `logging.WARNING`.
        msg: text.
        n: how often.
        name: logger; None for the caller's module.
        key: what counts as the same: "caller" (the line of code), "message", or both.

    Raises:
        ValueError: the key is neither.
    """
    module, site = _caller()
    kinds = (key,) if isinstance(key, str) else tuple(key)
    if not kinds or not set(kinds) <= {"caller", "message"}:
        raise ValueError(f"key must be made of 'caller' and 'message', got {key!r}")
    identity = tuple(site if kind == "caller" else msg for kind in kinds)
    _counts[identity] += 1
    if _counts[identity] <= n:
        _emit(name or module, lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first, and then every n-th, time that this line of code is reached."""
    module, site = _caller()
    key = ("every", site)
    earlier = _counts[key]
    _counts[key] = earlier + 1
    if earlier % n == 0:
        _emit(name or module, lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log at most once in n seconds from this line of code."""
    module, site = _caller()
    key, now = ("seconds", site), time.monotonic()
    if now - _last_logged.get(key, -math.inf) >= n:
        _emit(name or module, lvl, msg)
        _last_logged[key] = now


def create_small_table(small_dict: dict[str, Any]) -> str:
    """A table of one row, the keys as its head; for a handful of numbers."""
    centred = dict.fromkeys(("stralign", "numalign"), "center")
    row = tuple(small_dict.values())
    return tabulate([row], headers=tuple(small_dict), floatfmt=".3f", tablefmt="pipe", **centred)


def _log_api_usage(identifier: str) -> None:
    torch._C._log_api_usage_once("detectron2." + identifier)
