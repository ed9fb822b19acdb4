"""A folder that the commands work in."""

import pytest

from tests.tiny import write_coco


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images with two annotations each, 10, 11 on image 1 up to 40, 41 on image 4."""
    write_coco(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
