"""From a checkpoint of MAL to labels: the command, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mal.data  # noqa: F401  (registers the data pipeline)
from mal.labeler import mal as mal_labeler
from mal.mask_auto_labeler import MaskAutoLabeler
from pseudolabel.errors import DataError
from pseudolabel.quality import expected_iou
from tests.tiny import tiny_config, write_coco

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def cfg(tmp_path):
    return tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")


@pytest.fixture
def model(cfg):
    torch.manual_seed(0)
    return MaskAutoLabeler(cfg)


def save(cfg, model):
    out = Path(cfg.OUTPUT_DIR)
    out.mkdir(exist_ok=True)
    torch.save({"model": model.state_dict()}, out / "model_final.pth")
    (out / "config.yaml").write_text(cfg.dump())
    return out


def test_label_command_with_a_trained_checkpoint(cfg, model, tmp_path):
    out = save(cfg, model)
    command = [sys.executable, str(ROOT / "tools/label.py"), "--labeler", "mal"]
    command += ["--boxes", str(tmp_path / "instances.json"), "--images", str(tmp_path)]
    command += ["--output", str(tmp_path / "labels.json")]
    command += ["--config-file", str(out / "config.yaml")]
    command += ["--weights", str(out / "model_final.pth")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    labels = json.loads((tmp_path / "labels.json").read_text())
    truth = json.loads((tmp_path / "instances.json").read_text())
    assert [a["id"] for a in labels["annotations"]] == [a["id"] for a in truth["annotations"]]
    assert all(0 <= a["agreement"] <= 1 for a in labels["annotations"])
    manifest = json.loads((tmp_path / "labels.manifest.json").read_text())
    assert manifest["labeler"]["network"] == cfg.MODEL.MAL.TEST.NETWORK == "teacher"
    assert len(manifest["labeler"]["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "does not exist"),
        (lambda path: path.write_bytes(b"junk"), "not a safe checkpoint"),
        (lambda path: torch.save({"model": {"x": torch.zeros(1)}}, path), "does not fit the model"),
    ],
)
def test_unusable_weights_are_refused(damage, message, cfg, model):
    out = save(cfg, model)
    damage(out / "model_final.pth")
    with pytest.raises(DataError, match=message):
        mal_labeler(str(out / "config.yaml"), str(out / "model_final.pth"))


def test_labeler_needs_config_and_weights():
    with pytest.raises(DataError, match="needs a config and weights"):
        mal_labeler()


@pytest.mark.parametrize(
    ("probability", "mask", "expected"),
    [
        ([[1.0, 1.0], [0.0, 0.0]], [[1, 1], [0, 0]], 1.0),  # certain and right
        ([[0.8, 0.8], [0.2, 0.2]], [[1, 1], [0, 0]], 1.6 / 2.4),
        ([[0.4, 0.4], [0.4, 0.4]], [[0, 0], [0, 0]], 0.0),  # nothing above the threshold
        ([[0.0, 0.0], [0.0, 0.0]], [[0, 0], [0, 0]], 0.0),  # and nothing at all
    ],
)
def test_expected_iou(probability, mask, expected):
    mask = np.array(mask, bool)
    assert expected_iou(np.array(probability), mask) == pytest.approx(expected)
