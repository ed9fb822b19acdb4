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


def experiment(folder, **changes):
    names = ("output", "mal_config", "rcnn_config", "mal_run", "detectors")
    options = dict.fromkeys(names) | {"name": "own", "data": folder, "seed": 0, "record": False}
    options |= {"output": folder / "output", **changes}
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


@pytest.mark.parametrize(
    ("changes", "trained", "labelled"),
    [
        ({}, ["mal", "rcnn_mal", "rcnn_human"], ["val", "train"]),
        ({"name": "coco_dev"}, ["mal"], ["val"]),  # label quality alone
        ({"name": "coco_dev", "detectors": True}, ["mal", "rcnn_mal", "rcnn_human"], None),
        ({"detectors": False}, ["mal"], ["val"]),
        ({"mal_run": "earlier", "detectors": False}, [], ["val"]),
    ],
)
def test_what_is_trained_and_labelled(changes, trained, labelled, tmp_path, monkeypatch):
    # Weights are named below it; none is read to make a plan.
    monkeypatch.setenv("MASKSMITH_DATA", str(tmp_path))
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        write_split(tmp_path, split, masks=True)
    if "mal_run" in changes:
        changes = {**changes, "mal_run": tmp_path / changes["mal_run"]}
    plan = experiment(tmp_path, **changes)
    groups = plan.plan()
    stages = {stage.name: stage for group in groups for stage in group}
    assert all(groups)
    assert [name for name in stages if name.startswith("train_")] == [f"train_{x}" for x in trained]
    if labelled:
        found = [name for name in stages if name.startswith("label_mal")]
        assert found == [f"label_mal_{split}" for split in labelled]
    run = changes.get("mal_run", tmp_path / "output/mal")
    assert stages["label_mal_val"].inputs[-1] == run / "model_final.pth"


def test_an_earlier_run_is_checked_before_the_first_stage(tmp_path):
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        write_split(tmp_path, split, masks=True)
    with pytest.raises(DataError, match="no finished training of MAL"):
        experiment(tmp_path, mal_run=tmp_path / "nothing").check()


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
