"""The scripts of `datasets/` as modules: they are no package, the name is another library's."""

import importlib.util
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "datasets"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cityscapes():
    return _load("convert_cityscapes")


@pytest.fixture(scope="session")
def voc():
    return _load("convert_voc")
