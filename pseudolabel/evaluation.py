"""For Detectron2's evaluation: complete weights, and an evaluator of mask IoU."""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from pseudolabel.checkpointer import SafeCheckpointer
from pseudolabel.checkpoints import UNREADABLE, refuse_missing
from pseudolabel.errors import DataError
from pseudolabel.files import nan_to_null, write_json
from pseudolabel.mask_iou import TrueMasks, summarize_ious

logger = logging.getLogger(__name__)


class _ReportingCheckpointer(SafeCheckpointer):
    """Knows afterwards what was not in the file.

    Attributes:
        missing: the model's keys that are not in the file.
    """

    def _load_model(self, checkpoint: dict):
        incompatible = super()._load_model(checkpoint)
        # A tensor of another shape is not loaded either.
        shapes = [key for key, *_ in incompatible.incorrect_shapes]
        self.missing = sorted({*incompatible.missing_keys, *shapes})
        return incompatible


def load_complete(model: nn.Module, path: str) -> None:
    """Loads weights (a checkpoint, a zoo file or its address) that must hold the whole model.

    Raises:
        DataError: the file is missing, unreadable or not safe to read, or lacks a parameter or
            buffer of the model.
    """
    checkpointer = _ReportingCheckpointer(model)
    try:
        checkpointer.load(path)
    except DataError:
        raise
    except (AssertionError, ValueError, *UNREADABLE) as error:
        raise DataError(path, f"cannot be loaded ({error})", "correct MODEL.WEIGHTS") from error
    refuse_missing(path, model, checkpointer.missing)


class MaskIoUEvaluator(DatasetEvaluator):
    """Mask IoU of a model's networks, each under its own name (`student/mIoU`, `teacher/mIoU`).

    Expects of the model, per image, {network name: [MaskRecord, ...]} in the order of the input's
    `annotation_ids`.

    Args:
        json_file: COCO JSON with human masks.
        output_dir: gets `mask_iou.json`; None writes nothing.
    """

    def __init__(self, json_file: str, output_dir: str | None = None):
        self.truth = TrueMasks(json_file)
        self.output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        self._rows: dict[str, dict[int, tuple]] = {}

    def process(self, inputs: list[dict], outputs: list[Mapping]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            for network, records in output.items():
                rows = self._rows.setdefault(network, {})
                for key, record in zip(sample["annotation_ids"], records, strict=True):
                    rows[key] = self.truth.compare(key, record.segmentation)

    def evaluate(self) -> dict | None:
        """OrderedDict of {network: {metric: value}}; None but on the main process."""
        parts = comm.gather(self._rows)
        if not comm.is_main_process():
            return None
        results = OrderedDict()
        for network in sorted({name for part in parts for name in part}):
            rows = {k: v for part in parts for k, v in part.get(network, {}).items()}
            results[network] = summarize_ious(rows[key] for key in sorted(rows))
            logger.info("mask IoU from true boxes, %s: %s", network, results[network])
        if self.output_dir:
            plain = {network: nan_to_null(table) for network, table in results.items()}
            write_json(Path(self.output_dir, "mask_iou.json"), plain, indent=1)
        return results
