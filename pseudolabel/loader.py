"""A training loader in which everything random is a pure function of (seed, sample position).

Position p is the p-th sample that a run ever draws. It fixes the record (through the epoch's
permutation) and the augmentation (through the seed of the mapper), so a run that is resumed at
iteration k sees exactly what an uninterrupted run sees, with any number of workers.
"""

import random
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
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


class GroupedOrder:
    """Maps a sample position to a record index; neighbours share a group, such as an image.

    Positions 0 .. n - 1, n .. 2n - 1 and so on are blocks. In each epoch the records of every
    group are shuffled and cut into blocks; what remains of the groups (fewer than n records each)
    makes up further blocks, group after group; then the blocks are shuffled. So every record
    occurs once in an epoch, whatever the size of its group. Only where n does not divide the number
    of records, up to n - 1 of them occur once more.

    Args:
        groups: of each record.
        size: n, records of a block.
        seed: of the run.

    Raises:
        DataError: there is no record.
    """

    def __init__(self, groups: Sequence[Hashable], size: int, seed: int):
        if not groups:
            raise DataError("DATASETS.TRAIN", "no usable training record", "check the filters")
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        self._group = np.array([numbers[group] for group in groups])
        self._counts = np.bincount(self._group)
        self.size, self.seed = size, seed
        self._length = -(-len(groups) // size) * size
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """The record indices of an epoch in their order, int64."""
        generator = np.random.default_rng([self.seed, epoch])
        shuffled = generator.permutation(len(self._group))
        place_of_group = generator.permutation(len(self._counts))
        places = place_of_group[self._group[shuffled]]
        together = shuffled[np.argsort(places, kind="stable")]
        counts = self._counts[np.argsort(place_of_group)]
        starts = np.repeat(counts.cumsum() - counts, counts)
        whole = np.repeat(counts // self.size * self.size, counts)
        in_whole_block = np.arange(len(together)) - starts < whole
        rest = together[~in_whole_block]
        again = np.resize(shuffled, -len(rest) % self.size)
        order = np.concatenate([together[in_whole_block], rest, again])
        return generator.permutation(order.reshape(-1, self.size)).ravel()

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self._length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.epoch_indices(epoch)
        return int(self._order[offset])


class RepeatFactorOrder:
    """Maps a sample position to a record index where records are repeated (Gupta et al. 2019).

    Record i occurs floor(r_i) times in an epoch, and once more with probability r_i - floor(r_i).
    Both this rounding and the permutation are drawn anew in each epoch, from (seed, epoch) alone.

    Args:
        factors: r_i >= 0 per record.
        seed: of the run.

    Raises:
        DataError: there is no record, or a factor is negative or not finite.
    """

    def __init__(self, factors: Sequence[float], seed: int):
        factors = np.asarray(factors, dtype=np.float64)
        if not (np.isfinite(factors).all() and (factors >= 0).all() and factors.sum() > 0):
            raise DataError(
                "DATASETS.TRAIN",
                "the repeat factors are not finite numbers >= 0 with a sum > 0",
                "check the filters and DATALOADER.REPEAT_THRESHOLD",
            )
        self.seed = seed
        self._whole = np.floor(factors).astype(np.int64)
        self._part = factors - self._whole
        # Position at which each epoch starts; as far as it has been asked for.
        self._starts = [0]
        self._recent: dict[int, np.ndarray] = {}

    def epoch_indices(self, epoch: int) -> np.ndarray:
        """The record indices of an epoch in their order, int64."""
        generator = np.random.default_rng([self.seed, epoch])
        counts = self._whole + (generator.random(len(self._part)) < self._part)
        return generator.permutation(np.repeat(np.arange(len(counts)), counts))

    def __call__(self, position: int) -> int:
        while self._starts[-1] <= position:
            self._starts.append(self._starts[-1] + len(self._indices(len(self._starts) - 1)))
        epoch = bisect_right(self._starts, position) - 1
        return int(self._indices(epoch)[position - self._starts[epoch]])

    def _indices(self, epoch: int) -> np.ndarray:
        # Two epochs, since a batch of one aspect may wait across the border.
        if epoch not in self._recent:
            self._recent = dict(list(self._recent.items())[-1:])
            self._recent[epoch] = self.epoch_indices(epoch)
        return self._recent[epoch]


def category_repeat_factors(
    records: Sequence[dict], threshold: float, sqrt: bool = True
) -> np.ndarray:
    """Repeat factor of each image: the largest of its categories'.

    A category in the share f of the images has the factor max(1, sqrt(t / f)), or max(1, t / f).

    Args:
        records: Detectron2 dataset dicts.
        threshold: t; a category rarer than this is repeated.
        sqrt: take the square root.

    Returns:
        float64 (len(records),), all >= 1; 1 for an image without annotations.
    """
    contents = [{a["category_id"] for a in record["annotations"]} for record in records]
    images = Counter(category for content in contents for category in content)
    ratios = {key: threshold * len(records) / count for key, count in images.items()}
    factors = {key: max(1.0, ratio**0.5 if sqrt else ratio) for key, ratio in ratios.items()}
    return np.array(
        [max((factors[key] for key in content), default=1.0) for content in contents],
        dtype=np.float64,
    )


class PositionDataset(Dataset):
    """Map-style data set indexed by sample position.

    Args:
        records: Detectron2 dataset dicts.
        mapper: record -> model input; may use the global generators. It names the images that it
            cannot read by a DataError (see `mapper.CheckedMapper`).
        order: position -> record index.
        seed: of the run.
    """

    def __init__(
        self, records: Sequence[dict], mapper: Callable, order: Callable[[int], int], seed: int
    ):
        self.records, self.mapper, self.order, self.seed = records, mapper, order, seed

    def __getitem__(self, position: int) -> dict:
        record = self.records[self.order(position)]
        with isolated_rng(mix_seed(self.seed, position)):
            return self.mapper(record)


class PositionBatches(Sampler):
    """Endless batches of positions, from batch `start` on.

    Args:
        batch_size: positions per batch on this rank.
        group_of: position -> small integer; a batch holds one group only (wide / tall images).
            None puts no constraint.
        rank, world_size: this rank takes blocks rank, rank + world_size, ...
        block: positions that stay together in a batch; it divides `batch_size`.
    """

    def __init__(
        self,
        batch_size: int,
        group_of: Callable[[int], int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        block: int = 1,
    ):
        self.batch_size, self.group_of = batch_size, group_of
        self.rank, self.world_size, self.block = rank, world_size, block
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        # The first `start` batches are replayed, not computed: grouping depends on all positions
        # before, and replaying them costs microseconds each since no image is read.
        buckets: dict[int, list[int]] = {}
        position, batches = self.rank * self.block, 0
        while True:
            group = self.group_of(position) if self.group_of else 0
            bucket = buckets.setdefault(group, [])
            bucket.extend(range(position, position + self.block))
            position += self.world_size * self.block
            if len(bucket) == self.batch_size:
                buckets[group] = []
                batches += 1
                if batches > self.start:
                    yield bucket


class SeekableLoader:
    """Endless iterable of batches (lists of samples) that can be moved to an iteration.

    Args:
        dataset: position -> sample.
        batches: endless batches of positions; those before its `start` are left out.
        num_workers: loader processes; the batches do not depend on it.
        batches_per_iteration: that the training takes for one step.
    """

    def __init__(
        self, dataset: Dataset, batches: Sampler, num_workers: int, batches_per_iteration: int
    ):
        self.dataset, self.batches = dataset, batches
        self.batches_per_iteration = batches_per_iteration
        self._recent: deque[list[dict]] = deque(maxlen=batches_per_iteration)
        self._loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_as_list,
            worker_init_fn=_one_thread,
            # Starting an iterator draws a number. From the global generator, that would make the
            # first iteration after a resume differ from the same one in an unbroken run.
            generator=torch.Generator(),
        )

    def seek(self, iteration: int) -> None:
        """The next iterator starts with the first batch of `iteration`."""
        self.batches.start = iteration * self.batches_per_iteration

    @property
    def last_samples(self) -> list[dict]:
        """The samples of the last batches, as many batches as an iteration takes."""
        return [sample for batch in self._recent for sample in batch]

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in self._loader:
            self._recent.append(batch)
            yield batch


class TrainLoader(SeekableLoader):
    """Batches of mapped records.

    Args:
        records: Detectron2 dataset dicts.
        mapper: record -> model input.
        batch_size: samples of a batch on this rank.
        seed: of the run.
        num_workers: loader processes; the batches do not depend on it.
        group_by_aspect: keep wide and tall images in batches of their own.
        repeat_factors: how often each record occurs in an epoch, on average; None for once.
        samples_per_image: records of one image that stand side by side in a batch, as far as it
            has as many (`GroupedOrder`); it divides `batch_size`.
        batches_per_iteration: that the training takes for one step.
        rank, world_size: of this process.

    Raises:
        ValueError: several samples per image together with grouping or repeating.
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
        repeat_factors: Sequence[float] | None = None,
        samples_per_image: int = 1,
        batches_per_iteration: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        if samples_per_image > 1 and (group_by_aspect or repeat_factors is not None):
            raise ValueError(
                "several samples per image exclude grouping by aspect and repeat factors"
            )

        def new_order() -> Callable[[int], int]:
            if repeat_factors is not None:
                return RepeatFactorOrder(repeat_factors, seed)
            if samples_per_image > 1:
                images = [record["file_name"] for record in records]
                return GroupedOrder(images, samples_per_image, seed)
            return EpochOrder(len(records), seed)

        # One for the sampler here, one for the data set, which may be copied into workers.
        order = new_order()

        def is_wide(position: int) -> int:
            record = records[order(position)]
            return int(record["width"] > record["height"])

        dataset = PositionDataset(records, mapper, new_order(), seed)
        batches = PositionBatches(
            batch_size, is_wide if group_by_aspect else None, rank, world_size, samples_per_image
        )
        super().__init__(dataset, batches, num_workers, batches_per_iteration)


def _as_list(batch: list[dict]) -> list[dict]:
    return batch


def _one_thread(worker_id: int) -> None:
    torch.set_num_threads(1)
