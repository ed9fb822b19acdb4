"""The one trainer of the project: Detectron2's, with our pipelines, seeds and a dump on NaN."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from pseudolabel.checkpointer import AtomicCheckpointer
from pseudolabel.distributed import data_parallel_on
from pseudolabel.ema import unwrap
from pseudolabel.errors import DataError
from pseudolabel.hooks import StepSeed, TeacherUpdate
from pseudolabel.inner_trainer import InnerTrainer
from pseudolabel.loader import TrainLoader
from pseudolabel.optimizer import (
    build_adamw,
    settle_optimizer,
    with_learning_rate,
    without_full_model_clipping,
)
from pseudolabel.pipeline import build_pipeline, samples_per_step
from pseudolabel.plain_samples import to_plain

logger = logging.getLogger(__name__)

NAMED = 8
"""Images that a message names."""


def check_evaluation(cfg: CfgNode) -> None:
    """Lets the pipeline refuse test sets that it could not evaluate on; costs seconds, not a run.

    Raises:
        DataError: naming the file and the remedy.
    """
    check = getattr(build_pipeline(cfg), "check_evaluation", None)
    if check is not None:
        check(cfg)


class Trainer(DefaultTrainer):
    """Runs every config. A method is a meta-architecture and a pipeline, never a trainer.

    Raises:
        DataError: by the pipeline, of training data that cannot be used and test sets that cannot
            be evaluated.
    """

    def __init__(self, cfg: CfgNode):
        check_evaluation(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        unit = getattr(build_pipeline(cfg), "sample_name", "samples")
        cfg = with_learning_rate(cfg, samples_per_step(cfg), unit)
        # Detectron2's own mixed precision refuses a CPU; the step is ours in any case.
        plain = cfg.clone()
        plain.defrost()
        plain.SOLVER.AMP.ENABLED = False
        with data_parallel_on(cfg.MODEL.DEVICE):
            super().__init__(plain)
        self.cfg = cfg
        self._trainer = InnerTrainer(
            *(self.model, self._train_loader, self.optimizer),
            accumulate=cfg.SOLVER.ACCUMULATE,
            mixed_precision=cfg.SOLVER.AMP.ENABLED,
        )

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """The pipeline's batches of `DATASETS.TRAIN`."""
        return build_pipeline(cfg).train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """The pipeline's batches of one data set, this rank's share."""
        return build_pipeline(cfg).test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """The pipeline's evaluator, which writes to OUTPUT_DIR/inference/<data set> by default."""
        folder = output_folder or str(Path(cfg.OUTPUT_DIR, "inference", dataset_name))
        return build_pipeline(cfg).evaluator(cfg, dataset_name, folder)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or AdamW (`SOLVER.OPTIMIZER`), settled by `settle_optimizer`.

        SGD has no use for `SOLVER.BETAS` and `SOLVER.EPS`, which are not looked at then.

        Raises:
            DataError: another name, SGD with a LAYER_DECAY, AdamW with a key that only SGD obeys,
                or a part of the model that is to have another learning rate is not there.
        """
        if cfg.SOLVER.OPTIMIZER == "AdamW":
            return build_adamw(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "SGD":
            name = f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r}"
            raise DataError(name, "is unknown", "use 'SGD' or 'AdamW'")
        if cfg.SOLVER.LAYER_DECAY != 1:
            problem = "needs SOLVER.OPTIMIZER 'AdamW'"
            raise DataError("SOLVER.LAYER_DECAY", problem, "use that, or set it to 1")
        optimizer = super().build_optimizer(without_full_model_clipping(cfg), model)
        settle_optimizer(cfg, model, optimizer)
        return optimizer

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Detectron2's, also for a run that would end within its warm-up."""
        if cfg.SOLVER.RESCALE_INTERVAL and cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
            # There is nothing to squeeze the schedule proper into; it would divide by zero.
            cfg = cfg.clone()
            cfg.defrost()
            stated, cfg.SOLVER.WARMUP_ITERS = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER - 1
            logger.warning(
                "SOLVER.WARMUP_ITERS %d is not below MAX_ITER %d: warm-up shortened to %d",
                *(stated, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS),
            )
        return super().build_lr_scheduler(cfg, optimizer)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's, after our own: a seed per iteration and the update of a teacher."""
        # Before Detectron2's hook that saves takes hold of its own one, which writes in place.
        self.checkpointer = AtomicCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        hooks: list[HookBase] = [StepSeed(self.cfg.SEED)]
        if hasattr(unwrap(self.model), "update_teacher"):
            hooks.append(TeacherUpdate())
        return hooks + super().build_hooks()

    def resume_or_load(self, resume: bool = True) -> None:
        """Loads the last checkpoint of OUTPUT_DIR if asked to and there is one, else MODEL.WEIGHTS.

        The loader is moved to the iteration; a model that prepares itself for a training does so
        at the first one.
        """
        super().resume_or_load(resume)
        # The loader is built before the checkpoint is read; its iterator is not.
        self._train_loader.seek(self.start_iter)
        model = unwrap(self.model)
        if self.start_iter == 0 and hasattr(model, "begin_training"):
            model.begin_training()
        if self.start_iter >= self.max_iter:
            logger.warning(
                "this run is finished: the checkpoint is at iteration %d of SOLVER.MAX_ITER %d; "
                "nothing is trained, only evaluated",
                *(self.start_iter, self.max_iter),
            )

    @property
    def _train_loader(self) -> TrainLoader:
        return self._trainer.data_loader

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; names the dump that was written.
            DataError: an image cannot be used.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            path = self._dump(str(error))
            count = comm.get_world_size()
            # The mean over the processes is looked at, by the first one.
            others = f" of this process, one of {count}" if count > 1 else ""
            raise FloatingPointError(
                f"{error}\nThe batch{others}, the weights and the optimizer state are in {path}; "
                f"its images: {self._images_of_batch()}. "
                "Remedy: look at the images, lower the learning rate (SOLVER.LR_PER_SAMPLE "
                "where it is not 0, else SOLVER.BASE_LR) or enable SOLVER.CLIP_GRADIENTS, then "
                "continue from the last checkpoint with --resume."
            ) from error

    def _images_of_batch(self) -> str:
        """The files of the last batch in words, not more than a line can hold."""
        files = [sample.get("file_name", "?") for sample in self._train_loader.last_samples]
        names = list(dict.fromkeys(map(str, files)))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return ", ".join(names[:NAMED]) + more

    def _dump(self, message: str) -> Path:
        """Writes what is needed to repeat a failed iteration; plain containers and tensors.

        `plain_samples.from_plain` makes the samples of `batch` again (with `SOLVER.ACCUMULATE`
        those of all batches of the step), of which a model with the weights, seeded as `StepSeed`
        does it, finds the same losses.
        """
        path = Path(self.cfg.OUTPUT_DIR, f"nan_dump_rank{comm.get_rank()}_iter{self.iter}.pth")
        batch = self._train_loader.last_samples
        keys = ("file_name", "image_id", "annotation_id")
        names = [{key: sample[key] for key in keys if key in sample} for sample in batch]
        torch.save(
            {
                **self._trainer.state_dict(),
                "iteration": self.iter,
                "rank": comm.get_rank(),
                "message": message,
                "config": self.cfg.dump(),
                "samples": to_plain(names),
                "batch": to_plain(batch),
                "model": unwrap(self.model).state_dict(),
            },
            path,
        )
        logger.error("iteration %d: %s; samples: %s; dump: %s", self.iter, message, names, path)
        return path

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None = None
    ) -> OrderedDict:
        """As Detectron2's; the evaluation's numbers are also printed as CSV lines.

        Args:
            evaluators: one per name in `DATASETS.TEST`; None builds them.

        Returns:
            {dataset: {task: {metric: value}}}; the inner dict alone with one data set.
        """
        results = OrderedDict()
        for index, name in enumerate(cfg.DATASETS.TEST):
            evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            results[name] = inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results
