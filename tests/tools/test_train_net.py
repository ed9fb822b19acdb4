"""tools/train_net.py, run as a command; then the whole way from boxes to a trained Mask R-CNN."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mal.data
import mal.mask_auto_labeler  # noqa: F401  (these register what the configs name)
from tests.tiny import tiny_config, write_coco

ROOT = Path(__file__).resolve().parents[2]


def write_config(method, json_file, output, *opts):
    """A tiny config as a file, with its own data set registered by the file alone."""
    short = [
        "SOLVER.MAX_ITER",
        2,
        "SOLVER.BASE_LR",
        0.0002,
        "SOLVER.WARMUP_ITERS",
        1,
        "SOLVER.STEPS",
        (),
        *opts,
    ]
    cfg = tiny_config(method, json_file, output, short)
    path = output.with_suffix(".yaml")
    path.write_text(cfg.dump())
    return path


def run(tool, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    done.text = done.stdout + done.stderr
    return done


def train_net(config, *arguments):
    return run("train_net.py", "--config-file", config, *arguments)


def metrics(output):
    lines = (output / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config file, output folder, data) of a MAL run of two iterations."""
    folder = tmp_path_factory.mktemp("mal")
    data = write_coco(folder)
    config = write_config("mal/sample", data, folder / "run")
    done = train_net(config)
    assert done.returncode == 0, done.text
    return config, folder / "run", data


def test_training_writes_a_checkpoint_and_scores_of_both_networks(trained):
    _, output, _ = trained
    assert (output / "model_final.pth").is_file()
    assert {"student/mIoU", "teacher/mIoU"} <= metrics(output).keys()


def test_resume_tells_a_finished_run_and_what_changed(trained):
    config, output, _ = trained
    done = train_net(config, "--resume")
    assert done.returncode == 0, done.text
    assert (
        "this run is finished: the checkpoint is at iteration 2 of SOLVER.MAX_ITER 2" in done.text
    )
    assert "resumes one of another config" not in done.text
    assert "student/mIoU" in metrics(output)
    done = train_net(config, "--resume", "SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 0.0004)
    assert done.returncode == 0, done.text
    assert "SOLVER.BASE_LR: 0.0002 -> 0.0004" in done.text
    assert "SOLVER.MAX_ITER: 2 -> 3" in done.text
    assert "this run is finished" not in done.text
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 2


def damaged(output, path):
    """The checkpoint without one of its tensors."""
    content = torch.load(output / "model_final.pth", weights_only=True)
    content["model"].pop("student.decoder.key.0.weight")
    torch.save(content, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda output, path: torch.save({"model": {"x": torch.ones(1)}}, path), "weights are not"),
        (damaged, "1 of the model's .* first student.decoder.key.0.weight"),
        (lambda output, path: path.write_bytes(b"junk"), "cannot be loaded"),
        (lambda output, path: None, "cannot be loaded"),  # no such file
    ],
)
def test_evaluation_refuses_weights_that_are_not_the_models(make, message, trained, tmp_path):
    config, output, _ = trained
    make(output, tmp_path / "other.pth")
    done = train_net(
        config, "--eval-only", "MODEL.WEIGHTS", tmp_path / "other.pth", "OUTPUT_DIR", tmp_path
    )
    assert done.returncode == 1, done.text
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'other.pth'}: ")
    assert re.search(message, last), last
    assert "Traceback" not in done.text


def test_evaluation_with_its_own_weights_and_with_none(trained, tmp_path):
    config, output, _ = trained
    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    done = train_net(config, "--eval-only", *weights, "OUTPUT_DIR", tmp_path / "good")
    assert done.returncode == 0, done.text
    assert "as initialised" not in done.text
    done = train_net(config, "--eval-only", "OUTPUT_DIR", tmp_path / "none")
    assert done.returncode == 0, done.text
    assert "evaluates the network as initialised" in done.text
    for name in ("good", "none"):
        scores = json.loads(next((tmp_path / name).rglob("mask_iou.json")).read_text())
        assert scores["student"]["n"] == 8


def test_negative_seed_is_drawn_stored_and_kept_by_a_resumed_run(tmp_path):
    config = write_config("mal/sample", write_coco(tmp_path), tmp_path / "given", "SEED", -1)
    options = ("DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "run")
    done = train_net(config, *options)
    assert done.returncode == 0, done.text
    (seed,) = re.findall(r"SEED (\d+), drawn since", done.text)
    # Whoever starts with the run's own config repeats the run.
    assert f"\nSEED: {seed}\n" in (tmp_path / "run/config.yaml").read_text()
    done = train_net(config, "--resume", *options)
    assert done.returncode == 0, done.text
    assert f"SEED {seed}, drawn since" in done.text
    assert "resumes one of another config" not in done.text


def test_bad_image_in_a_loader_process_ends_in_one_line(tmp_path):
    data = write_coco(tmp_path)
    config = write_config("mask_rcnn/sample", data, tmp_path / "run")
    for path in tmp_path.glob("[1-4].png"):
        Image.fromarray(np.full((64, 64), 40000, dtype=np.uint16)).save(path)
    done = train_net(config, "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", 1)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    expected = r"error: .*[1-4]\.png: the image has mode I;16, not 8 bit\. Remedy: convert.*"
    assert re.fullmatch(expected, last), last


def test_bad_data_ends_in_one_line_and_a_bug_in_a_traceback(tmp_path):
    config = write_config("mal/sample", write_coco(tmp_path, masks=False), tmp_path / "run")
    done = train_net(config)
    assert done.returncode == 1
    assert "give human masks for DATASETS.TEST or set it to ()" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.text
    done = train_net(config, "DATASETS.TEST", "()", "SOLVER.OPTIMIZER", "Adam")
    assert done.returncode == 1
    assert "use 'SGD' or 'AdamW'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.text
    done = train_net(config, "DATASETS.TEST", "()", "SOLVER.LR_SCHEDULER_NAME", "Nobodys")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Nobodys" in done.stderr


def test_from_boxes_to_a_mask_rcnn_by_configs_alone(trained, tmp_path):
    """Labels the boxes with the trained network and trains Mask R-CNN on the labels."""
    _, output, data = trained
    boxes = json.loads(data.read_text())
    for annotation in boxes["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    labels = data.parent / "labels.json"
    done = run(
        "label.py",
        *("--boxes", tmp_path / "boxes.json", "--images", data.parent, "--output", labels),
        *("--labeler", "mal", "--config-file", output / "config.yaml"),
        *("--weights", output / "model_final.pth"),
    )
    assert done.returncode == 0, done.text
    assert len(json.loads(labels.read_text())["annotations"]) == 8
    register = [
        {"name": "labels", "json": str(labels), "image_root": str(data.parent)},
        {"name": "truth", "json": str(data), "image_root": str(data.parent)},
    ]
    sets = ["DATASETS.REGISTER", register, "DATASETS.TRAIN", "('labels',)"]
    sets += ["DATASETS.TEST", "('truth',)"]
    config = write_config("mask_rcnn/sample", data, tmp_path / "rcnn")
    done = train_net(config, *sets)
    assert done.returncode == 0, done.text
    assert "loss_mask" in metrics(tmp_path / "rcnn")
    assert {"bbox/AP", "segm/AP"} <= metrics(tmp_path / "rcnn").keys()
