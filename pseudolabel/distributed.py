"""Starting one process per device: by Detectron2's `launch`, or as a part of a torchrun job."""

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from detectron2.engine import defaults, launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

from pseudolabel.errors import data_error_in


def run_everywhere(main: Callable[[Namespace], object], args: Namespace) -> None:
    """Runs `main(args)` in every process that the command line, or torchrun, asks for.

    Args:
        main: a function that a spawned process can import.
        args: of Detectron2's `default_argument_parser`.

    Raises:
        DataError: `main` raised it here.
        ProcessRaisedException: a spawned process failed; see `data_error_of`.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with _torchrun_group():
            main(args)
        return
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def data_error_of(error: ProcessRaisedException) -> str | None:
    """The message of the DataError that ended a spawned process; None where it was another error.

    What arrives from that process is the text of its traceback alone.
    """
    return data_error_in(str(error))


@contextmanager
def _torchrun_group() -> Iterator[None]:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", init_method="env://")
    try:
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def data_parallel_on(device: str) -> Iterator[None]:
    """Lets a `DefaultTrainer` be built for several processes on the CPU.

    Detectron2 gives DistributedDataParallel the device id of the process, which torch refuses for a
    model on the CPU. On a GPU nothing is changed.

    Args:
        device: MODEL.DEVICE.
    """
    stock = defaults.create_ddp_model
    if torch.device(device).type == "cpu":
        defaults.create_ddp_model = partial(stock, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = stock
