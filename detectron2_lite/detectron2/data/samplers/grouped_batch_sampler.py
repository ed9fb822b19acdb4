"""Batches whose elements belong to one group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import BatchSampler, Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(BatchSampler):
    """Groups the indices of another sampler, in its order as far as possible.

    Args:
        sampler: yields indices. group_ids: the group of every index. Incomplete batches are
            dropped, so this is for infinite samplers.
    """

    def __init__(self, sampler: Sampler, group_ids: Sequence[int], batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"sampler must be a torch Sampler, got {type(sampler).__name__}")
        groups = np.asarray(group_ids)
        if groups.ndim != 1:
            raise ValueError("group_ids must be one-dimensional")
        self.batch_size, self.sampler, self.group_ids = batch_size, sampler, groups

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = {int(g): [] for g in np.unique(self.group_ids)}
        for index in self.sampler:
            group = int(self.group_ids[index])
            waiting[group].append(index)
            if len(waiting[group]) == self.batch_size:
                full, waiting[group] = waiting[group], []
                yield full

    def __len__(self) -> int:
        raise NotImplementedError("the length of GroupedBatchSampler is not well defined")
