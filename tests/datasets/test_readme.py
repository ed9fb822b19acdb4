"""The commands of the READMEs make what the configs read."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("config", "readme"),
    [
        ("mask_rcnn/lvis_dev.yaml", "datasets/README.md"),
        ("mask_rcnn/coco_dev.yaml", "README.md"),
        ("mal/coco_dev.yaml", "README.md"),
    ],
)
def test_file_that_a_config_reads_from_output_is_made_by_a_command(config, readme):
    entries = yaml.safe_load((ROOT / "configs" / config).read_text())["DATASETS"]["REGISTER"]
    needed = {entry["json"] for entry in entries if entry["json"].startswith("output/")}
    assert needed
    # `--output X.json`, or the second argument of strip_masks.py.
    commands = (ROOT / readme).read_text().replace("\\\n", " ")
    assert needed <= set(re.findall(r"(?:--output|strip_masks\.py \S+)\s+(\S+)", commands))
