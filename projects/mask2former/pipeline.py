"""The data pipeline of Mask2Former: the stock one, but for the training mapper."""

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts

from masksmith_projects.mask2former.mapper import InstanceMapper
from pseudolabel.loader import TrainLoader
from pseudolabel.mapper import CheckedMapper
from pseudolabel.pipeline import PIPELINES, StockPipeline, build_train_loader, require_masks


@PIPELINES.register()
class Mask2FormerPipeline(StockPipeline):
    """`InstanceMapper` in training; test loader and evaluation are the stock ones."""

    def train_loader(self, cfg: CfgNode) -> TrainLoader:
        """Endless batches of `DATASETS.TRAIN`.

        Raises:
            DataError: a mask is missing, or the sampler is not supported; when iterated, at an
                image that cannot be used.
        """
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        )
        require_masks(records)
        mapper = CheckedMapper(InstanceMapper.from_config(cfg))
        return build_train_loader(cfg, records, mapper, cfg.DATALOADER.ASPECT_RATIO_GROUPING)
