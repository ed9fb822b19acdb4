"""The converters never write over a file that they read."""

import subprocess
import sys
from pathlib import Path

import pytest

DATASETS = Path(__file__).parents[2] / "datasets"


@pytest.mark.parametrize(
    ("script", "split", "name"),
    [
        ("convert_cityscapes.py", "val", "gtFine/val/a_polygons.json"),
        ("convert_voc.py", "train", "ImageSets/Segmentation/train.txt"),
    ],
)
def test_an_output_among_the_inputs_is_refused(script, split, name, tmp_path):
    target = tmp_path / name
    target.parent.mkdir(parents=True)
    target.write_text("before")
    command = [sys.executable, DATASETS / script, tmp_path, "--split", split, "--output", target]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "among the files of the data set. Remedy" in run.stderr
    assert target.read_text() == "before"
