"""What a run needs before a trainer exists: arguments, folders, loggers, seeds, writers, DDP."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import sys
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there is more than one process.

    Args:
        fp16_compression: all-reduce gradients in half precision.
        kwargs: passed to DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    on_cuda = any(p.device.type == "cuda" for p in model.parameters())
    # DDP refuses device ids for a module on the CPU.
    kwargs.setdefault("device_ids", [comm.get_local_rank()] if on_cuda else None)
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters:
        # The new name of the argument; the old one warns.
        kwargs.setdefault("forward_sync_buffers", kwargs.pop("broadcast_buffers", True))
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        ddp.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return ddp


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line shared by training scripts; ``opts`` holds config overrides."""
    example = f"Example: {sys.argv[0]} --config-file cfg.yaml SOLVER.BASE_LR 0.001 OUTPUT_DIR out"
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(epilog=epilog or example, formatter_class=layout)
    parser.add_argument("--config-file", metavar="FILE", help="path to a YAML config", default="")
    switches = {
        "--resume": "continue from the last checkpoint in OUTPUT_DIR, if there is one",
        "--eval-only": "evaluate, do not train",
    }
    for option, meaning in switches.items():
        parser.add_argument(option, help=meaning, action="store_true")
    numbers = {
        "--num-gpus": (1, "processes per machine"),
        "--num-machines": (1, "number of machines"),
        "--machine-rank": (0, "number of this machine"),
    }
    for option, (default, meaning) in numbers.items():
        parser.add_argument(option, help=meaning, default=default, type=int)
    parser.add_argument(
        "--dist-url", default="auto", help="rendezvous of the processes (tcp://host:port)"
    )
    parser.add_argument(
        "opts",
        default=None,
        nargs=argparse.REMAINDER,
        help="config overrides at the end of the command line: KEY VALUE KEY VALUE ...",
    )
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Output folder, loggers (``log.txt``), ``config.yaml``, seeds and backend flags.

    Every rank gets its own seed ``cfg.SEED + rank``; a negative SEED seeds from the clock.
    """
    rank = comm.get_rank()
    out = cfg.OUTPUT_DIR or None
    if comm.is_main_process() and out:
        PathManager.mkdirs(out)
    logger = setup_logger(out, distributed_rank=rank)
    setup_logger(out, distributed_rank=rank, name="fvcore")
    if comm.is_main_process():
        # Upstream has the same import name, and a user cannot tell the two apart by looking.
        logger.info(
            "detectron2 %s (provider: %s), the compile-free build; folder %s",
            detectron2.__version__,
            detectron2.__provider__,
            os.path.dirname(detectron2.__file__),
        )
    logger.info("Rank %d of %d; torch %s", rank, comm.get_world_size(), torch.__version__)
    logger.info("Arguments: %s", args)
    logger.info("Config:\n%s", cfg.dump())
    if comm.is_main_process() and out:
        path = os.path.join(out, "config.yaml")
        with PathManager.open(path, "w") as stream:
            stream.write(cfg.dump())
        logger.info("Config written to %s", path)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    # Benchmarking algorithms pays off for many images of few sizes, not for evaluation.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Terminal, ``metrics.json``, and tensorboard files where tensorboard is installed."""
    PathManager.mkdirs(output_dir)
    scalars = os.path.join(output_dir, "metrics.json")
    writers: list[EventWriter] = [CommonMetricPrinter(max_iter), JSONWriter(scalars)]
    if importlib.util.find_spec("tensorboard") is not None:
        writers.append(TensorboardXWriter(output_dir))
    return writers
