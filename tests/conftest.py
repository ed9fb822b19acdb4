"""Shared fixtures. Real data is found through $MASKSMITH_DATA alone."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the small real data sets; skips where it is not there, fails where it must be."""
    value = os.environ.get("MASKSMITH_DATA", "")
    if value and Path(value).is_dir():
        return Path(value)
    if os.environ.get("MASKSMITH_REQUIRE_DATA"):
        pytest.fail(f"MASKSMITH_DATA is {value!r}, but this run requires the data")
    pytest.skip("MASKSMITH_DATA is not set")
