"""Samplers against upstream's numbers, dataset wrappers, loaders."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    AspectRatioGroupedDataset,
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data.common import set_default_dataset_from_list_serialize_method
from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import ConcatDataset, IterableDataset, SequentialSampler


def _first(iterable, count):
    return list(itertools.islice(iter(iterable), count))


def test_training_sampler_equals_upstream(parts):
    assert _first(TrainingSampler(5, seed=3), 12) == parts["training_sampler_seed3_size5_first12"]


def test_repeat_factors_equal_upstream(parts):
    expected = parts["repeat_factors_thresh_0.5"]
    dicts = [{"annotations": [{"category_id": c} for c in cs]} for cs in expected["data"]]
    function = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert function(dicts, 0.5).tolist() == pytest.approx(expected["factors"], abs=1e-5)
    # Without the root: t / f = 0.5 / 0.2.
    assert function(dicts, 0.5, sqrt=False).tolist() == pytest.approx([1, 2.5, 1, 2.5, 1])


def test_ranks_share_one_order(monkeypatch):
    whole = _first(TrainingSampler(7, seed=1), 12)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: 3)
        shares.append(_first(TrainingSampler(7, seed=1), 4))
    assert [shares[i % 3][i // 3] for i in range(12)] == whole


def test_training_sampler_without_shuffle_and_with_bad_sizes():
    assert _first(TrainingSampler(3, shuffle=False, seed=0), 5) == [0, 1, 2, 0, 1]
    for size in (0, -1, 2.0):
        with pytest.raises((ValueError, TypeError, AssertionError)):
            TrainingSampler(size)


def test_random_subset_is_fixed():
    sampler = RandomSubsetTrainingSampler(20, 0.25, seed_shuffle=1, seed_subset=2)
    epochs = np.array(_first(sampler, 15)).reshape(3, 5)
    assert len(set(epochs[0])) == 5
    assert all(set(epoch) == set(epochs[0]) for epoch in epochs)
    other = RandomSubsetTrainingSampler(20, 0.25, seed_shuffle=9, seed_subset=2)
    assert set(_first(other, 5)) == set(epochs[0])  # the part depends on its own seed only
    with pytest.raises((ValueError, AssertionError)):
        RandomSubsetTrainingSampler(20, 1.5)


def test_repeat_factor_sampler_repeats_on_average():
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.5, 3.0]), seed=0)
    generator = torch.Generator().manual_seed(0)
    epochs = [sampler._epoch(generator).tolist() for _ in range(200)]
    assert all(e.count(0) == 1 and e.count(2) == 3 and e.count(1) in (2, 3) for e in epochs)
    assert np.mean([e.count(1) for e in epochs]) == pytest.approx(2.5, abs=0.15)
    ordered = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0]), shuffle=False, seed=0)
    assert _first(ordered, 6) == [0, 1, 1, 0, 1, 1]


# (size, ranks, their parts)
SHARDS = [
    (0, 2, [[], []]),
    (5, 2, [[0, 1, 2], [3, 4]]),
    (2, 3, [[0], [1], []]),
    (6, 3, [[0, 1], [2, 3], [4, 5]]),
]


@pytest.mark.parametrize(("size", "ranks", "expected"), SHARDS)
def test_inference_shards(size, ranks, expected):
    parts = [list(InferenceSampler._get_local_indices(size, ranks, r)) for r in range(ranks)]
    assert parts == expected


def test_grouped_batches():
    sampler = SequentialSampler(range(7))
    batches = _first(GroupedBatchSampler(sampler, [1, 0, 0, 1, 1, 0, 1], 2), 9)
    assert batches == [[1, 2], [0, 3], [4, 6]]


def _reject_odd(x):
    return x * 10 if x % 2 == 0 else None


def test_map_dataset_replaces_rejected_elements():
    mapped = MapDataset(DatasetFromList([1, 2, 4, 3]), _reject_odd)
    assert len(mapped) == 4
    assert mapped[1] == 20
    assert {mapped[0] for _ in range(20)} == {20, 40}
    with pytest.raises(RuntimeError, match="every element"):
        MapDataset(DatasetFromList([1, 3]), _reject_odd)[0]


class _Endless(IterableDataset):
    def __iter__(self):
        yield from itertools.count()


def test_map_dataset_of_an_iterable():
    mapped = MapDataset(_Endless(), _reject_odd)
    assert isinstance(mapped, IterableDataset)
    assert _first(mapped, 3) == [0, 20, 40]


def test_map_dataset_can_be_pickled():
    mapped = pickle.loads(pickle.dumps(MapDataset(DatasetFromList([2, 4]), _reject_odd)))
    assert [mapped[0], mapped[1]] == [20, 40]


# (arguments, whether an element may be changed without changing the list)
LISTS = [
    ({}, True),
    ({"serialize": False}, True),
    ({"serialize": False, "copy": False}, False),
]


@pytest.mark.parametrize(("kwargs", "safe"), LISTS)
def test_dataset_from_list(kwargs, safe):
    dataset = DatasetFromList([{"a": 1}, {"b": np.arange(3)}], **kwargs)
    assert len(dataset) == 2
    assert np.array_equal(dataset[1]["b"], [0, 1, 2])
    dataset[0]["a"] = 2
    assert dataset[0]["a"] == (1 if safe else 2)


def test_serialize_method_can_be_changed():
    assert DatasetFromList([1, 2], serialize=torch.tensor)[1] == torch.tensor(2)
    with set_default_dataset_from_list_serialize_method(torch.tensor):
        inside = DatasetFromList([1, 2])
    assert isinstance(inside[0], torch.Tensor)
    assert isinstance(DatasetFromList([1, 2])[0], int)


def test_aspect_ratio_groups():
    sizes = [(2, 1), (1, 2), (3, 3), (4, 1), (1, 5)]
    elements = [{"width": w, "height": h, "id": i} for i, (w, h) in enumerate(sizes)]
    grouped = AspectRatioGroupedDataset(elements, 2)
    # A square counts as portrait; the last one waits for the second pass, as measured upstream.
    for expected in ([[1, 2], [0, 3]], [[4, 1], [0, 3], [2, 4]]):
        assert [[e["id"] for e in batch] for batch in grouped] == expected


def test_a_mapped_dataset_with_a_lambda_is_pickled():
    doubled = pickle.loads(pickle.dumps(MapDataset(DatasetFromList([1, 2]), lambda x: 2 * x)))
    assert [doubled[0], doubled[1]] == [2, 4]


def test_to_iterable_splits_indices_between_workers():
    dataset = ToIterableDataset(DatasetFromList(list(range(12))), SequentialSampler(range(12)))
    loader = torch.utils.data.DataLoader(dataset, num_workers=2, batch_size=3)
    batches = [batch.tolist() for batch in loader]
    assert sorted(itertools.chain(*batches)) == list(range(12))
    assert all(len({i % 2 for i in batch}) == 1 for batch in batches)
    with pytest.raises(TypeError):
        ToIterableDataset(_Endless(), [0])


@pytest.mark.parametrize("workers", [0, 2])
def test_train_loader(workers):
    loader = build_detection_train_loader(
        list(range(8)),
        mapper=lambda x: x + 100,
        sampler=TrainingSampler(8, seed=0),
        total_batch_size=4,
        aspect_ratio_grouping=False,
        num_workers=workers,
    )
    batches = _first(loader, 2)
    assert all(isinstance(b, list) and len(b) == 4 for b in batches)
    # Chunks of a batch go to the workers in turn, so that the order is the sampler's.
    assert list(itertools.chain(*batches)) == [
        i + 100 for i in _first(TrainingSampler(8, seed=0), 8)
    ]


def test_train_loader_groups_by_aspect_ratio_and_collates():
    dicts = [{"width": 1 + i % 2, "height": 1} for i in range(6)]
    loader = build_detection_train_loader(
        dicts, mapper=None, total_batch_size=2, collate_fn=lambda b: tuple(d["width"] for d in b)
    )
    assert all(len(set(batch)) == 1 for batch in _first(loader, 5))


# arguments that do not fit
BAD = [
    {"total_batch_size": 0},
    {"total_batch_size": 2, "single_gpu_batch_size": 2},
]


@pytest.mark.parametrize("kwargs", BAD)
def test_bad_batch_sizes(kwargs):
    with pytest.raises((ValueError, AssertionError), match="batch"):
        build_batch_data_loader(DatasetFromList([1]), TrainingSampler(1), **kwargs)


def test_batch_must_divide_among_ranks(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises((ValueError, AssertionError), match="divisible"):
        build_batch_data_loader(DatasetFromList([1]), TrainingSampler(1, seed=0), 3)


def test_iterable_dataset_takes_no_sampler():
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 3, 0
    loader = build_detection_train_loader(
        cfg, dataset=_Endless(), mapper=lambda x: x, aspect_ratio_grouping=False
    )
    assert next(iter(loader)) == [0, 1, 2]
    with pytest.raises((ValueError, AssertionError), match="sampler"):
        build_batch_data_loader(_Endless(), TrainingSampler(1), 2)


# (sampler name, type)
SAMPLERS = [
    ("TrainingSampler", TrainingSampler),
    ("RepeatFactorTrainingSampler", RepeatFactorTrainingSampler),
]


@pytest.mark.parametrize(("name", "kind"), SAMPLERS)
def test_sampler_from_config(name, kind):
    cfg = get_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = name, 0.5
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 0, 1
    records = [{"width": 1, "height": 1, "annotations": [{"category_id": 0}]}]
    loader = build_detection_train_loader(cfg, dataset=records, mapper=lambda d: d)
    assert isinstance(loader.dataset.dataset.sampler, kind)
    assert next(iter(loader)) == records
    cfg.DATALOADER.SAMPLER_TRAIN = "Unheard"
    with pytest.raises(ValueError, match="Unheard"):
        build_detection_train_loader(cfg, dataset=records, mapper=lambda d: d)


def test_test_loader_keeps_order_and_last_batch():
    loader = build_detection_test_loader(
        list(range(5)), mapper=lambda x: x * 2, batch_size=2, num_workers=0
    )
    assert list(loader) == [[0, 2], [4, 6], [8]]
    assert len(loader) == 3


def test_test_loader_from_config_keeps_empty_images():
    name = "lite_test_loader"
    DatasetCatalog.register(name, lambda: [{"annotations": []}, {"annotations": []}])
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = build_detection_test_loader(cfg, name, mapper=lambda d: d)
    assert len(list(loader)) == 2
    DatasetCatalog.remove(name)


def test_torch_datasets_are_concatenated():
    from detectron2.data import get_detection_dataset_dicts

    for name in ("lite_t1", "lite_t2"):
        DatasetCatalog.register(name, lambda: DatasetFromList([1, 2]))
    joined = get_detection_dataset_dicts(["lite_t1", "lite_t2"])
    assert isinstance(joined, ConcatDataset)
    assert len(joined) == 4
    for name in ("lite_t1", "lite_t2"):
        DatasetCatalog.remove(name)


class _Draw:
    def __call__(self, index):
        return np.random.randint(1 << 30)


def test_workers_draw_different_numbers():
    loader = build_batch_data_loader(
        MapDataset(DatasetFromList(list(range(4))), _Draw()),
        TrainingSampler(4, seed=0),
        2,
        num_workers=2,
        seed=7,
    )
    (a, b), (c, d) = _first(loader, 2)
    assert len({a, b, c, d}) == 4
