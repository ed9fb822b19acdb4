"""Stock Mask R-CNN on LVIS: boxes, labelling command, 20 steps, LVIS metrics."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from pseudolabel.config import add_masksmith_config, config_changes
from pseudolabel.loader import seed_everything
from pseudolabel.trainer import Trainer
from tests.tiny import CONFIGS, tiny_config

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 4
LVIS_METRICS = {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"}


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def files(data_dir, tmp_path_factory):
    """(human LVIS file of a few images, labels drawn from its boxes alone, image folder)."""
    folder, source = tmp_path_factory.mktemp("lvis"), data_dir / "lvis_dev"
    data = json.loads((source / "annotations/lvis_v0.5_val_subset.json").read_text())
    data["images"] = sorted(data["images"], key=lambda image: image["id"])[:IMAGES]
    kept = {image["id"] for image in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in kept]
    truth, boxes, labels = (folder / f"{name}.json" for name in ("truth", "boxes", "labels"))
    truth.write_text(json.dumps(data))
    run("datasets/strip_masks.py", truth, boxes)
    command = ["--labeler", "ellipse", "--boxes", boxes, "--images", source / "images"]
    run("tools/label.py", *command, "--output", labels)
    return truth, labels, source / "images"


def lvis_config(files, output, *opts):
    truth, labels, images = files
    entries = [
        {"name": f"{part}_{output}", "json": str(file), "image_root": str(images), "format": "lvis"}
        for part, file in (("labels", labels), ("truth", truth))
    ]
    short = [
        *("DATASETS.REGISTER", entries, "SOLVER.IMS_PER_BATCH", 1),
        *("DATASETS.TRAIN", (entries[0]["name"],), "DATASETS.TEST", (entries[1]["name"],)),
        *("TEST.DETECTIONS_PER_IMAGE", 20, "DATALOADER.REPEAT_THRESHOLD", 0.5),
    ]
    return tiny_config("mask_rcnn/lvis_dev", labels, output, [*short, *opts])


def test_twenty_steps_on_rle_labels_and_lvis_evaluation(files, tmp_path, caplog):
    cfg = lvis_config(files, tmp_path / "run")
    (train,), (test,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1230
    assert MetadataCatalog.get(test).evaluator_type == "lvis"
    segmentations = [a["segmentation"] for r in DatasetCatalog.get(train) for a in r["annotations"]]
    assert segmentations
    assert all(isinstance(segmentation, dict) for segmentation in segmentations)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    seed_everything(cfg.SEED)
    with caplog.at_level("INFO"):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    assert trainer.iter == 20
    assert any("repeat-factor sampling: threshold 0.5" in r.getMessage() for r in caplog.records)
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    last = {key: value for line in lines for key, value in json.loads(line).items()}
    losses = {key: last[key] for key in last if key.startswith(("loss_", "total_loss"))}
    assert len(losses) == 6
    assert all(map(math.isfinite, losses.values()))
    assert 0 < last["loss_mask"] < 1
    for task in ("bbox", "segm"):
        assert {f"{task}/{name}" for name in LVIS_METRICS} <= last.keys()
        assert last[f"{task}/AP"] >= 0


def test_lvis_configs_are_detectron2s_recipe_and_differ_in_the_depth():
    texts = {}
    for depth in (50, 101):
        cfg = get_cfg()
        add_masksmith_config(cfg)
        cfg.merge_from_file(str(CONFIGS / f"mask_rcnn/lvis_v1_R_{depth}_FPN_1x.yaml"))
        texts[depth] = cfg.dump()
    changes = [line.split(":")[0] for line in config_changes(texts[50], texts[101])]
    assert changes == ["MODEL.RESNETS.DEPTH", "MODEL.WEIGHTS", "OUTPUT_DIR"]
    solver, data = cfg.SOLVER, cfg.DATALOADER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (16, 0.02, 180000)
    assert solver.STEPS == (120000, 160000)
    assert (data.SAMPLER_TRAIN, data.REPEAT_THRESHOLD) == ("RepeatFactorTrainingSampler", 0.001)
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.0001
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert cfg.MODEL.MASK_ON
    assert all(entry["format"] == "lvis" for entry in cfg.DATASETS.REGISTER)


def test_resumed_run_repeats_the_same_images(files, tmp_path):
    """Bit for bit, although epochs of repeated images have no fixed length."""
    states = []
    for output, stops in ((tmp_path / "whole", [6]), (tmp_path / "parts", [3, 6])):
        cfg = lvis_config(files, output, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 3)
        cfg.DATASETS.TEST = ()
        output.mkdir()
        for index, stop in enumerate(stops):
            seed_everything(cfg.SEED)
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=index > 0)
            trainer.max_iter = stop
            trainer.train()
        states.append(trainer.model.state_dict())
    assert all(value.equal(states[1][key]) for key, value in states[0].items())
