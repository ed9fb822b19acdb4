"""Data pipelines by name: `INPUT.PIPELINE` says what a batch is, in training and in evaluation."""

from collections.abc import Callable, Sequence
from typing import Protocol

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

from pseudolabel.evaluators import check_instance_evaluation, evaluator_from_config
from pseudolabel.loader import TrainLoader

PIPELINES = Registry("PIPELINE")


class Pipeline(Protocol):
    """What the trainer asks of a data pipeline; registered as a class without arguments."""

    def train_loader(self, cfg: CfgNode) -> TrainLoader: ...

    def test_loader(self, cfg: CfgNode, dataset_name: str) -> DataLoader: ...

    def evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator: ...


def build_pipeline(cfg: CfgNode) -> Pipeline:
    """The pipeline that `INPUT.PIPELINE` names."""
    return PIPELINES.get(cfg.INPUT.PIPELINE)()


def build_train_loader(
    cfg: CfgNode, records: Sequence[dict], mapper: Callable, group_by_aspect: bool
) -> TrainLoader:
    """A `TrainLoader` with the batch size, seed, workers and rank of the config and process."""
    world_size = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is no multiple of {world_size} ranks"
        )
    return TrainLoader(
        records,
        mapper,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
        seed=cfg.SEED,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        group_by_aspect=group_by_aspect,
        rank=comm.get_rank(),
        world_size=world_size,
    )


@PIPELINES.register()
class StockPipeline:
    """Detectron2's own mapper with our reproducible sampler; COCO or LVIS evaluation."""

    def check_evaluation(self, cfg: CfgNode) -> None:
        """Refuses test sets that could not be evaluated, before a run."""
        check_instance_evaluation(cfg)

    def train_loader(self, cfg: CfgNode) -> TrainLoader:
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        )
        return build_train_loader(
            cfg, records, DatasetMapper(cfg, True), cfg.DATALOADER.ASPECT_RATIO_GROUPING
        )

    def test_loader(self, cfg: CfgNode, dataset_name: str) -> DataLoader:
        return build_detection_test_loader(cfg, dataset_name)

    def evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
        return evaluator_from_config(cfg, dataset_name, output_dir)
