"""One table with the versions that matter in a bug report."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import numpy as np
import torch
from tabulate import tabulate

from .. import __provider__, __version__

__all__ = ["collect_env_info"]

_PACKAGES = ("torchvision", "fvcore", "iopath", "pycocotools", "Pillow")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def collect_env_info() -> str:
    """Versions of Python and the libraries, and the GPUs, as a table."""
    rows = [
        ("platform", platform.platform()),
        ("Python", sys.version.split()[0]),
        ("numpy", np.__version__),
        ("detectron2", f"{__version__} (provider: {__provider__}, compile-free)"),
        ("PyTorch", f"{torch.__version__} (CUDA {torch.version.cuda})"),
        *((package, _version(package)) for package in _PACKAGES),
    ]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        rows.extend((f"GPU {index}", torch.cuda.get_device_name(index)) for index in range(count))
    else:
        rows.append(("GPU", "none"))
    return tabulate(rows)
