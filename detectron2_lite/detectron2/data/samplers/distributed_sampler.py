"""Samplers that share one random order between ranks.

Training samplers are infinite: all ranks draw the same stream of indices from a shared seed, and
rank r of w takes elements r, r + w, r + 2w, ... of it.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from torch.utils.data import Sampler

__all__ = [
    "InferenceSampler",
    "RandomSubsetTrainingSampler",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
]

logger = logging.getLogger(__name__)


def _shared_seed(seed: int | None) -> int:
    return comm.shared_random_seed() if seed is None else int(seed)


class _InfiniteSampler(Sampler):
    """The rank's share of an endless repetition of epochs."""

    _shuffle: bool = True
    _seed: int = 0

    def _rank_and_world(self) -> tuple[int, int]:
        return comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        rank, world = self._rank_and_world()
        stream = self._infinite_indices()
        return itertools.islice(stream, rank, None, world)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            yield from self._epoch(generator).tolist()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        raise NotImplementedError


class TrainingSampler(_InfiniteSampler):
    """Each epoch is a permutation of ``range(size)`` (or the range itself).

    Args:
        seed: equal on all ranks; None agrees on a random one.

    Raises:
        ValueError: when size is not a positive integer.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int) or size <= 0:
            raise ValueError(f"TrainingSampler needs a positive dataset size, got {size!r}")
        self._size = size
        self._shuffle = shuffle
        self._seed = _shared_seed(seed)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        if self._shuffle:
            return torch.randperm(self._size, generator=generator)
        return torch.arange(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """A :class:`TrainingSampler` over a fixed random part of the dataset.

    Args:
        subset_ratio: share of the dataset, in (0, 1].
        seed_shuffle: as ``seed`` there. seed_subset: chooses the part; equal on all ranks.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size=size, shuffle=shuffle, seed=seed_shuffle)
        if not 0.0 < subset_ratio <= 1.0:
            raise ValueError(f"subset_ratio must be in (0, 1], got {subset_ratio}")
        self._size_subset = int(size * subset_ratio)
        if self._size_subset == 0:
            raise ValueError(f"subset_ratio {subset_ratio} leaves nothing of {size} images")
        chooser = torch.Generator().manual_seed(_shared_seed(seed_subset))
        self._indexes_subset = torch.randperm(size, generator=chooser)[: self._size_subset]
        logger.info("Training on %d of %d images", self._size_subset, size)

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        if not self._shuffle:
            return self._indexes_subset
        order = torch.randperm(self._size_subset, generator=generator)
        return self._indexes_subset[order]


class RepeatFactorTrainingSampler(_InfiniteSampler):
    """Repeats images with rare categories (LVIS, Gupta et al. 2019, section B.2).

    An image with factor r appears floor(r) or ceil(r) times an epoch, drawn anew each epoch so
    that r is the mean.

    Args:
        repeat_factors: (images,) float tensor. seed: as in :class:`TrainingSampler`.
    """

    def __init__(
        self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None
    ) -> None:
        self._shuffle = shuffle
        self._seed = _shared_seed(seed)
        self._whole = torch.trunc(repeat_factors)
        self._fraction = repeat_factors - self._whole

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: Sequence[dict[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """An image's factor: the largest max(1, sqrt(t / f(c))) over its categories c.

        Args:
            dataset_dicts: dicts with "annotations".
            repeat_thresh: t; categories in a larger share of images are not repeated.
            sqrt: take the root.

        Returns:
            (images,) float32; 1 for images without annotations. f(c) is the share of images that
            contain category c.
        """
        present = [{a["category_id"] for a in d["annotations"]} for d in dataset_dicts]
        images_with = Counter(itertools.chain.from_iterable(present))

        def factor(category: int) -> float:
            ratio = repeat_thresh * len(dataset_dicts) / images_with[category]
            return max(1.0, ratio**0.5 if sqrt else ratio)

        return torch.tensor(
            [max((factor(c) for c in categories), default=1.0) for categories in present],
            dtype=torch.float32,
        )

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        extra = torch.rand(len(self._fraction), generator=generator) < self._fraction
        repeats = (self._whole + extra.float()).long()
        indices = torch.arange(len(repeats)).repeat_interleave(repeats)
        if not self._shuffle:
            return indices
        return indices[torch.randperm(len(indices), generator=generator)]


class InferenceSampler(Sampler):
    """Each rank gets a contiguous part of ``range(size)`` once; sizes differ by at most one."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        base, extra = divmod(total_size, world_size)
        begin = rank * base + min(rank, extra)
        return range(begin, begin + base + (rank < extra))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
