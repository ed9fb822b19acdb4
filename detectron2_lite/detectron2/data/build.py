"""Loaders from datasets, and datasets from names."""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from detectron2.utils.env import not_in_lite, seed_all_rng
from detectron2.utils.logger import log_first_n
from tabulate import tabulate
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

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
        ids = [a["category_id"] for a in record["annotations"] if not a.get("iscrowd")]
        for category in ids:
            assert 0 <= category < len(class_names), (
                f"{record.get('file_name')}: category_id {category} is not one of the "
                f"{len(class_names)} classes"
            )
        counts.update(ids)
    cells = [(name[:20], counts[index]) for index, name in enumerate(class_names)]
    columns = min(3, max(1, len(cells)))
    rows = [list(chain(*cells[i : i + columns])) for i in range(0, len(cells), columns)]
    headers = ["category", "#instances"] * columns
    table = tabulate(rows, headers, tablefmt="pipe", stralign="center")
    text = f"{sum(counts.values())} instances of {len(class_names)} categories:\n{table}"
    log_first_n(logging.INFO, text, key="message")


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> list[dict] | Dataset:
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
    if isinstance(loaded[0], Dataset):
        return loaded[0] if len(loaded) == 1 else ConcatDataset(loaded)
    for name, records in zip(names, loaded):
        assert len(records), f"Dataset '{name}' is empty"
    joined = list(chain(*loaded))
    if "annotations" in joined[0]:
        if filter_empty:
            joined = filter_images_with_only_crowd_annotations(joined)
        # Loading has filled in the metadata.
        classes = MetadataCatalog.get(names[0]).get("thing_classes")
        if check_consistency and classes:
            check_metadata_consistency("thing_classes", names)
            print_instances_class_histogram(joined, classes)
    assert joined, f"no usable images in {', '.join(names)}"
    return joined


def build_batch_data_loader(
    dataset: Dataset,
    sampler: Sampler | None,
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
    images = _batch_of_one_rank(total_batch_size, single_gpu_batch_size)
    if not _has_own_order(dataset, sampler):
        # A worker makes whole batches, so it gets the indices of whole batches.
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=images)
    if seed is not None:
        kwargs["generator"] = torch.Generator().manual_seed(seed)
    kwargs.update(
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=worker_init_reset_seed,
    )
    if num_workers:  # torch refuses these two without workers
        kwargs.update(prefetch_factor=prefetch_factor, persistent_workers=persistent_workers)
    if not aspect_ratio_grouping:
        collate = collate_fn or trivial_batch_collator
        return DataLoader(dataset, images, drop_last=drop_last, collate_fn=collate, **kwargs)
    assert drop_last, "aspect ratio grouping always drops incomplete batches"
    one_by_one = DataLoader(dataset, collate_fn=operator.itemgetter(0), **kwargs)
    grouped = AspectRatioGroupedDataset(one_by_one, images)
    return grouped if collate_fn is None else MapDataset(grouped, collate_fn)


def _has_own_order(dataset: Dataset, sampler: Sampler | None) -> bool:
    """Whether a dataset has an order of its own; ValueError if it comes with a sampler as well."""
    iterable = isinstance(dataset, IterableDataset)
    if iterable and sampler is not None:
        raise ValueError("an iterable dataset takes no sampler")
    return iterable


def _batch_of_one_rank(total: int | None, single: int | None) -> int:
    if single:
        if total:
            raise ValueError("give total_batch_size or single_gpu_batch_size, not both")
        return single
    world = comm.get_world_size()
    if not total or total < 0 or total % world:
        raise ValueError(f"a batch of {total} images is not divisible among {world} processes")
    return total // world


def _train_sampler(cfg: CfgNode, dataset: Sequence[dict]) -> Sampler:
    options, size = cfg.DATALOADER, len(dataset)
    name = options.SAMPLER_TRAIN
    logger.info("Order of training images: %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(size)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(size, options.RANDOM_SUBSET_RATIO)
    if name == "RepeatFactorTrainingSampler":
        factors_of = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
        factors = factors_of(dataset, options.REPEAT_THRESHOLD, sqrt=options.REPEAT_SQRT)
        return RepeatFactorTrainingSampler(factors)
    if name == "WeightedTrainingSampler":
        not_in_lite("DATALOADER.SAMPLER_TRAIN WeightedTrainingSampler")
    raise ValueError(f"Unknown DATALOADER.SAMPLER_TRAIN: {name}")


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Callable[[dict], Any] | None = None,
    *,
    dataset: Any = None,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    if cfg.MODEL.LOAD_PROPOSALS:
        not_in_lite("MODEL.LOAD_PROPOSALS")
    options, names = cfg.DATALOADER, cfg.DATASETS.TRAIN
    if dataset is None:
        filter_empty = options.FILTER_EMPTY_ANNOTATIONS
        dataset = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = _train_sampler(cfg, dataset)
    return {
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "num_workers": options.NUM_WORKERS,
        "aspect_ratio_grouping": options.ASPECT_RATIO_GROUPING,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "sampler": sampler,
        "dataset": dataset,
    }


def _as_dataset(elements: Any, mapper: Callable[[Any], Any] | None) -> Dataset:
    """Lists are serialized (:class:`DatasetFromList`), and all elements mapped if that is asked."""
    source = DatasetFromList(elements, copy=False) if isinstance(elements, list) else elements
    return source if mapper is None else MapDataset(source, mapper)


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Sequence[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
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
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(f"sampler must be a torch Sampler, got {type(sampler).__name__}")
    source = _as_dataset(dataset, mapper)
    if not _has_own_order(source, sampler) and sampler is None:
        sampler = TrainingSampler(len(source))
    return build_batch_data_loader(
        source,
        sampler,
        total_batch_size,
        collate_fn=collate_fn,
        num_workers=num_workers,
        aspect_ratio_grouping=aspect_ratio_grouping,
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
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Sequence[dict] | Dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> DataLoader:
    """A loader over this rank's part of a dataset, once and in order.

    Call it with these arguments or with ``(cfg, dataset_name, mapper=)``. ``batch_size`` is that
    of one process; the last batch may be smaller.
    """
    source = _as_dataset(dataset, mapper)
    if not _has_own_order(source, sampler) and sampler is None:
        sampler = InferenceSampler(len(source))
    collate = collate_fn or trivial_batch_collator
    return DataLoader(
        source, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate
    )


def trivial_batch_collator(batch: list) -> list:
    """The batch as it is: images differ in size."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed numpy's and Python's generators in a worker; torch seeds only its own."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)
