"""Data pipelines by name: `INPUT.PIPELINE` says what a batch is, in training and in evaluation."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from fvcore.common.registry import Registry
from torch.utils.data import DataLoader

from pseudolabel.errors import DataError
from pseudolabel.evaluators import check_instance_evaluation, evaluator_from_config
from pseudolabel.loader import TrainLoader, category_repeat_factors
from pseudolabel.mapper import CheckedMapper

logger = logging.getLogger(__name__)

PIPELINES = Registry("PIPELINE")


class Pipeline(Protocol):
    """What the trainer asks of a data pipeline; registered as a class without arguments.

    Its class attribute `has_class_heads` says whether its models predict classes, so that all data
    sets need the same class list; where it is absent, they do not. A method `samples_per_image`
    says how many samples each of `SOLVER.IMS_PER_BATCH` stands for; where it is absent, one.
    `sample_name` is the word for them in the log, in the plural.
    """

    def train_loader(self, cfg: CfgNode) -> TrainLoader:
        """Endless batches of `DATASETS.TRAIN`, lists of what the model takes."""
        ...

    def test_loader(self, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """The images of one data set, shared out among the ranks."""
        ...

    def evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
        """What scores the model's outputs for that data set; may write to `output_dir`."""
        ...


def build_pipeline(cfg: CfgNode) -> Pipeline:
    """The pipeline that `INPUT.PIPELINE` names."""
    return PIPELINES.get(cfg.INPUT.PIPELINE)()


def samples_per_image(cfg: CfgNode) -> int:
    """Samples that each of `SOLVER.IMS_PER_BATCH` images stands for in this pipeline."""
    count = getattr(build_pipeline(cfg), "samples_per_image", None)
    return 1 if count is None else count(cfg)


def samples_per_step(cfg: CfgNode) -> int:
    """Samples of one optimizer step, over all processes and accumulated batches.

    Raises:
        ValueError: `SOLVER.ACCUMULATE` is below 1.
    """
    if cfg.SOLVER.ACCUMULATE < 1:
        raise ValueError(f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}: use 1 (none) or more")
    return cfg.SOLVER.IMS_PER_BATCH * samples_per_image(cfg) * cfg.SOLVER.ACCUMULATE


def build_train_loader(
    cfg: CfgNode, records: Sequence[dict], mapper: Callable, group_by_aspect: bool
) -> TrainLoader:
    """A `TrainLoader` with the batch size, sampler, seed, workers and rank of config and process.

    Raises:
        DataError: `DATALOADER.SAMPLER_TRAIN` is none that works for these records.
    """
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of {world_size} ranks"
        )
    together = samples_per_image(cfg)
    return TrainLoader(
        records,
        mapper,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size * together,
        seed=cfg.SEED,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_aspect=group_by_aspect,
        repeat_factors=repeat_factors(cfg, records),
        samples_per_image=together,
        batches_per_iteration=cfg.SOLVER.ACCUMULATE,
        rank=comm.get_rank(),
        world_size=world_size,
    )


def require_masks(records: Sequence[dict]) -> None:
    """Refuses to train a mask head on boxes; crowds are not trained on.

    Raises:
        DataError: naming the first annotation without a segmentation.
    """
    for record in records:
        for annotation in record["annotations"]:
            if not annotation.get("iscrowd", 0) and not annotation.get("segmentation"):
                raise DataError(
                    record["file_name"],
                    "has no mask to train on",
                    "label the boxes with tools/label.py, or set MODEL.MASK_ON False",
                    f"annotation {annotation.get('id')}",
                )


def repeat_factors(cfg: CfgNode, records: Sequence[dict]) -> np.ndarray | None:
    """What `DATALOADER.SAMPLER_TRAIN` means here: a repeat factor per record, None for once each.

    Raises:
        DataError: the sampler is not ours, or needs class annotations that the records lack.
    """
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler == "TrainingSampler":
        return None
    if sampler != "RepeatFactorTrainingSampler":
        raise DataError(
            "DATALOADER.SAMPLER_TRAIN",
            f"{sampler!r} is not supported",
            "use 'TrainingSampler' or 'RepeatFactorTrainingSampler'",
        )
    if not all("annotations" in record for record in records):
        raise DataError(
            "DATALOADER.SAMPLER_TRAIN",
            f"{sampler!r} repeats whole images by their classes, but {cfg.INPUT.PIPELINE} trains "
            "on something else",
            "use 'TrainingSampler'",
        )
    factors = category_repeat_factors(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_SQRT
    )
    logger.info(
        "repeat-factor sampling: threshold %g, %d of %d images repeated, up to %.3g times; "
        "%.1f samples an epoch",
        *(cfg.DATALOADER.REPEAT_THRESHOLD, (factors > 1).sum(), len(factors)),
        *(factors.max(initial=0), factors.sum()),
    )
    return factors


@PIPELINES.register()
class StockPipeline:
    """Detectron2's own mapper with our reproducible sampler; COCO or LVIS evaluation."""

    has_class_heads = True
    sample_name = "images"

    def check_evaluation(self, cfg: CfgNode) -> None:
        """Refuses test sets that could not be evaluated, before a run."""
        check_instance_evaluation(cfg)

    def train_loader(self, cfg: CfgNode) -> TrainLoader:
        """Endless batches of `DATASETS.TRAIN` as `DatasetMapper` makes them.

        Raises:
            DataError: a mask is missing that would be trained on, or the sampler is not supported;
                when iterated, at an image that cannot be used.
        """
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        )
        if cfg.MODEL.MASK_ON:
            require_masks(records)
        mapper = CheckedMapper(DatasetMapper(cfg, True))
        return build_train_loader(cfg, records, mapper, cfg.DATALOADER.ASPECT_RATIO_GROUPING)

    def test_loader(self, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Batches of one image, each image once over all ranks.

        Raises:
            DataError: when iterated, at an image that cannot be used.
        """
        mapper = CheckedMapper(DatasetMapper(cfg, False))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    def evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
        """AP by the rules of the data set; see `evaluators.InstanceEvaluator`."""
        return evaluator_from_config(cfg, dataset_name, output_dir)
