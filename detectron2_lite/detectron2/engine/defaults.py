"""The standard way to wire a config into a training run."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import transforms as T
from detectron2.evaluation import (
    DatasetEvaluator,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn

from . import hooks
from .setup import (
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
)
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]


class DefaultPredictor:
    """One image in, one result out: model from the config, weights loaded, test-time resize.

    Input is a uint8 BGR array (H, W, 3) whatever INPUT.FORMAT says; output is the model's dict for
    it, in the original resolution.
    """

    def __init__(self, cfg: CfgNode) -> None:
        cfg = cfg.clone()  # the caller may go on editing its own
        inputs, test_sets = cfg.INPUT, cfg.DATASETS.TEST
        if inputs.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT must be RGB or BGR here, got {inputs.FORMAT}")
        self.input_format = inputs.FORMAT
        self.aug = T.ResizeShortestEdge([inputs.MIN_SIZE_TEST] * 2, inputs.MAX_SIZE_TEST)
        self.metadata = MetadataCatalog.get(test_sets[0]) if test_sets else None
        self.cfg, self.model = cfg, build_model(cfg).eval()
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict on one BGR image (H, W, 3)."""
        pixels = original_image if self.input_format == "BGR" else original_image[:, :, ::-1]
        resized = self.aug.get_transform(pixels).apply_image(pixels)
        tensor = torch.from_numpy(np.moveaxis(resized, -1, 0).astype(np.float32))
        record: dict[str, Any] = dict(zip(("height", "width"), original_image.shape))
        record["image"] = tensor.to(self.cfg.MODEL.DEVICE)
        (prediction,) = self.model([record])
        return prediction


class DefaultTrainer(TrainerBase):
    """Config in, training run out; override the ``build_*`` methods to change a part.

    Builds model, optimizer and train loader in that order, then scheduler, checkpointer and hooks.
    One iteration is that of an inner SimpleTrainer (or AMPTrainer), kept as ``_trainer``. The hooks
    of this class get every event except ``after_backward``, which is the inner trainer's alone: as
    upstream, a hook that needs it is registered with ``_trainer``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        library_log = logging.getLogger("detectron2")
        if library_log.getEffectiveLevel() > logging.INFO:
            setup_logger()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        solver = cfg.SOLVER
        self.start_iter, self.max_iter = 0, solver.MAX_ITER

        # Model, optimizer, loader: the order decides which random numbers each of them draws.
        network = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, network)
        batches = self.build_train_loader(cfg)
        # Only the parameters are kept equal; buffers may differ between processes.
        network = create_ddp_model(network, broadcast_buffers=False)
        loop = AMPTrainer if solver.AMP.ENABLED else SimpleTrainer
        self._trainer = loop(network, batches, optimizer)

        # Weak: whoever drops this trainer must not wait for the garbage collector.
        myself = weakref.proxy(self)
        self.checkpointer = DetectionCheckpointer(network, cfg.OUTPUT_DIR, trainer=myself)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.register_hooks(self.build_hooks())

    @property
    def model(self) -> nn.Module:
        """The model in training, DDP-wrapped if there are several processes."""
        return self._trainer.model

    @model.setter
    def model(self, value: nn.Module) -> None:
        self._trainer.model = value

    @property
    def data_loader(self) -> Iterable:
        """The train loader."""
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, value: Iterable) -> None:
        self._trainer.data_loader = value

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, value: torch.optim.Optimizer) -> None:
        self._trainer.optimizer = value

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from OUTPUT_DIR's last checkpoint, or load MODEL.WEIGHTS (model only)."""
        weights, saved = self.cfg.MODEL.WEIGHTS, self.checkpointer
        continues = resume and saved.has_checkpoint()
        saved.resume_or_load(weights, resume=resume)
        if continues:
            # The checkpoint holds the last finished iteration.
            self.start_iter = 1 + self.iter

    def build_hooks(self) -> list[HookBase | None]:
        """Timer, LR, (PreciseBN,) checkpoints, evaluation, writers: in that order.

        Checkpoints come after everything that changes saved state; writers last, so that they see
        all scalars. Checkpoints and writers exist on the main process only.
        """
        cfg = self.cfg

        def evaluate() -> Mapping[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        timer, schedule = hooks.IterationTimer(), hooks.LRScheduler()
        precise = hooks.PreciseBN() if cfg.TEST.PRECISE_BN.ENABLED else None
        evaluation = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate)
        if not comm.is_main_process():
            return [timer, schedule, precise, evaluation]
        every = cfg.SOLVER.CHECKPOINT_PERIOD
        saver = hooks.PeriodicCheckpointer(self.checkpointer, every)
        writer = hooks.PeriodicWriter(self.build_writers())
        return [timer, schedule, precise, saver, evaluation, writer]

    def build_writers(self) -> list[EventWriter]:
        """Writers for OUTPUT_DIR."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> Mapping[str, Any] | None:
        """Train to MAX_ITER; returns verified results when TEST.EXPECTED_RESULTS is set."""
        super().train(self.start_iter, self.max_iter)
        expected = self.cfg.TEST.EXPECTED_RESULTS
        if not expected or not comm.is_main_process():
            return None
        results = getattr(self, "_last_eval_results", None)
        if results is None:
            raise RuntimeError("TEST.EXPECTED_RESULTS is set, but no evaluation took place")
        verify_results(self.cfg, results)
        return results

    def run_step(self) -> None:
        """One iteration of the inner trainer."""
        inner = self._trainer
        inner.iter = self.iter
        inner.run_step()

    def state_dict(self) -> dict[str, Any]:
        """Iteration and hooks, and the inner trainer (its optimizer) under ``_trainer``."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        # The inner trainer first: a checkpoint that lacks it is refused before anything changes.
        self._trainer.load_state_dict(state_dict["_trainer"])
        super().load_state_dict(state_dict)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of MODEL.META_ARCHITECTURE, on MODEL.DEVICE."""
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """SGD by the SOLVER keys."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The scheduler of SOLVER.LR_SCHEDULER_NAME."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        """An endless iterable of batches (lists of dicts)."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """A loader over one test set, with a length."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Not defined here: which metric suits a dataset is the user's choice."""
        raise NotImplementedError(
            f"To evaluate {dataset_name}, override {cls.__name__}.build_evaluator or pass "
            "evaluators= to test()"
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluate on every DATASETS.TEST.

        Args:
            evaluators: one per test set; None asks :meth:`build_evaluator`, and skips a test set
                for which that is not implemented.

        Returns:
            ``{task: {metric: value}}`` for a single test set, else that per dataset name.
        """
        logger = logging.getLogger(__name__)
        names = cfg.DATASETS.TEST
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        if given is not None and len(given) != len(names):
            raise ValueError(f"{len(names)} test sets, but {len(given)} evaluators")
        results: dict[str, Any] = {}
        for index, name in enumerate(names):
            loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = given[index] if given else cls.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("No evaluator, %s is skipped: %s", name, error)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, loader, evaluator)
            if comm.is_main_process():
                logger.info("Results on %s:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Rescale the schedule when the config was written for another number of processes.

        With SOLVER.REFERENCE_WORLD_SIZE r > 0 and w processes, batch size and base LR are
        multiplied by w/r, and all iteration counts divided by it (linear scaling rule of
        Goyal et al. 2017). 0 switches it off.

        Raises:
            ValueError: when IMS_PER_BATCH is not divisible by r.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is not a multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE {reference}"
            )
        frozen = cfg.is_frozen()
        cfg = cfg.clone()
        cfg.defrost()
        solver, ratio = cfg.SOLVER, num_workers / reference
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * ratio)
        solver.BASE_LR *= ratio
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = round(solver[key] / ratio)
        solver.STEPS = tuple(round(step / ratio) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / ratio)
        solver.REFERENCE_WORLD_SIZE = num_workers
        if frozen:
            cfg.freeze()
        return cfg
