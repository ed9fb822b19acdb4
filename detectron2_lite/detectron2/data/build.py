"""Loaders from datasets, and datasets from names."""

from __future__ import annotations

import itertools
import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.env import not_in_lite, seed_all_rng
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from torch.utils import data as torchdata

from .catalog import DatasetCatalog, MetadataCatalog
from .common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from .detection_utils import check_metadata_consistency
from .samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "load_proposals_into_dataset",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

logger = logging.getLogger(__name__)


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict]) -> list[dict]:
    """Leave out images without an annotation that is not a crowd region; logs how many."""
    kept = [
        record
        for record in dataset_dicts
        if any(a.get("iscrowd", 0) == 0 for a in record["annotations"])
    ]
    logger.info(
        "%d images have no object to learn from and are left out; %d remain",
        len(dataset_dicts) - len(kept),
        len(kept),
    )
    return kept


def filter_images_with_few_keypoints(*args: Any, **kwargs: Any) -> None:
    """Not provided."""
    not_in_lite("filter_images_with_few_keypoints")


def load_proposals_into_dataset(*args: Any, **kwargs: Any) -> None:
    """Not provided."""
    not_in_lite("load_proposals_into_dataset")


def print_instances_class_histogram(
    dataset_dicts: Sequence[dict], class_names: Sequence[str]
) -> None:
    """Log how many (non-crowd) instances each class has.

    Raises:
        AssertionError: for a category id outside ``range(len(class_names))``.
    """
    counts: Counter[int] = Counter()
    for record in dataset_dicts:
        ids = [a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)]
        for category in ids:
            assert 0 <= category < len(class_names), (
                f"{record.get('file_name')}: category_id {category} is not one of the "
                f"{len(class_names)} classes"
            )
        counts.update(ids)
    cells = [(name[:20], counts[index]) for index, name in enumerate(class_names)]
    columns = min(3, max(1, len(cells)))
    rows = [
        list(itertools.chain.from_iterable(cells[i : i + columns]))
        for i in range(0, len(cells), columns)
    ]
    table = tabulate(
        rows, headers=["category", "#instances"] * columns, tablefmt="pipe", stralign="center"
    )
    log_first_n(
        logging.INFO,
        f"{sum(counts.values())} instances of {len(class_names)} categories:\n{table}",
        key="message",
    )


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | torchdata.Dataset:
    """Load and join datasets by name.

    Args:
        filter_empty: leave out images without annotations, if the first record has any.
        check_consistency: compare ``thing_classes`` of the datasets.

    Raises:
        KeyError: for an unknown name. AssertionError: for an empty dataset.
        ValueError: when class names differ.
    """
    if min_keypoints or proposal_files:
        not_in_lite("get_detection_dataset_dicts with keypoints or proposal files")
    names = [names] if isinstance(names, str) else list(names)
    assert names, "no dataset is given: is DATASETS.TRAIN or DATASETS.TEST empty?"
    loaded = [DatasetCatalog.get(name) for name in names]
    if isinstance(loaded[0], torchdata.Dataset):
        return torchdata.ConcatDataset(loaded) if len(loaded) > 1 else loaded[0]
    for name, records in zip(names, loaded):
        assert len(records), f"Dataset '{name}' is empty"
    dicts = list(itertools.chain.from_iterable(loaded))
    has_instances = "annotations" in dicts[0]
    if filter_empty and has_instances:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if check_consistency and has_instances and MetadataCatalog.get(names[0]).get("thing_classes"):
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(dicts, MetadataCatalog.get(names[0]).thing_classes)
    assert dicts, f"no usable images in {', '.join(names)}"
    return dicts


def build_batch_data_loader(
    dataset: torchdata.Dataset,
    sampler: torchdata.Sampler | None,
    total_batch_size: int | None,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Iterable:
    """Batches for training, as lists of elements unless there is a ``collate_fn``.

    Args:
        dataset: map-style with a sampler, or iterable with None.
        total_batch_size: over all ranks. single_gpu_batch_size: of one rank, given instead.
        aspect_ratio_grouping: see :class:`AspectRatioGroupedDataset`.
        seed: of the loader's generator (worker seeds); None follows torch's.
        kwargs: for torch's DataLoader.

    Raises:
        ValueError: when the batch cannot be divided among the ranks, both or no batch
            sizes are given, or an iterable dataset comes with a sampler.
    """
    batch_size = _batch_of_one_rank(total_batch_size, single_gpu_batch_size)
    if isinstance(dataset, torchdata.IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable dataset takes no sampler")
    else:
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=batch_size)
    if seed is not None:
        kwargs["generator"] = torch.Generator()
        kwargs["generator"].manual_seed(seed)
    kwargs.update(
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=worker_init_reset_seed,
    )
    if num_workers:  # torch refuses these two without workers
        kwargs.update(prefetch_factor=prefetch_factor, persistent_workers=persistent_workers)
    if not aspect_ratio_grouping:
        return torchdata.DataLoader(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            collate_fn=collate_fn or trivial_batch_collator,
            **kwargs,
        )
    assert drop_last, "aspect ratio grouping always drops incomplete batches"
    single = torchdata.DataLoader(dataset, collate_fn=operator.itemgetter(0), **kwargs)
    grouped = AspectRatioGroupedDataset(single, batch_size)
    return grouped if collate_fn is None else MapDataset(grouped, collate_fn)


def _batch_of_one_rank(total: int | None, single: int | None) -> int:
    if single:
        if total:
            raise ValueError("give total_batch_size or single_gpu_batch_size, not both")
        return single
    world = comm.get_world_size()
    if not total or total < 0 or total % world:
        raise ValueError(f"a batch of {total} images is not divisible among {world} processes")
    return total // world


def _train_sampler(cfg: CfgNode, dataset: Sequence[dict]) -> torchdata.Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Order of training images: %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    if name == "WeightedTrainingSampler":
        not_in_lite("DATALOADER.SAMPLER_TRAIN WeightedTrainingSampler")
    raise ValueError(f"Unknown DATALOADER.SAMPLER_TRAIN: {name}")


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Callable[[dict], Any] | None = None,
    *,
    dataset: Any = None,
    sampler: torchdata.Sampler | None = None,
) -> dict[str, Any]:
    if cfg.MODEL.LOAD_PROPOSALS:
        not_in_lite("MODEL.LOAD_PROPOSALS")
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = _train_sampler(cfg, dataset)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Sequence[dict] | torchdata.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
    **kwargs: Any,
) -> Iterable:
    """An endless loader; call it with these arguments or with ``(cfg, mapper=, ...)``.

    Args:
        dataset: dicts, or a torch dataset. mapper: applied to each element; None for none.
        sampler: of indices; None is a :class:`TrainingSampler` (and must be None for an
            iterable dataset).
        total_batch_size: over all ranks. kwargs: see :func:`build_batch_data_loader`.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if sampler is None and not isinstance(dataset, torchdata.IterableDataset):
        sampler = TrainingSampler(len(dataset))
    if sampler is not None and not isinstance(sampler, torchdata.Sampler):
        raise TypeError(f"sampler must be a torch Sampler, got {type(sampler).__name__}")
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode,
    dataset_name: str | Sequence[str],
    mapper: Callable[[dict], Any] | None = None,
) -> dict[str, Any]:
    if cfg.MODEL.LOAD_PROPOSALS:
        not_in_lite("MODEL.LOAD_PROPOSALS")
    return {
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Sequence[dict] | torchdata.Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: torchdata.Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> torchdata.DataLoader:
    """A loader over this rank's part of a dataset, once and in order.

    Call it with these arguments or with ``(cfg, dataset_name, mapper=)``. ``batch_size`` is that
    of one process; the last batch may be smaller.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, torchdata.IterableDataset):
        if sampler is not None:
            raise ValueError("an iterable dataset takes no sampler")
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return torchdata.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is: images differ in size."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed numpy's and Python's generators in a worker; torch seeds only its own."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
