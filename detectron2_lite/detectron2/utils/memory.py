"""Going on after the GPU's memory ran out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

__all__ = ["retry_if_cuda_oom"]

Result = TypeVar("Result")


def _to_cpu(value: Any) -> Any:
    on_gpu = getattr(getattr(value, "device", None), "type", None) == "cuda"
    return value.to(device="cpu") if on_gpu and hasattr(value, "to") else value


def retry_if_cuda_oom(func: Callable[..., Result]) -> Callable[..., Result]:
    """Make a function try again when the GPU is out of memory.

    First with the cache emptied, then with its arguments moved to the CPU (the result is then on
    the CPU as well). Only direct arguments with a `device` and a `to` are moved, so `func` must
    not use other GPU tensors and must be free of side effects.
    """
    logger = logging.getLogger(__name__)

    @wraps(func)
    def patient(*args: Any, **kwargs: Any) -> Result:
        try:
            return func(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            logger.info("Out of GPU memory in %s: emptying the cache", func)
        # Outside the except block, whose traceback would keep the failed call's tensors alive.
        torch.cuda.empty_cache()
        try:
            return func(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            logger.warning("Out of GPU memory in %s again: using the CPU", func)
        named = dict(zip(kwargs, map(_to_cpu, kwargs.values())))
        return func(*map(_to_cpu, args), **named)

    return patient
