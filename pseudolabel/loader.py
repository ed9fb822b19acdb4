"""A training loader in which everything random is a pure function of (seed, sample position).

Position p is the p-th sample that a run ever draws. It fixes the record (through the epoch's
permutation) and the augmentation (through the seed of the mapper), so a run that is resumed at
iteration k sees exactly what an uninterrupted run sees, with any number of workers.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pseudolabel.errors import DataError


def mix_seed(*parts: int) -> int:
    """One 32-bit seed from several integers; a change in any of them gives an unrelated seed."""
    return int(np.random.SeedSequence([int(part) % 2**63 for part in parts]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch (all devices) with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seeds Python, numpy and torch on the CPU inside the block and puts their states back after.

    With loader workers = 0 the mapper runs in the training process; without this, augmentation
    would advance the generator that the model samples its proposals from.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class EpochOrder:
    """Maps a sample position to a record index: a fresh permutation each epoch.

    Args:
        size: number of records.
        seed: of the run.
    """

    def __init__(self, size: int, seed: int):
        if size <= 0:
            raise DataError("DATASETS.TRAIN", "no usable training record", "check the filters")
        self.size, self.seed = size, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._permutation = epoch, generator.permutation(self.size)
        return int(self._permutation[offset])


class PositionDataset(Dataset):
    """Map-style data set indexed by sample position.

    Args:
        records: Detectron2 dataset dicts.
        mapper: record -> model input; may use the global generators.
        order: position -> record index.
        seed: of the run.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable, order: EpochOrder, seed: int):
        self.records, self.mapper, self.order, self.seed = records, mapper, order, seed

    def __getitem__(self, position: int) -> dict:
        record = self.records[self.order(position)]
        with isolated_rng(mix_seed(self.seed, position)):
            try:
                return self.mapper(record)
            except (OSError, SyntaxError) as error:
                raise DataError(
                    record.get("file_name", "?"),
                    f"the image cannot be read ({error})",
                    "replace the file, or drop its record from the JSON",
                ) from error


class PositionBatches(Sampler):
    """Endless batches of positions, from batch `start` on.

    Args:
        batch_size: positions per batch on this rank.
        group_of: position -> small integer; a batch holds one group only (wide / tall images).
            None puts no constraint.
        rank, world_size: this rank takes positions rank, rank + world_size, ...
    """

    def __init__(
        self,
        batch_size: int,
        group_of: Callable[[int], int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.batch_size, self.group_of = batch_size, group_of
        self.rank, self.world_size = rank, world_size
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        # The first `start` batches are replayed, not computed: grouping depends on all positions
        # before, and replaying them costs microseconds each since no image is read.
        buckets: dict[int, list[int]] = {}
        position, batches = self.rank, 0
        while True:
            group = self.group_of(position) if self.group_of else 0
            bucket = buckets.setdefault(group, [])
            bucket.append(position)
            position += self.world_size
            if len(bucket) == self.batch_size:
                buckets[group] = []
                batches += 1
                if batches > self.start:
                    yield bucket


class TrainLoader:
    """Endless iterable of batches (lists of mapped dicts) that can be moved to an iteration.

    Args:
        records: Detectron2 dataset dicts.
        mapper: record -> model input.
        batch_size: on this rank.
        seed: of the run.
        num_workers: loader processes; the batches do not depend on it.
        group_by_aspect: keep wide and tall images in batches of their own.
        rank, world_size: of this process.
    """

    def __init__(
        self,
        records: Sequence[dict],
        mapper: Callable,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        group_by_aspect: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        order = EpochOrder(len(records), seed)

        def is_wide(position: int) -> int:
            record = records[order(position)]
            return int(record["width"] > record["height"])

        self.dataset = PositionDataset(records, mapper, EpochOrder(len(records), seed), seed)
        self.batches = PositionBatches(
            batch_size, is_wide if group_by_aspect else None, rank, world_size
        )
        self.last_batch: list[dict] = []
        self._loader = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=num_workers,
            collate_fn=_as_list,
            worker_init_fn=_one_thread,
            # Starting an iterator draws a number. From the global generator, that would make the
            # first iteration after a resume differ from the same one in an unbroken run.
            generator=torch.Generator(),
        )

    def seek(self, iteration: int) -> None:
        """The next iterator starts with the batch of `iteration`."""
        self.batches.start = iteration

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            self.last_batch = batch
            yield batch


def _as_list(batch: list[dict]) -> list[dict]:
    return batch


def _one_thread(worker_id: int) -> None:
    torch.set_num_threads(1)
