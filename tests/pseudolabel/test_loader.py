"""The loader: order and augmentation are pure functions of (seed, position)."""

import pickle
import random
import re

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel.errors import DataError
from pseudolabel.loader import (
    EpochOrder,
    GroupedOrder,
    RepeatFactorOrder,
    TrainLoader,
    category_repeat_factors,
    isolated_rng,
    mix_seed,
)


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


def refuse(record):
    raise DataError(record["file_name"], "is bad", "mend it", "image 5") from OSError("truncated")


def loader(count=10, **options):
    return TrainLoader(records(count), draw, **{"batch_size": 2, "seed": 0, **options})


def take(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


FACTORS = [1.0, 2.5, 1.0, 1.2, 3.0, 1.0, 1.0, 1.7, 1.0, 1.0]


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (0, {}),  # in the training process
        (2, {}),  # worker processes
        (0, {"group_by_aspect": True}),  # replayed on resume
        (2, {"group_by_aspect": True}),
        (0, {"repeat_factors": FACTORS}),  # epochs of different lengths
        (2, {"group_by_aspect": True, "repeat_factors": FACTORS}),
        (0, {"samples_per_image": 2, "batch_size": 4}),  # blocks
        (2, {"samples_per_image": 3, "batch_size": 6}),
    ],
)
def test_resumed_run_sees_what_an_uninterrupted_run_sees(workers, options):
    whole = take(loader(**options), 12)
    rest = loader(num_workers=workers, **options)
    rest.seek(7)
    assert take(rest, 5) == whole[7:]


def test_an_iteration_of_several_batches_starts_at_its_first_one():
    whole = take(loader(), 12)
    rest = loader(batches_per_iteration=3)
    rest.seek(2)
    assert take(rest, 6) == whole[6:]
    assert rest.last_samples == whole[9] + whole[10] + whole[11]


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


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_data_is_named_by_one_message_from_any_process(workers):
    broken = TrainLoader(records(3), refuse, batch_size=1, seed=0, num_workers=workers)
    with pytest.raises(DataError) as error:
        take(broken, 1)
    message = str(error.value)
    assert re.fullmatch(r"\d\.png \(image 5\): is bad\. Remedy: mend it\.", message)
    assert str(pickle.loads(pickle.dumps(error.value))) == message


def test_empty_training_set_is_refused():
    with pytest.raises(DataError, match="no usable training record"):
        EpochOrder(0, seed=0)


def naive_blocks(groups, size, order):
    """The blocks of an epoch as sorted lists of groups."""
    return [sorted(groups[i] for i in order[k : k + size]) for k in range(0, len(order), size)]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_every_record_is_drawn_equally_often_whatever_the_size_of_its_group(groups, size, epoch):
    order = GroupedOrder(groups, size, seed=1)
    indices = order.epoch_indices(epoch)
    counts = np.bincount(indices, minlength=len(groups))
    assert len(indices) % size == 0
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    assert counts.sum() - len(groups) < size
    # As many blocks of one group as its size allows; only what is left over is mixed.
    blocks = naive_blocks(groups, size, indices)
    pure = [block[0] for block in blocks if len(set(block)) == 1]
    for group in set(groups):
        assert pure.count(group) >= groups.count(group) // size
    assert [order(epoch * len(indices) + k) for k in range(len(indices))] == indices.tolist()


def test_epochs_and_seeds_of_the_grouped_order_differ():
    groups = list("aaaabbbbccccdddd")
    orders = [
        GroupedOrder(groups, 2, seed).epoch_indices(epoch).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == GroupedOrder(groups, 2, 0).epoch_indices(0).tolist()


def test_groups_and_their_members_take_every_place():
    """No group is always early, no pair of boxes always together."""
    groups = list("aaaabbbb")
    order = GroupedOrder(groups, 2, seed=0)
    epochs = np.array([order.epoch_indices(epoch) for epoch in range(2000)])
    for place in range(8):
        counts = np.bincount(epochs[:, place], minlength=8)
        assert counts.min() > 180  # of 250; the standard deviation is 15
    partner = epochs.reshape(-1, 2)
    with_0 = np.concatenate([partner[partner[:, 0] == 0, 1], partner[partner[:, 1] == 0, 0]])
    counts = np.bincount(with_0, minlength=8)
    assert counts[4:].sum() == 0
    assert counts[1:4].min() > 560  # of 667; the standard deviation is 21


def test_batches_hold_blocks_of_one_image_and_ranks_share_them():
    rows = [{"id": i, "file_name": f"{i // 4}.png", "width": 8, "height": 6} for i in range(24)]
    options = {"batch_size": 4, "seed": 0, "samples_per_image": 2}
    image_of = {row["id"]: row["file_name"] for row in rows}
    parts = [
        take(TrainLoader(rows, draw, rank=rank, world_size=2, **options), 3) for rank in (0, 1)
    ]
    batches = [[sample["id"] for sample in batch] for part in parts for batch in part]
    assert sorted(i for batch in batches for i in batch) == list(range(24))
    for batch in batches:
        assert image_of[batch[0]] == image_of[batch[1]]
        assert image_of[batch[2]] == image_of[batch[3]]


def test_one_sample_per_image_is_the_plain_order():
    assert take(loader(samples_per_image=1), 9) == take(loader(), 9)


@pytest.mark.parametrize("options", [{"group_by_aspect": True}, {"repeat_factors": FACTORS}])
def test_blocks_exclude_other_orders(options):
    with pytest.raises(ValueError, match="several samples per image exclude"):
        loader(samples_per_image=2, **options)


def test_an_order_of_nothing_is_refused():
    with pytest.raises(DataError, match="no usable training record"):
        GroupedOrder([], 2, seed=0)


def naive_order(factors, seed, epochs):
    """Record indices of the first epochs, one record and one draw at a time."""
    order = []
    for epoch in range(epochs):
        generator = np.random.default_rng([seed, epoch])
        draws = generator.random(len(factors))
        indices = []
        for index, (factor, drawn) in enumerate(zip(factors, draws, strict=True)):
            indices += [index] * (int(factor) + (1 if drawn < factor % 1 else 0))
        order += generator.permutation(indices).tolist()
    return order


def test_repeated_order_is_a_function_of_seed_and_position():
    expected = naive_order(FACTORS, 5, 20)
    forward, jumping = RepeatFactorOrder(FACTORS, 5), RepeatFactorOrder(FACTORS, 5)
    assert [forward(position) for position in range(len(expected))] == expected
    places = np.random.default_rng(0).permutation(len(expected)).tolist()
    assert [jumping(position) for position in places] == [expected[place] for place in places]
    assert [RepeatFactorOrder(FACTORS, 6)(p) for p in range(30)] != expected[:30]


def test_records_are_repeated_by_their_factor_on_average():
    order = RepeatFactorOrder(FACTORS, 0)
    epochs = 4000
    counts = sum(np.bincount(order.epoch_indices(e), minlength=10) for e in range(epochs))
    # The standard error of a mean of rounded numbers is below .5 / sqrt(4000) = .008.
    assert counts / epochs == pytest.approx(np.array(FACTORS), abs=0.04)
    assert set(np.bincount(order.epoch_indices(3), minlength=10)[[0, 4]]) == {1, 3}  # whole ones


@pytest.mark.parametrize(
    "factors",
    [
        [],  # no record
        [1.0, float("nan")],
        [1.0, -0.5],
        [0.0, 0.0],  # would look for a first sample for ever
        [float("inf")],
    ],
)
def test_useless_repeat_factors_are_refused(factors):
    with pytest.raises(DataError, match="repeat factors"):
        RepeatFactorOrder(factors, 0)


def images_of(*contents):
    return [{"annotations": [{"category_id": key} for key in content]} for content in contents]


# t = .5: class 0 in 4 of 4 images, 1 in 1 of 4 (factor 2 ** .5), 2 in 2 of 4 (exactly t).
@pytest.mark.parametrize(
    ("contents", "sqrt", "expected"),
    [
        ([[0, 0], [0, 1], [0, 2], [2, 0]], True, [1, 2**0.5, 1, 1]),
        ([[0, 0], [0, 1], [0, 2], [2, 0]], False, [1, 2, 1, 1]),
        ([[0], [], [0], [0]], True, [1, 1, 1, 1]),  # an image without annotation
    ],
)
def test_repeat_factor_of_an_image_is_its_rarest_class_s(contents, sqrt, expected):
    assert category_repeat_factors(images_of(*contents), 0.5, sqrt) == pytest.approx(expected)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=30),
    st.floats(0.0, 1.0),
    st.booleans(),
)
def test_repeat_factors_equal_detectron2s(contents, threshold, sqrt):
    images = images_of(*contents)
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        images, threshold, sqrt=sqrt
    )
    ours = category_repeat_factors(images, threshold, sqrt)
    assert ours == pytest.approx(theirs.numpy(), rel=1e-5)
