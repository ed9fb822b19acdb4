"""What happens during training: a storage for scalars and pictures, and writers that show it."""

from __future__ import annotations

import datetime
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

from .file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

# A plain list, not a context variable: the trainer may write its metrics from another thread.
_ACTIVE: list[EventStorage] = []


def get_event_storage() -> EventStorage:
    """The storage of the innermost `with EventStorage()` block.

    Raises:
        AssertionError: there is none. Code that also runs outside training asks
            `has_event_storage()` first.
    """
    assert _ACTIVE, "get_event_storage() was called outside of a `with EventStorage()` block"
    return _ACTIVE[-1]


def has_event_storage() -> bool:
    """Whether a `with EventStorage()` block is active."""
    return bool(_ACTIVE)


class EventStorage:
    """Values by name and iteration; a context manager that makes itself the current one."""

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._history: defaultdict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    @property
    def iter(self) -> int:
        """Current iteration, 0-based while that iteration runs."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """Same as `iter`."""
        return self._iter

    def step(self) -> None:
        """Go to the next iteration; called once per iteration, by the trainer."""
        self._iter += 1

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Record a number.

        Args:
            name: prefixed by the current name scope.
            value: anything `float` accepts.
            smoothing_hint: whether writers should show a median rather than the last value.
            cur_iter: iteration to record it under; None for the current one.

        Raises:
            AssertionError: the name was used with the other hint before.
        """
        name = self._prefix + name
        at = cur_iter if cur_iter is not None else self._iter
        known = self._smoothing.setdefault(name, smoothing_hint)
        assert known == smoothing_hint, f"Scalar {name} was put with smoothing_hint={known} before"
        # torch warns when a tensor that still carries a graph becomes a number.
        value = float(value.detach() if isinstance(value, Tensor) else value)
        self._latest[name] = value, at
        self._history[name].update(value, iteration=at)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: Any
    ) -> None:
        """Record several numbers given as keywords; see `put_scalar`."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keep a picture until the next write.

        Args:
            img_name: title.
            img_tensor: (3, H, W) array or tensor: uint8, or float in [0, 1]; RGB.
        """
        picture = img_name, img_tensor, self._iter
        self._vis_data.append(picture)

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Keep a histogram of a tensor's values, of any shape, until the next write."""
        values = hist_tensor.detach().flatten().float()
        low, high = values.min().item(), values.max().item()
        counts = torch.histc(values, bins)
        edges = torch.linspace(low, high, bins + 1)
        self._histograms.append(
            {
                "tag": hist_name,
                "min": low,
                "max": high,
                "num": values.numel(),
                "sum": float(values.sum()),
                "sum_squares": float(values.square().sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """All recorded values of a scalar.

        Raises:
            KeyError: none was recorded under that name.
        """
        if name not in self._history:
            raise KeyError(f"No scalar named {name!r} was recorded")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Name -> history of every scalar."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Name -> (last value, iteration it was recorded at)."""
        return self._latest

    def smoothing_hints(self) -> dict[str, bool]:
        """Name -> the hint given with it."""
        return self._smoothing

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As `latest`, with the median of a window for scalars that asked to be smoothed.

        Args:
            window_size: length of the window in iterations (not in samples).
        """
        smoothed = {}
        for name, (value, at) in self._latest.items():
            if self._smoothing[name]:
                value = self._history[name].median(self.count_samples(name, window_size))
            smoothed[name] = (value, at)
        return smoothed

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values a scalar got in the `window_size` iterations up to its last one."""
        recorded = [at for _, at in self.history(name).values()[-window_size:]]
        return sum(at > recorded[-1] - window_size for at in recorded)

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything recorded inside by `name/`."""
        outer, self._prefix = self._prefix, name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def clear_images(self) -> None:
        """Forget the pictures; writers call it once they have shown them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms; writers call it once they have shown them."""
        self._histograms = []

    def __enter__(self) -> EventStorage:
        _ACTIVE.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert _ACTIVE[-1] is self, "EventStorage contexts must be left in reverse order"
        _ACTIVE.pop()


class EventWriter:
    """Base of objects that show the current storage's content."""

    def write(self) -> None:
        """Show what is new since the last call."""
        raise NotImplementedError

    def close(self) -> None:
        """Release files."""


class JSONWriter(EventWriter):
    """Appends scalars to a file, one JSON object per iteration and line."""

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """Open the file for appending.

        Args:
            json_file: path; its folder must exist.
            window_size: iterations to take the median over, see `latest_with_smoothing_hint`.
        """
        self._file = PathManager.open(json_file, "a")
        self._window = window_size
        self._written_up_to = -1

    def write(self) -> None:
        storage = get_event_storage()
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, at) in storage.latest_with_smoothing_hint(self._window).items():
            # Scalars that come with a longer period than the writer's are written once only.
            if at > self._written_up_to:
                rows[at][name] = float(value)
        for at in sorted(rows):
            self._file.write(json.dumps({**rows[at], "iteration": at}, sort_keys=True) + "\n")
            self._written_up_to = at
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorboardXWriter(EventWriter):
    """Writes scalars, pictures and histograms for TensorBoard; no file before the first of them."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """Remember where to write.

        Args:
            log_dir: folder for the event files.
            window_size: iterations to take the median over.
            kwargs: for `torch.utils.tensorboard.SummaryWriter`.
        """
        self._options = {"log_dir": log_dir, **kwargs}
        self._window = window_size
        self._written_up_to = -1

    @cached_property
    def _writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(**self._options)

    def write(self) -> None:
        storage = get_event_storage()
        newest = self._written_up_to
        for name, (value, at) in storage.latest_with_smoothing_hint(self._window).items():
            if at > self._written_up_to:
                self._writer.add_scalar(name, value, at)
                newest = max(newest, at)
        self._written_up_to = newest
        pictures, histograms = storage._vis_data, storage._histograms
        for picture in pictures:
            self._writer.add_image(*picture)
        for histogram in histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_images()
        storage.clear_histograms()

    def close(self) -> None:
        opened = vars(self).get("_writer")
        if opened is not None:
            opened.close()


class CommonMetricPrinter(EventWriter):
    """Logs progress in one line: time left, losses, seconds per iteration, rate, memory."""

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """Prepare the printer.

        Args:
            max_iter: length of the training, for the time left; None leaves that out.
            window_size: iterations to take medians and means over.
        """
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window = window_size
        self._last_write: tuple[int, float] | None = None

    def _time_left(self, storage: EventStorage) -> str | None:
        if self._max_iter is None:
            return None
        remaining = self._max_iter - storage.iter - 1
        previous, self._last_write = self._last_write, (storage.iter, time.perf_counter())
        if "time" in storage.histories():
            # The median forgives the odd evaluation or checkpoint.
            seconds = remaining * storage.histories()["time"].median(1000)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        elif previous is not None and storage.iter > previous[0]:
            elapsed = self._last_write[1] - previous[1]
            seconds = elapsed / (storage.iter - previous[0]) * remaining
        else:
            return None
        whole = max(int(seconds), 0)
        return str(datetime.timedelta(seconds=whole))

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            # The hook's last call comes when all iterations are over.
            return
        self.logger.info("  ".join(self._fields(storage)))

    def _fields(self, storage: EventStorage) -> list[str]:
        fields = []
        left = self._time_left(storage)
        if left is not None:
            fields.append(f"eta: {left}")
        fields.append(f"iter: {storage.iter}")
        histories = storage.histories()

        def window(name: str) -> int:
            return storage.count_samples(name, self._window)

        # Losses first, then what a model marked as worth printing.
        for marker in ("loss", "[metric]"):
            fields.extend(
                f"{name}: {history.median(window(name)):.4g}"
                for name, history in histories.items()
                if marker in name
            )
        for name in ("time", "data_time"):
            if name in histories:
                fields.append(f"{name}: {histories[name].avg(window(name)):.4f}")
                fields.append(f"last_{name}: {histories[name].latest():.4f}")
        if "lr" in histories:
            fields.append(f"lr: {histories['lr'].latest():.5g}")
        if torch.cuda.is_available():
            fields.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        return fields
