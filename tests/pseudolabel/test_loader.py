"""The loader: order and augmentation are pure functions of (seed, position)."""

import random

import numpy as np
import pytest
import torch

from pseudolabel.errors import DataError
from pseudolabel.loader import EpochOrder, TrainLoader, isolated_rng, mix_seed


def records(count):
    # Every third record is tall.
    return [
        {"id": i, "file_name": f"{i}.png", "width": 4 if i % 3 == 0 else 8, "height": 6}
        for i in range(count)
    ]


def draw(record):
    """A mapper that uses all three generators, as stock augmentation does."""
    return {
        "id": record["id"],
        "wide": record["width"] > record["height"],
        "noise": (random.random(), np.random.rand(), torch.rand(1).item()),
    }


def loader(count=10, **options):
    return TrainLoader(records(count), draw, **{"batch_size": 2, "seed": 0, **options})


def take(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize(
    ("workers", "grouped"),
    [
        (0, False),  # in the training process
        (2, False),  # worker processes
        (0, True),  # grouping by aspect, replayed on resume
        (2, True),
    ],
)
def test_resumed_run_sees_what_an_uninterrupted_run_sees(workers, grouped):
    whole = take(loader(group_by_aspect=grouped), 12)
    rest = loader(num_workers=workers, group_by_aspect=grouped)
    rest.seek(7)
    assert take(rest, 5) == whole[7:]


def test_every_record_once_per_epoch_and_epochs_differ():
    ids = [sample["id"] for batch in take(loader(), 10) for sample in batch]
    assert sorted(ids[:10]) == sorted(ids[10:]) == list(range(10))
    assert ids[:10] != ids[10:]


def test_seed_changes_order_and_noise():
    assert take(loader(seed=1), 5) != take(loader(seed=0), 5)


def test_grouped_batches_hold_one_aspect_and_lose_nothing():
    batches = take(loader(30, group_by_aspect=True), 14)
    assert all(len({sample["wide"] for sample in batch}) == 1 for batch in batches)
    ids = [sample["id"] for batch in batches for sample in batch]
    assert len(set(ids)) >= 27  # at most one started batch per group is pending


def test_ranks_share_the_stream_without_overlap():
    parts = [take(loader(rank=rank, world_size=2), 5) for rank in (0, 1)]
    ids = [sample["id"] for part in parts for batch in part for sample in batch]
    assert sorted(ids[:10] + ids[10:]) == sorted(list(range(10)) * 2)


def test_isolated_rng_puts_the_states_back():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with isolated_rng(99):
        random.random(), np.random.rand(), torch.rand(1)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_mix_seed_separates_neighbours():
    seeds = {mix_seed(seed, position) for seed in range(20) for position in range(50)}
    assert len(seeds) == 1000


def test_unreadable_image_is_named():
    def broken(record):
        raise OSError("image file is truncated")

    with pytest.raises(DataError, match=r"\d\.png.*truncated.*Remedy"):
        take(TrainLoader(records(3), broken, batch_size=1, seed=0), 1)


def test_empty_training_set_is_refused():
    with pytest.raises(DataError, match="no usable training record"):
        EpochOrder(0, seed=0)
