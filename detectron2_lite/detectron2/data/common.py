"""Dataset wrappers between a list of dicts and a DataLoader."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset, IterableDataset, get_worker_info

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetFromList",
    "MapDataset",
    "ToIterableDataset",
    "set_default_dataset_from_list_serialize_method",
]

logger = logging.getLogger(__name__)


class MapDataset(Dataset):
    """Applies a function to the elements of a map-style or iterable dataset.

    The function may return None to reject an element: a map-style dataset then gives another,
    randomly chosen one (and remembers), an iterable one goes on to its next.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        if isinstance(dataset, IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple:
        return self._dataset, self._map_func

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        # Wrapped, a lambda can go to workers, too.
        self._map_func = PicklableWrapper(map_func)
        self._dataset = dataset
        self._usable = set(range(len(dataset)))
        self._random = random.Random(42)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> Any:
        rejected = 0
        current = int(idx)
        while True:
            element = self._map_func(self._dataset[current])
            if element is not None:
                self._usable.add(current)
                return element
            rejected += 1
            self._usable.discard(current)
            if not self._usable:
                raise RuntimeError("the mapper returned None for every element of the dataset")
            if rejected >= 3:
                logger.warning("The mapper rejected %d elements in a row (from %s)", rejected, idx)
            # Sorted, or the draw would depend on the history of the set.
            current = self._random.choice(sorted(self._usable))


class _MapIterableDataset(IterableDataset):
    def __init__(self, dataset: Iterable, map_func: Callable[[Any], Any]) -> None:
        self._map_func = PicklableWrapper(map_func)
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        mapped = map(self._map_func, self._dataset)
        return (element for element in mapped if element is not None)


class _PickledList:
    """A list kept as one block of bytes.

    Worker processes share its memory: touching Python objects changes their reference counts,
    and so would copy every page of a plain list into every worker.
    """

    def __init__(self, elements: Sequence) -> None:
        parts = [pickle.dumps(element, protocol=-1) for element in elements]
        self._ends = torch.from_numpy(np.cumsum([len(p) for p in parts], dtype=np.int64))
        self._bytes = torch.from_numpy(np.frombuffer(bytearray(b"".join(parts)), dtype=np.uint8))
        logger.info("%d elements serialized, %.2f MiB", len(parts), len(self._bytes) / 2**20)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, idx: int) -> Any:
        idx = range(len(self))[idx]
        start = 0 if idx == 0 else int(self._ends[idx - 1])
        return pickle.loads(memoryview(self._bytes[start : int(self._ends[idx])].numpy()))


_default_serializer: Callable[[Sequence], Sequence] = _PickledList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(
    new: Callable[[Sequence], Sequence],
) -> Iterator[None]:
    """Within the context, ``DatasetFromList(serialize=True)`` uses another list-like class."""
    global _default_serializer
    old, _default_serializer = _default_serializer, new
    try:
        yield
    finally:
        _default_serializer = old


class DatasetFromList(Dataset):
    """A list as a map-style dataset.

    Args:
        copy: deep-copy elements on access, so that they may be modified (needless, and not
            done, when serialized).
        serialize: keep the elements as bytes that processes share; or a function from a list
            to a list-like object.
    """

    def __init__(
        self,
        lst: Sequence,
        copy: bool = True,
        serialize: bool | Callable[[Sequence], Sequence] = True,
    ) -> None:
        self._copy = copy and not serialize
        if callable(serialize):
            self._lst = serialize(lst)
        else:
            self._lst = _default_serializer(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, idx: int) -> Any:
        element = self._lst[idx]
        return copy.deepcopy(element) if self._copy else element


class ToIterableDataset(IterableDataset):
    """A map-style dataset read in a sampler's order.

    Args:
        shard_sampler: with several loader workers, each yields its share of the order; switch off
            if the sampler does that itself.
        shard_chunk_size: so many consecutive indices go to one worker at a time.

    Raises:
        TypeError: for an iterable dataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Iterable[int],
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise TypeError("ToIterableDataset needs a map-style dataset")
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self) -> Iterator[Any]:
        indices = iter(self.sampler)
        worker = get_worker_info()
        if self.shard_sampler and worker is not None and worker.num_workers > 1:
            indices = _every_nth_chunk(
                indices, self.shard_chunk_size, worker.id, worker.num_workers
            )
        for index in indices:
            yield self.dataset[index]

    def __len__(self) -> int:
        return len(self.sampler)


def _every_nth_chunk(items: Iterable, size: int, offset: int, step: int) -> Iterator[Any]:
    iterator = iter(items)
    for number in itertools.count():
        chunk = list(itertools.islice(iterator, size))
        if not chunk:
            return
        if number % step == offset:
            yield from chunk


class AspectRatioGroupedDataset(IterableDataset):
    """Batches of all-landscape or all-portrait images, so that padding wastes less.

    Args:
        dataset: iterable of dicts with "width" and "height" (pixels). An incomplete batch at the
            end is dropped.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        # Portrait, landscape. As upstream's, they outlive an iteration: what one leaves waiting
        # is in a batch of the next, so that an endless stream loses nothing when re-entered.
        self._buckets: list[list[dict]] = [[], []]

    def __iter__(self) -> Iterator[list[dict]]:
        for element in self.dataset:
            shape = int(element["width"] > element["height"])
            self._buckets[shape].append(element)
            if len(self._buckets[shape]) == self.batch_size:
                full, self._buckets[shape] = self._buckets[shape], []
                yield full
