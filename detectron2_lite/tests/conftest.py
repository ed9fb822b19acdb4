"""Shared by all tests of the compile-free build: one thread, reference numbers."""

import json
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure() -> None:
    # Two cores are shared by many jobs; spinning OpenMP threads cost more than they give.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of numbers that upstream Detectron2 produced."""
    return GOLDEN


@pytest.fixture(scope="session")
def parts() -> dict:
    """`golden/parts.json`: outputs of single components of upstream Detectron2."""
    return json.loads((GOLDEN / "parts.json").read_text(encoding="utf-8"))
