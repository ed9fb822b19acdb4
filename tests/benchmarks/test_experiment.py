"""The plan of an experiment: layouts, arms, and failures before the first stage."""

import argparse
import json

import pytest
from boxes_to_masks import Experiment, config_files
from stages import ROOT

from pseudolabel.errors import DataError


def write_split(folder, split, masks, suffix=""):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}
    if masks:
        annotation["segmentation"] = [[0, 0, 4, 0, 4, 4]]
    path = folder / f"annotations/instances_{split}{suffix}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"images": [], "annotations": [annotation], "categories": []}))


def experiment(folder):
    names = ("output", "mal_config", "rcnn_config")
    options = dict.fromkeys(names) | {"name": "own", "data": folder, "seed": 0, "record": False}
    options["output"] = folder / "output"
    return Experiment(argparse.Namespace(**options))


@pytest.mark.parametrize(
    ("suffix", "images"),
    [
        ("", ["images"]),  # the project's layout
        ("2017", ["train2017", "val2017"]),  # COCO's own
    ],
)
def test_both_layouts_are_found(suffix, images, tmp_path):
    for name in images:
        (tmp_path / name).mkdir()
    for split in ("train", "val"):
        write_split(tmp_path, split, masks=True, suffix=suffix)
    found = experiment(tmp_path).splits
    assert found["train"][1].name == images[0]
    assert found["val"][1].name == images[-1]


@pytest.mark.parametrize(("masks", "arms"), [(True, ["mal", "human"]), (False, ["mal"])])
def test_the_human_arm_needs_masks_in_train(masks, arms, tmp_path):
    (tmp_path / "images").mkdir()
    write_split(tmp_path, "train", masks)
    write_split(tmp_path, "val", masks=True)
    plan = experiment(tmp_path)
    plan.check()
    assert plan.arms() == arms
    assert [stage.name for stage in plan.plan()[-1]] == [f"train_rcnn_{arm}" for arm in arms]


def test_val_without_masks_fails_before_the_first_stage(tmp_path):
    (tmp_path / "images").mkdir()
    write_split(tmp_path, "train", masks=True)
    write_split(tmp_path, "val", masks=False)
    with pytest.raises(DataError, match=r"instances_val\.json.*no masks.*Remedy"):
        experiment(tmp_path).check()


def test_missing_split_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    write_split(tmp_path, "train", masks=True)
    with pytest.raises(SystemExit, match="has no val split"):
        experiment(tmp_path)


def test_a_config_counts_with_its_bases_and_its_weights():
    names = {path.name for path in config_files(ROOT / "configs/mal/sample.yaml")}
    assert names == {"sample.yaml", "mal_small.yaml", "mal.yaml", "sample_encoder.safetensors"}
