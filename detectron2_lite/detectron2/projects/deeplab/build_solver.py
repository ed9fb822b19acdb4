"""The scheduler of a config, poly included."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRScheduler
from detectron2.solver import build_lr_scheduler as build_stock_scheduler

from .lr_scheduler import WarmupPolyLR

__all__ = ["build_lr_scheduler"]


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """``SOLVER.LR_SCHEDULER_NAME``: "WarmupPolyLR", or any name that `detectron2.solver` knows.

    The poly schedule reads the keys of `add_deeplab_config` as well.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_stock_scheduler(cfg, optimizer)
    return WarmupPolyLR(
        optimizer,
        max_iters=solver.MAX_ITER,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_method=solver.WARMUP_METHOD,
        power=solver.POLY_LR_POWER,
        constant_ending=solver.POLY_LR_CONSTANT_ENDING,
    )
