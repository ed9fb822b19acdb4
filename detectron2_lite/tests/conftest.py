"""Shared by all tests of the compile-free build: one thread, reference numbers."""

import json
from pathlib import Path

import detectron2
import pytest
import torch

# Where upstream is installed, its own tests are elsewhere; the reference numbers hold for both.
IS_LITE = getattr(detectron2, "__provider__", "") == "lite"
GOLDEN = Path(__file__).parent / "golden"


def pytest_configure() -> None:
    # Two cores are shared by many jobs; spinning OpenMP threads cost more than they give.
    torch.set_num_threads(1)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if not IS_LITE and not collection_path.name.startswith("test_golden"):
        return collection_path.suffix == ".py" or None
    return None


def pytest_report_header() -> str:
    tested = "all tests" if IS_LITE else "reference numbers only"
    return f"detectron2 {detectron2.__version__}: detectron2_lite/tests runs {tested}"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of numbers that upstream Detectron2 produced."""
    return GOLDEN


@pytest.fixture(scope="session")
def parts() -> dict:
    """`golden/parts.json`: outputs of single components of upstream Detectron2."""
    return json.loads((GOLDEN / "parts.json").read_text(encoding="utf-8"))
