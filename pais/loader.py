"""Batches of labelled and unlabelled images in which everything random is a pure function.

There are two streams, one per data set. As in `pseudolabel.loader`, a position of a stream fixes
its image and the seed of its augmentation; the number of a batch fixes how many images of each
stream it takes. So a resumed run sees what an unbroken one sees, with any number of workers; and
the labelled half of a batch does not depend on the unlabelled data set, so that the supervised
baseline sees the very same labelled images.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from torch.utils.data import Dataset, Sampler

from pseudolabel.errors import DataError
from pseudolabel.loader import EpochOrder, SeekableLoader, isolated_rng, mix_seed

LABELLED, UNLABELLED = 0, 1
PROBABILITY, FIXED = "probability", "fixed"
AHEAD = 256
"""Images of a stream among which those of one shape are looked for."""
_DRAWN_AT_ONCE = 1024


@dataclass(frozen=True)
class Source:
    """A data set and what makes a sample of one of its records.

    Attributes:
        records: Detectron2 dataset dicts; of unlabelled images file_name, height, width and
            image_id.
        mapper: record -> sample; may use the global generators.
    """

    records: Sequence[dict]
    mapper: Callable[[dict], dict]


class LabelledCount:
    """Number of labelled images in a batch, a pure function of its number.

    "fixed" takes them exactly in the ratio. "probability" draws each image of a batch as labelled
    with p = labelled / (labelled + unlabelled); where that would leave one kind out, one image
    changes its kind.

    Args:
        batch_size: images of a batch on this rank.
        ratio: (labelled, unlabelled).
        mode: "probability" or "fixed".
        seed: of the run.
        rank: of this process; each has draws of its own.

    Raises:
        DataError: the mode is unknown, or the ratio cannot be kept with at least one image of each
            kind.
    """

    def __init__(
        self, batch_size: int, ratio: Sequence[int], mode: str, seed: int = 0, rank: int = 0
    ):
        if mode not in (PROBABILITY, FIXED):
            remedy = f"use {PROBABILITY!r} or {FIXED!r}"
            raise DataError("MODEL.PAIS.LOADER.MODE", f"unknown mode {mode!r}", remedy)
        ratio = tuple(ratio)
        if len(ratio) != 2 or min(ratio) <= 0:
            problem = f"is {ratio}, not a number of labelled and one of unlabelled images"
            raise DataError("MODEL.PAIS.LOADER.RATIO", problem, "write two numbers > 0, as (1, 3)")
        if batch_size < 2:
            raise DataError(
                "SOLVER.IMS_PER_BATCH",
                f"gives {batch_size} image to a process, which cannot hold one of each kind",
                "use at least 2 images per process",
            )
        if mode == FIXED and batch_size * ratio[0] % sum(ratio):
            raise DataError(
                "MODEL.PAIS.LOADER.RATIO",
                f"{ratio[0]}:{ratio[1]} does not divide a batch of {batch_size} images",
                f"make the images per process a multiple of {sum(ratio)}, or set "
                f"MODEL.PAIS.LOADER.MODE {PROBABILITY!r}",
            )
        self.batch_size, self.mode, self.ratio = batch_size, mode, ratio
        self._key = (seed, rank)
        self._block, self._counts = -1, np.empty(0, dtype=np.int64)

    def __call__(self, batch: int) -> int:
        if self.mode == FIXED:
            return self.batch_size * self.ratio[0] // sum(self.ratio)
        block, offset = divmod(batch, _DRAWN_AT_ONCE)
        if block != self._block:
            generator = np.random.default_rng([*self._key, block])
            share = self.ratio[0] / sum(self.ratio)
            draws = generator.random((_DRAWN_AT_ONCE, self.batch_size)) < share
            self._block, self._counts = block, draws.sum(1).clip(1, self.batch_size - 1)
        return int(self._counts[offset])


class Stream:
    """Positions in ascending order, but for those of a wanted shape, which come first.

    Positions wait in a window; the oldest one of the wanted group is taken, and the oldest of all
    where the window holds none. So every position comes, and none waits for more than the window.

    Args:
        positions: endless, ascending.
        group_of: position -> shape (wide or tall).
        window: positions to look ahead.
    """

    def __init__(self, positions: Iterator[int], group_of: Callable[[int], Hashable], window: int):
        self.positions, self.group_of, self.window = positions, group_of, window
        self._queues: dict[Hashable, deque[int]] = {}
        self._waiting = 0

    def next_group(self) -> Hashable:
        """The group of the position that has waited longest."""
        self._fill(1)
        return self._oldest()

    def take(self, number: int, group: Hashable) -> list[int]:
        """The next positions, of that group as far as there are any in the window."""
        self._fill(number)
        taken = []
        for _ in range(number):
            here = group if self._queues.get(group) else self._oldest()
            taken.append(self._queues[here].popleft())
        self._waiting -= number
        return taken

    def _fill(self, number: int) -> None:
        missing = max(self.window, number) - self._waiting
        for position in islice(self.positions, max(missing, 0)):
            self._queues.setdefault(self.group_of(position), deque()).append(position)
            self._waiting += 1

    def _oldest(self) -> Hashable:
        heads = ((queue[0], group) for group, queue in self._queues.items() if queue)
        return min(heads, key=lambda head: head[0])[1]


class SemiSupervisedBatches(Sampler):
    """Endless batches of (stream, position), labelled ones first, from batch `start` on.

    The labelled image that has waited longest gives a batch its shape.

    Args:
        new_streams: a labelled stream and, where there is one, an unlabelled one; called by each
            iteration.
        labelled_count: number of a batch -> labelled images in it.
        batch_size: images of a batch on this rank, of which the labelled ones alone are taken
            where there is no unlabelled stream.
    """

    def __init__(
        self,
        new_streams: Callable[[], list[Stream]],
        labelled_count: Callable[[int], int],
        batch_size: int,
    ):
        self.new_streams, self.labelled_count = new_streams, labelled_count
        self.batch_size = batch_size
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # The batches before `start` are replayed, without reading an image: which positions wait
        # depends on all of them.
        streams = self.new_streams()
        for batch in count():
            labelled = self.labelled_count(batch)
            numbers = (labelled, self.batch_size - labelled)
            shape = streams[LABELLED].next_group()
            taken = [
                (kind, position)
                for kind, (stream, number) in enumerate(zip(streams, numbers))
                for position in stream.take(number, shape)
            ]
            if batch >= self.start:
                yield taken


class SemiSupervisedDataset(Dataset):
    """Map-style data set indexed by (stream, position).

    Args:
        sources: labelled and, where there is one, unlabelled.
        seed: of the run.
    """

    def __init__(self, sources: Sequence[Source], seed: int):
        self.sources = sources
        self.seeds = [stream_seed(seed, kind) for kind in range(len(sources))]
        self.orders = new_orders(sources, seed)

    def __getitem__(self, index: tuple[int, int]) -> dict:
        kind, position = index
        source = self.sources[kind]
        record = source.records[self.orders[kind](position)]
        with isolated_rng(mix_seed(self.seeds[kind], position)):
            return source.mapper(record)


def stream_seed(seed: int, kind: int) -> int:
    """Seed of a stream. The labelled one has the run's: images come as in any supervised run."""
    return seed if kind == LABELLED else mix_seed(seed, kind)


def new_orders(sources: Sequence[Source], seed: int) -> list[EpochOrder]:
    """position -> record index of each stream; every image once in an epoch.

    Raises:
        DataError: a source has no record.
    """
    return [
        EpochOrder(len(source.records), stream_seed(seed, kind))
        for kind, source in enumerate(sources)
    ]


class SemiSupervisedLoader(SeekableLoader):
    """Batches of both data sets: flat lists of samples, labelled ones first.

    Args:
        labelled: data set and mapper.
        unlabelled: likewise; None for the supervised baseline, whose batches are the labelled part
            of what they would be otherwise.
        batch_size: images of a batch on this rank, unlabelled ones included.
        ratio, mode: of `LabelledCount`.
        seed: of the run.
        num_workers: loader processes; the batches do not depend on it.
        group_by_aspect: put wide images together, and tall ones. A batch is mixed only where the
            next `AHEAD` images of a stream have none of its shape.
        batches_per_iteration: that the training takes for one step.
        rank, world_size: of this process; ranks share out the positions of both streams.

    Raises:
        DataError: a data set is empty; or as of `LabelledCount`.
    """

    def __init__(
        self,
        labelled: Source,
        unlabelled: Source | None,
        *,
        batch_size: int,
        ratio: Sequence[int],
        mode: str,
        seed: int,
        num_workers: int = 0,
        group_by_aspect: bool = False,
        batches_per_iteration: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ):
        sources = [labelled] if unlabelled is None else [labelled, unlabelled]
        # Apart from that of the data set: it runs ahead, and each keeps one epoch at hand.
        orders = new_orders(sources, seed)

        def new_stream(kind: int) -> Stream:
            records = sources[kind].records

            def is_wide(position: int) -> bool:
                record = records[orders[kind](position)]
                return record["width"] > record["height"]

            window = max(1, min(AHEAD, len(records) // world_size)) if group_by_aspect else 1
            group_of = is_wide if group_by_aspect else _one_group
            return Stream(count(rank, world_size), group_of, window)

        batches = SemiSupervisedBatches(
            lambda: [new_stream(kind) for kind in range(len(sources))],
            LabelledCount(batch_size, ratio, mode, seed, rank),
            batch_size,
        )
        dataset = SemiSupervisedDataset(sources, seed)
        super().__init__(dataset, batches, num_workers, batches_per_iteration)


def _one_group(position: int) -> int:
    return 0
