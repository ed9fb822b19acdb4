"""Start one process per device."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)

logger = logging.getLogger(__name__)


def _free_port() -> int:
    # Another process may take the port before we bind it; rank 0 then fails with a clear error.
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Run ``main_func(*args)`` in every process of a (possibly multi-machine) job.

    Called once per machine. With a world size of 1 the function is simply called, and its
    result returned; otherwise processes are spawned (NCCL with CUDA, gloo without).

    Args:
        num_gpus_per_machine: processes per machine.
        num_machines, machine_rank: how many machines, and which this is.
        dist_url: rendezvous, ``tcp://host:port`` or ``file://path``; ``auto`` picks a free
            local port and works for one machine only.
        timeout: of the collective operations.

    Raises:
        ValueError: for ``auto`` with several machines, or no ``dist_url`` where one is needed.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size <= 1:
        return main_func(*args)
    if dist_url is None:
        raise ValueError("launch needs a dist_url when it starts more than one process")
    if dist_url == "auto":
        if num_machines != 1:
            raise ValueError("dist_url=auto works on one machine only: give tcp://host:port")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    if dist_url.startswith("file://") and num_machines > 1:
        logger.warning("file:// is unreliable across machines; prefer tcp://")
    mp.start_processes(
        _worker,
        nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
        daemon=False,
        start_method="spawn",
    )
    return None


def _worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    per_machine: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
    timeout: timedelta,
) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        devices = torch.cuda.device_count()
        if per_machine > devices:
            raise ValueError(f"{per_machine} processes asked for, but only {devices} CUDA devices")
        torch.cuda.set_device(local_rank)
    rank = machine_rank * per_machine + local_rank
    try:
        dist.init_process_group(
            backend, init_method=dist_url, rank=rank, world_size=world_size, timeout=timeout
        )
    except Exception:
        logger.error("Rank %d could not join the process group at %s", rank, dist_url)
        raise
    comm.create_local_process_group(per_machine)
    # Rank 0 may be slow to start; nobody should run into its first collective alone.
    comm.synchronize()
    try:
        main_func(*args)
    finally:
        dist.destroy_process_group()
