"""Two processes on the CPU train as one with the double batch does; errors stay one line."""

import json
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch

import mal.data
import mal.mask_auto_labeler  # noqa: F401  (registers the meta-architecture)
from pseudolabel.distributed import data_error_of
from pseudolabel.loader import seed_everything
from pseudolabel.trainer import Trainer
from tests.tiny import tiny_config, write_coco

ROOT = Path(__file__).resolve().parent.parent
TRAIN_NET = ROOT / "tools" / "train_net.py"
LAUNCH = [TRAIN_NET, "--num-gpus", 2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, TRAIN_NET]
STEPS = 3
# Plain gradient steps: AdamW and clipping would hide a gradient of the wrong length.
SHORT = [
    *("SOLVER.MAX_ITER", STEPS, "SOLVER.WARMUP_ITERS", 1, "SOLVER.BASE_LR", 0.01),
    *("SOLVER.OPTIMIZER", "SGD", "SOLVER.CLIP_GRADIENTS.ENABLED", False),
    *("SOLVER.WEIGHT_DECAY", 0.0, "DATASETS.TEST", "()"),
]

# Mask R-CNN normalises its losses by each process's own number of samples. They are the same as
# those of one process only where every image gives equally many, and none is drawn at random: all
# anchors are used, and of the regions the two objects (foreground) and two proposals (background).
EVEN_SAMPLES = [
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100000, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 2),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5),
    *("MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.95]"),
]


def write_config(method, json_file, output, *opts):
    output.mkdir()
    path = output / "given.yaml"
    path.write_text(tiny_config(method, json_file, output, [*SHORT, *opts]).dump())
    return path


def run(*command):
    """A command in processes of its own; Detectron2's installation may bring a `tools` too, so
    that the tool is not imported here.
    """
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )


def train_here(cfg):
    """The weights before and after a run in this process."""
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    seed_everything(cfg.SEED)
    trainer = Trainer(cfg)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    return before, trainer.model.state_dict()


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return {key: lines[-1][key] for key in lines[-1] if "loss" in key}


@pytest.mark.parametrize(
    ("method", "opts", "command"),
    [
        ("mask_rcnn/sample", EVEN_SAMPLES, LAUNCH),
        # MAL's losses are means over boxes, one of which is a sample. Processes take whole blocks
        # of them, and exchange their gradients after the last batch of a step.
        ("mal/sample", ["SOLVER.ACCUMULATE", 2, "MODEL.MAL.CROPS_PER_IMAGE", 2], TORCHRUN),
    ],
)
def test_two_processes_equal_one_with_the_double_batch(method, opts, command, tmp_path):
    json_file = write_coco(tmp_path)
    config = write_config(method, json_file, tmp_path / "two", *opts)
    done = run(*command, "--config-file", config)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "two" / "model_final.pth", weights_only=True)["model"]
    before, one = train_here(tiny_config(method, json_file, tmp_path / "one", [*SHORT, *opts]))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    # Equal weights after several steps are equal gradients, as far as they have moved.
    moved = {key: (value - before[key]).abs().max().item() for key, value in one.items()}
    assert max(moved.values()) > 1e-3
    for key, value in one.items():
        differs = (two[key] - value).abs().max().item()
        assert differs <= 0.01 * moved[key] + 1e-6, key


def test_bad_data_in_several_processes_is_one_line(tmp_path):
    """Each of them finds it; the launcher gets the text of a traceback."""
    config = write_config("mask_rcnn/sample", write_coco(tmp_path), tmp_path / "run")
    bad = ["DATALOADER.SAMPLER_TRAIN", "MySampler"]
    done = run(*LAUNCH, "--config-file", config, *bad)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: DATALOADER.SAMPLER_TRAIN: 'MySampler' is not supported")


def test_data_error_is_read_from_the_traceback_of_a_process_alone():
    rank = "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call):\n"
    raised = f"{rank}  ...\npseudolabel.errors.DataError: a.json: is bad. Remedy: mend it.\n"
    assert data_error_of(Exception(raised)) == "a.json: is bad. Remedy: mend it."
    assert data_error_of(Exception(f"{rank}  ...\nValueError: DataError: no\n")) is None


def test_one_distribution_provides_detectron2():
    """With both builds installed, which of them is imported would depend on the path."""
    assert len(set(packages_distributions()["detectron2"])) == 1
