"""The two-stream loader: pure functions of (seed, batch), resumed exactly, shared by ranks."""

import random
import re
from collections import Counter
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pais.loader import LabelledCount, SemiSupervisedLoader, Source, Stream
from pseudolabel.errors import DataError
from pseudolabel.loader import TrainLoader


def records(number, wide=3):
    """Every third one is tall."""
    return [
        {"file_name": f"{i}.png", "image_id": i, "width": 4 if i % wide == 0 else 8, "height": 6}
        for i in range(number)
    ]


def sample(record, labelled):
    """Uses all three generators, as mappers may."""
    return {
        "id": record["image_id"],
        "labelled": labelled,
        "wide": record["width"] > record["height"],
        "noise": (random.random(), np.random.rand(), torch.rand(1).item()),
    }


def with_label(record):
    return sample(record, True)


def without_label(record):
    return sample(record, False)


def loader(labelled=7, unlabelled=40, **options):
    defaults = {"batch_size": 4, "ratio": (1, 3), "mode": "probability", "seed": 0}
    other = None if unlabelled is None else Source(records(unlabelled), without_label)
    return SemiSupervisedLoader(
        Source(records(labelled), with_label), other, **{**defaults, **options}
    )


def take(batches, number):
    iterator = iter(batches)
    return [next(iterator) for _ in range(number)]


def ids(batches, labelled):
    return [s["id"] for batch in batches for s in batch if s["labelled"] is labelled]


MODES = [
    {},
    {"group_by_aspect": True},
    {"mode": "fixed"},
    {"mode": "fixed", "ratio": (2, 2), "group_by_aspect": True, "rank": 1, "world_size": 2},
]


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_an_unbroken_one_sees(workers, options):
    whole = take(loader(**options), 40)
    rest = loader(num_workers=workers, **options)
    rest.seek(33)
    assert take(rest, 7) == whole[33:]


def test_an_iteration_of_several_batches_starts_at_its_first_one():
    whole = take(loader(), 12)
    rest = loader(batches_per_iteration=3)
    rest.seek(2)
    assert take(rest, 6) == whole[6:]
    assert rest.last_samples == [s for batch in whole[9:] for s in batch]


@pytest.mark.parametrize("options", MODES)
def test_the_supervised_baseline_sees_the_labelled_part_of_every_batch(options):
    whole = take(loader(**options), 30)
    alone = take(loader(unlabelled=None, **options), 30)
    assert alone == [[s for s in batch if s["labelled"]] for batch in whole]


def test_labelled_images_come_as_in_any_supervised_run():
    mine = [s for batch in take(loader(), 30) for s in batch if s["labelled"]]
    stock = TrainLoader(records(7), with_label, batch_size=1, seed=0)
    assert mine == [s for batch in take(stock, len(mine)) for s in batch]


def test_the_generators_of_the_training_are_left_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = sample(records(1)[0], True)["noise"]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    take(loader(), 3)
    assert sample(records(1)[0], True)["noise"] == expected


def test_another_seed_changes_the_order_the_noise_and_the_counts():
    one, other = take(loader(seed=1), 20), take(loader(seed=2), 20)
    for labelled in (True, False):
        assert ids(one, labelled)[:14] != ids(other, labelled)[:14]
    assert [len(ids([b], True)) for b in one] != [len(ids([b], True)) for b in other]
    noise = [{s["noise"] for batch in batches for s in batch} for batches in (one, other)]
    assert not noise[0] & noise[1]


def test_the_streams_are_independent():
    """Equal data sets do not come in equal order, nor with equal augmentation."""
    batches = take(loader(40, 40, mode="fixed", ratio=(1, 1)), 20)
    assert sorted(ids(batches, True)) == sorted(ids(batches, False)) == list(range(40))
    assert ids(batches, True) != ids(batches, False)
    noise = [s["noise"] for batch in batches for s in batch]
    assert len(set(noise)) == len(noise)


@pytest.mark.parametrize(
    ("ratio", "size", "labelled"),
    [((1, 1), 4, 2), ((1, 2), 3, 1), ((1, 3), 8, 2), ((2, 2), 4, 2), ((3, 1), 4, 3)],
)
def test_fixed_counts(ratio, size, labelled):
    batches = take(loader(ratio=ratio, batch_size=size, mode="fixed"), 5)
    assert {(len(b), len(ids([b], True))) for b in batches} == {(size, labelled)}
    assert all([s["labelled"] for s in b] == [True] * labelled + [False] * (size - labelled)
               for b in batches)  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "size", "mean"),
    [
        ((1, 3), 4, 1.3125),  # 1 + P(none) - P(all) = 1 + .75^4 - .25^4
        ((1, 2), 3, 1.2593),  # 1 + (2/3)^3 - (1/3)^3
        ((1, 1), 2, 1.0),  # one of each, always
        ((1, 99), 2, 1.0),
    ],
)
def test_counts_by_probability_have_at_least_one_of_each(ratio, size, mean):
    labelled_count = LabelledCount(size, ratio, "probability", seed=3)
    counts = [labelled_count(batch) for batch in range(4000)]
    assert min(counts) >= 1
    assert max(counts) <= size - 1
    assert np.mean(counts) == pytest.approx(mean, abs=0.04)  # 4 standard errors
    again = LabelledCount(size, ratio, "probability", seed=3)
    assert [again(batch) for batch in (3999, 5, 2048)] == [counts[k] for k in (3999, 5, 2048)]


def test_ranks_have_counts_of_their_own():
    counts = [
        [LabelledCount(4, (1, 3), "probability", 0, rank)(k) for k in range(40)] for rank in (0, 1)
    ]
    assert counts[0] != counts[1]


@pytest.mark.parametrize("group_by_aspect", [False, True])
def test_ranks_share_both_sets_without_overlap(group_by_aspect):
    options = {"world_size": 3, "group_by_aspect": group_by_aspect}
    ranks = [loader(20, 60, rank=rank, **options).batches for rank in range(3)]
    drawn = [{place for batch in take(batches, 50) for place in batch} for batches in ranks]
    assert len(set.union(*drawn)) == 3 * 50 * 4
    assert [{position % 3 for _, position in part} for part in drawn] == [{0}, {1}, {2}]


def test_ranks_see_every_image_once_in_an_epoch():
    options = {"mode": "fixed", "world_size": 2}
    parts = [take(loader(20, 60, rank=rank, **options), 10) for rank in (0, 1)]
    assert sorted(ids(parts[0], True) + ids(parts[1], True)) == list(range(20))
    assert sorted(ids(parts[0], False) + ids(parts[1], False)) == list(range(60))


@pytest.mark.parametrize("options", MODES)
def test_images_come_equally_often(options):
    options = {**options, "rank": 0, "world_size": 1}
    batches = take(loader(9, 50, **options), 300)
    for labelled, number in ((True, 9), (False, 50)):
        drawn = Counter(ids(batches, labelled))
        assert len(drawn) == number
        # An epoch that has begun, and the images that wait.
        assert max(drawn.values()) - min(drawn.values()) <= 2


def test_batches_hold_one_shape():
    def mixed(**options):
        batches = take(loader(60, 300, **options), 400)
        return sum(len({s["wide"] for s in batch}) > 1 for batch in batches) / 400

    assert mixed() > 0.6
    # Labelled images give the shape; the unlabelled ones keep up but for chance.
    assert mixed(group_by_aspect=True) < 0.08
    assert mixed(group_by_aspect=True, mode="fixed", ratio=(1, 1)) < 0.08


def test_a_shape_that_the_labelled_images_lack_comes_nonetheless():
    tall = Source([{**r, "width": 4} for r in records(5)], with_label)
    both = Source(records(30), without_label)
    options = {"batch_size": 4, "ratio": (1, 3), "mode": "fixed", "seed": 0}
    batches = take(SemiSupervisedLoader(tall, both, group_by_aspect=True, **options), 100)
    drawn = Counter(ids(batches, False))
    assert sorted(drawn) == list(range(30))
    assert max(drawn.values()) - min(drawn.values()) <= 2


@given(
    st.lists(st.booleans(), min_size=1, max_size=20),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30),
)
def test_a_stream_loses_nothing_and_prefers_what_is_wanted(shapes, window, wishes):
    stream = Stream(count(), lambda position: shapes[position % len(shapes)], window)
    seen = []
    for number, wanted in wishes:
        ahead = list(range(max([*seen, -1]) + 1 + 2 * window + number))
        waiting = [p for p in ahead if p not in seen][: max(window, number)]
        taken = stream.take(number, wanted)
        liked = [p for p in waiting if shapes[p % len(shapes)] == wanted][:number]
        # Naively: the wanted ones, then the oldest of the rest.
        rest = [p for p in waiting if p not in liked][: number - len(liked)]
        assert taken == liked + rest
        seen += taken


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"mode": "random"}, "LOADER.MODE: unknown mode 'random'. Remedy: use 'probability'"),
        ({"ratio": (1, 0)}, "LOADER.RATIO: is (1, 0)"),
        ({"ratio": (1, 2, 3)}, "LOADER.RATIO: is (1, 2, 3)"),
        ({"mode": "fixed", "batch_size": 6}, "LOADER.RATIO: 1:3 does not divide a batch of 6"),
        ({"batch_size": 1}, "SOLVER.IMS_PER_BATCH: gives 1 image to a process"),
        ({"labelled": 0}, "no usable training record"),
    ],
)
def test_what_cannot_be_done_is_refused(options, problem):
    with pytest.raises(DataError, match=re.escape(problem)):
        loader(**options)


def refuse(record):
    raise DataError(record["file_name"], "is bad", "mend it", "image 5") from OSError("truncated")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_unlabelled_image_is_named_by_one_message_from_any_process(workers):
    options = {"batch_size": 2, "ratio": (1, 1), "mode": "fixed", "seed": 0}
    good, bad = Source(records(3), with_label), Source(records(3), refuse)
    with pytest.raises(DataError) as error:
        take(SemiSupervisedLoader(good, bad, num_workers=workers, **options), 1)
    message = r"\d\.png \(image 5\): is bad\. Remedy: mend it\."
    assert re.fullmatch(message, str(error.value))
