"""The open-set experiment: its rule of seen classes, its scores by group, and its table."""

import json
import re

import numpy as np
import open_set
import pytest
import tables

from pseudolabel.errors import DataError
from pseudolabel.files import read_json, write_json
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.masks import encode_rle

LVIS = "lvis_dev/annotations/lvis_v0.5_val_subset.json"


@pytest.fixture(scope="module")
def lvis(data_dir):
    return read_json(data_dir / LVIS)


@pytest.fixture(scope="module")
def coco_names(data_dir):
    data = read_json(data_dir / "coco_dev/annotations/instances_train.json")
    boxed = {a["category_id"] for a in data["annotations"]}
    return {c["name"] for c in data["categories"] if c["id"] in boxed}


def plain(name):
    """A name without its explanation in brackets."""
    return re.sub(r"_\(.*?\)", "", name).replace("_", " ").lower()


def present(lvis):
    """The categories that have instances."""
    used = {a["category_id"] for a in lvis["annotations"]}
    return {c["name"]: c for c in lvis["categories"] if c["id"] in used}


def test_seen_classes_exist_on_both_sides(lvis, coco_names):
    """On the right the classes that the labeler was trained on boxes of."""
    assert present(lvis).keys() >= open_set.SEEN.keys()
    assert coco_names >= set(open_set.SEEN.values())


def test_no_unseen_class_bears_a_name_of_coco(lvis, coco_names):
    found = {
        name
        for name, category in present(lvis).items()
        if {plain(n) for n in (name, *category["synonyms"])} & coco_names
    }
    assert "cow" in found  # the test sees something
    assert found <= open_set.SEEN.keys()


def test_training_and_test_images_are_apart(data_dir, tmp_path):
    assert not open_set.OpenSet(data_dir, tmp_path, tmp_path).overlap()


def test_names_of_another_version_are_refused(lvis):
    others = [c for c in lvis["categories"] if c["name"] != "fireplug"]
    with pytest.raises(DataError, match=r"no category fireplug.*v0\.5"):
        open_set.seen_ids(others)


CATEGORIES = [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]


def coco(widths):
    """Image 1 with annotations 1 and 2, image 2 with 3; categories 1, 2 and 1; 8x8 boxes."""
    annotations = []
    for key, width in enumerate(widths, start=1):
        mask = np.zeros((20, 40), dtype=bool)
        mask[:8, 10 * key : 10 * key + width] = True
        annotations.append(
            {"id": key, "image_id": 1 + key // 3, "category_id": 2 - key % 2}
            | {"bbox": [10 * key, 0, 8, 8], "segmentation": encode_rle(mask)}
        )
    images = [{"id": k, "file_name": f"{k}.png", "height": 20, "width": 40} for k in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


@pytest.fixture
def truth(tmp_path):
    write_json(tmp_path / "truth.json", coco([8, 8, 8]))
    write_json(tmp_path / "labels.json", coco([8, 4, 2]))  # IoU 1, 1/2, 1/4
    return TrueMasks(tmp_path / "truth.json")


@pytest.mark.parametrize(
    ("seen", "overlap", "expected"),
    [
        ({1}, (), {"all": 1.75 / 3, "seen": 0.625, "unseen": 0.5}),
        ({2}, (), {"all": 1.75 / 3, "seen": 0.5, "unseen": 0.625}),
        (set(), (), {"all": 1.75 / 3, "seen": None, "unseen": 1.75 / 3}),  # an empty group
        ({1}, {2}, {"all": 0.75, "seen": 1.0, "unseen": 0.5}),  # a training image is left out
    ],
)
def test_scores_by_group(seen, overlap, expected, truth, tmp_path):
    found = open_set.group_scores(tmp_path / "labels.json", truth, seen, overlap)
    assert {group: found[group]["mIoU"] for group in found} == expected


def test_every_instance_needs_a_label(truth, tmp_path):
    write_json(tmp_path / "labels.json", coco([8, 4]))
    with pytest.raises(DataError, match=r"1 instances of .* have no label"):
        open_set.group_scores(tmp_path / "labels.json", truth, {1})
    # On an image that does not count it may be missing.
    assert open_set.group_scores(tmp_path / "labels.json", truth, {1}, {2})["all"]["n"] == 2


def test_table_and_verdict(truth, tmp_path):
    write_json(tmp_path / "mal.json", coco([8, 8, 1]))
    scores = {
        "filled_box": open_set.group_scores(tmp_path / "labels.json", truth, {1}),
        "mal": open_set.group_scores(tmp_path / "mal.json", truth, {1}),
    }
    rows = open_set.to_rows(scores, {"mal": {"network": "teacher"}})
    assert rows[0] == ["all classes, filled box", "3 (3, 0, 0)", "0.583", "0.583", "–", "–"]
    assert rows[-1] == ["unseen classes, MAL (teacher)", "1 (1, 0, 0)", "1.000", "1.000", "–", "–"]
    assert all(len(row) == len(open_set.HEADER) for row in rows)
    text = open_set.verdict(scores)
    assert "All classes: MAL clears every yardstick" in text
    assert "Seen classes: MAL does not clear every yardstick (mIoU: filled box 0.625" in text
    assert "Unseen classes: MAL clears every yardstick" in text


def test_stages_run_one_by_one_so_that_seconds_add_up(data_dir, tmp_path):
    plan = open_set.OpenSet(data_dir, tmp_path / "run", tmp_path).plan()
    assert [[stage.name for stage in group] for group in plan] == [
        *(["strip"], ["label_filled_box"], ["label_ellipse"], ["label_grabcut"], ["label_mal"])
    ]
    assert str(tmp_path / "run/model_final.pth") in plan[-1][0].command


def test_record_and_its_section(data_dir, lvis, tmp_path, monkeypatch):
    """Truth as every labeler's output: all numbers are 1, and nothing names this machine."""
    monkeypatch.setattr(open_set, "LABELERS", ("filled_box", "mal"))
    job = open_set.OpenSet(data_dir, tmp_path / "run", tmp_path)
    few = {image["id"] for image in lvis["images"][:12]}
    annotations = [a for a in lvis["annotations"] if a["image_id"] in few]
    images = [image for image in lvis["images"] if image["id"] in few]
    job.truth = tmp_path / "few.json"
    write_json(job.truth, {**lvis, "images": images, "annotations": annotations})
    for labeler in open_set.LABELERS:
        job.labels(labeler).symlink_to(job.truth)
    result = job.result({"label_grabcut": 200.0, "label_mal": 95.0})
    assert json.dumps(result).count(str(data_dir)) == 0
    text = tables.measurement_table(result)
    assert "none of its images is among the training images" in text
    assert "about 5 minutes" in text
    assert f"| all classes, MAL | {len(annotations)} (" in text
    assert "Unseen classes: MAL does not clear every yardstick (mIoU: filled box 1.000" in text
    counts = {group: scores["n"] for group, scores in result["raw"]["scores"]["mal"].items()}
    assert counts["all"] == counts["seen"] + counts["unseen"] == len(annotations)
