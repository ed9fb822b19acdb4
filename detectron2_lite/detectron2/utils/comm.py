"""Communication between the processes of one training; all of it works in a single process."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

__all__ = [
    "all_gather",
    "create_local_process_group",
    "gather",
    "get_local_process_group",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "is_main_process",
    "reduce_dict",
    "shared_random_seed",
    "synchronize",
]

# Processes on this machine; set once per process by `create_local_process_group`.
_local_group: dist.ProcessGroup | None = None


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _together() else 1


def get_rank() -> int:
    """Index of this process among all."""
    return dist.get_rank() if _together() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make one group per machine; every process calls it once, with the same number.

    Raises:
        AssertionError: called twice, or the number does not divide the world size.
    """
    global _local_group
    assert _local_group is None, "The local process group exists already"
    world = get_world_size()
    assert world % num_workers_per_machine == 0, f"{num_workers_per_machine} of {world} processes"
    mine = get_rank() // num_workers_per_machine
    for machine in range(world // num_workers_per_machine):
        first = machine * num_workers_per_machine
        # Every process has to take part in making every group.
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == mine:
            _local_group = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of this machine's processes.

    Raises:
        AssertionError: `create_local_process_group` was not called; `launch` does it.
    """
    assert _local_group is not None, "No local process group: start the processes with launch()"
    return _local_group


def _from_torchrun(variable: str) -> int | None:
    """A number that torchrun has set; None without it, or where `launch` made the groups."""
    value = None if _local_group is not None else os.environ.get(variable)
    return None if value is None else int(value)


def get_local_rank() -> int:
    """Index of this process among those of its machine.

    Without `launch`, the environment that torchrun sets is believed.
    """
    if not _together():
        return 0
    told = _from_torchrun("LOCAL_RANK")
    return dist.get_rank(get_local_process_group()) if told is None else told


def get_local_size() -> int:
    """Number of processes on this machine."""
    if not _together():
        return 1
    told = _from_torchrun("LOCAL_WORLD_SIZE")
    return dist.get_world_size(get_local_process_group()) if told is None else told


def is_main_process() -> bool:
    """Whether this is the process that writes files and logs."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process is here."""
    if get_world_size() > 1:
        # Without the device, NCCL guesses it from the rank, wrongly on several machines.
        dist.barrier(device_ids=[torch.cuda.current_device()] if _on_gpus() else None)


def _on_gpus() -> bool:
    return str(dist.get_backend()).lower() == "nccl"


@lru_cache
def _cpu_group() -> dist.ProcessGroup:
    """A group of all processes that can carry pickled objects without a GPU."""
    return dist.new_group(backend="gloo") if _on_gpus() else dist.group.WORLD


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Collect a picklable object from every process, in the order of ranks, in every process."""
    if get_world_size() == 1:
        return [data]
    group = _cpu_group() if group is None else group
    size = dist.get_world_size(group)
    if size == 1:
        return [data]
    collected: list[Any] = [None] * size
    dist.all_gather_object(collected, data, group=group)
    return collected


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Collect a picklable object from every process in one of them.

    Args:
        data: this process's object.
        dst: rank that receives.
        group: None for all processes.

    Returns:
        The objects in the order of ranks on `dst`, an empty list elsewhere.
    """
    if get_world_size() == 1:
        return [data]
    group = _cpu_group() if group is None else group
    size = dist.get_world_size(group=group)
    if size == 1:
        return [data]
    receives = dist.get_rank() == dst
    collected: list[Any] | None = [None] * size if receives else None
    dist.gather_object(data, collected, dst=dst, group=group)
    return collected if collected is not None else []


def shared_random_seed() -> int:
    """A random number that is the same in all processes.

    It is drawn from numpy's global generator, so it is reproducible where that is seeded.
    """
    drawn = int(np.random.randint(1 << 31))
    return all_gather(drawn)[0]


def reduce_dict(input_dict: dict[str, torch.Tensor], average: bool = True) -> dict:
    """Sum or average scalars of equal names over all processes.

    Args:
        input_dict: name -> scalar tensor, the same names everywhere.
        average: divide by the number of processes.

    Returns:
        The reduced values on rank 0; elsewhere the values are not meaningful.
    """
    world = get_world_size()
    if world == 1:
        return input_dict
    names = sorted(input_dict)
    with torch.no_grad():
        values = torch.stack([input_dict[name] for name in names])
        dist.reduce(values, dst=0)
        if average and get_rank() == 0:
            values /= world
    return dict(zip(names, values))
