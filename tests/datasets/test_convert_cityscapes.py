"""Cityscapes to COCO JSON, against a naive second reading of the same files."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pseudolabel.errors import DataError
from pseudolabel.masks import decode_segmentation
from tests.datasets.naive import check_masks

SCRIPT = Path(__file__).parents[2] / "datasets" / "convert_cityscapes.py"
NAMES = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train"}
NAMES |= {32: "motorcycle", 33: "bicycle"}


def read(path):
    return np.array(Image.open(path)).astype(int)


def truth_of(root, split, image, kind):
    """Path of a label map, from the `file_name` of an image."""
    stem = image["file_name"].removesuffix("_leftImg8bit.png")
    assert stem.startswith(f"{split}/")
    return root / "gtFine" / f"{stem}_gtFine_{kind}"


@pytest.mark.parametrize(("split", "images"), [("train", 8), ("val", 4)])
def test_real_masks_are_those_of_the_label_maps_pixel_for_pixel(
    cityscapes, data_dir, split, images
):
    root = data_dir / "cityscapes_like"
    data = cityscapes.convert(root, split).data
    assert len(data["images"]) == images
    assert {c["id"]: c["name"] for c in data["categories"]} == NAMES

    def expected(image):
        instances = read(truth_of(root, split, image, "instanceIds.png"))
        return {v: (v // 1000, instances == v) for v in np.unique(instances) if v >= 1000}

    check_masks(data, expected)
    for image in data["images"]:
        picture = Image.open(root / "leftImg8bit" / image["file_name"])
        assert picture.size == (image["width"], image["height"])


def test_real_masks_cover_the_polygons_of_their_class(cityscapes, data_dir):
    """polygons.json is drawn from another source of truth than the maps: corners, not pixels."""
    root = data_dir / "cityscapes_like"
    data = cityscapes.convert(root, "train").data
    compared = Counter()
    for image in data["images"]:
        shape = image["height"], image["width"]
        drawing = json.loads(truth_of(root, "train", image, "polygons.json").read_text())
        assert (drawing["imgHeight"], drawing["imgWidth"]) == shape
        mine = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        assert {NAMES[a["category_id"]] for a in mine} == {o["label"] for o in drawing["objects"]}
        corners = Counter(item["label"] for item in drawing["objects"])
        masks = Counter(NAMES[a["category_id"]] for a in mine)
        # An object in several parts has several polygons and one mask.
        assert all(masks[name] <= corners[name] for name in corners)
        for category, name in NAMES.items():
            union = np.zeros(shape, bool)
            for annotation in mine:
                if annotation["category_id"] == category:
                    union |= decode_segmentation(annotation["segmentation"], *shape)
            canvas = Image.new("1", shape[::-1])
            for item in drawing["objects"]:
                if item["label"] == name:
                    ImageDraw.Draw(canvas).polygon([tuple(p) for p in item["polygon"]], fill=1)
            outline = np.array(canvas)
            if union.any():
                # What lies on top hides a part of a polygon, and the outline is drawn thick.
                assert (union & outline).sum() / union.sum() > 0.9, (image["file_name"], name)
                compared[name] += 1
    assert compared == {"person": 8, "car": 4, "truck": 3, "bus": 2, "motorcycle": 2}


def test_the_same_files_give_the_same_bytes(data_dir, tmp_path):
    command = [sys.executable, SCRIPT, data_dir / "cityscapes_like", "--split", "val", "--output"]
    for name in ("a.json", "b.json"):
        done = subprocess.run(
            [*command, tmp_path / name], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "4 images (0 without any object), 13 instances, 0 crowd regions" in done.stdout
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


INSTANCES = np.array(
    [
        [24000, 24000, 0, 26, 26, 7],
        [24001, 24001, 4, 26, 33, 7],
        [24000, 1, 29000, 26002, 33, 7],
        [7, 7, 29000, 26002, 26002, 26],
    ]
)
"""Two persons (the first in two parts), a car, a group of cars in two parts, a group of bicycles,
a caravan; road (7), static (4), ego vehicle (1), unlabelled (0)."""


def labels_of(instances):
    return np.where(instances < 34, instances, instances // 1000)


def write_tree(root, frames, split="train"):
    """`frames`: {name: (instanceIds, labelIds)} of the one city."""
    for name, (instances, labels) in frames.items():
        pictures, truths = root / "leftImg8bit" / split / "ulm", root / "gtFine" / split / "ulm"
        pictures.mkdir(parents=True, exist_ok=True)
        truths.mkdir(parents=True, exist_ok=True)
        height, width = instances.shape
        Image.new("RGB", (width, height)).save(pictures / f"{name}_leftImg8bit.png")
        Image.fromarray(instances.astype(np.uint16)).save(truths / f"{name}_gtFine_instanceIds.png")
        Image.fromarray(labels.astype(np.uint8)).save(truths / f"{name}_gtFine_labelIds.png")
    return root


def tree(root, instances=INSTANCES, labels=None):
    return write_tree(root, {"a": (instances, labels_of(instances) if labels is None else labels)})


def test_instances_groups_and_stuff(cityscapes, tmp_path):
    data = cityscapes.convert(tree(tmp_path), "train").data
    rows = [
        (a["instance_id"], a["category_id"], a["iscrowd"], a["bbox"], a["area"])
        for a in data["annotations"]
    ]
    assert rows == [
        # A group is one crowd per class, wherever its pixels lie; bicycles and cars apart.
        (26, 26, 1, [3, 0, 3, 4], 4),
        (33, 33, 1, [4, 1, 1, 2], 2),
        # Both parts of the first person, around the second.
        (24000, 24, 0, [0, 0, 2, 3], 3),
        (24001, 24, 0, [0, 1, 2, 1], 2),
        (26002, 26, 0, [3, 2, 2, 2], 3),
        # No caravan, no road, nothing void.
    ]
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4, 5]
    for annotation in data["annotations"]:
        mask = decode_segmentation(annotation["segmentation"], 4, 6)
        np.testing.assert_array_equal(mask, annotation["instance_id"] == INSTANCES)


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        # Groups obey the choice as well.
        (("car",), [26, 26002]),
        (("caravan", "person"), [24000, 24001, 29000]),
        (("train",), []),
    ],
)
def test_chosen_classes(cityscapes, tmp_path, classes, found):
    data = cityscapes.convert(tree(tmp_path), "train", classes).data
    assert [a["instance_id"] for a in data["annotations"]] == found
    assert sorted(c["name"] for c in data["categories"]) == sorted(classes)
    assert len(data["images"]) == 1


def test_images_without_objects_stay_in_sorted_order(cityscapes, tmp_path):
    road = np.full((3, 5), 7)
    person = np.full((3, 5), 24000)
    root = write_tree(tmp_path, {n: (m, labels_of(m)) for n, m in (("c", person), ("b", road))})
    writer = cityscapes.convert(root, "train")
    assert [(i["id"], i["file_name"]) for i in writer.data["images"]] == [
        (1, "train/ulm/b_leftImg8bit.png"),
        (2, "train/ulm/c_leftImg8bit.png"),
    ]
    assert [a["image_id"] for a in writer.data["annotations"]] == [2]
    assert "2 images (1 without any object), 1 instances" in writer.summary()


def without(path):
    return lambda root: next(root.glob(path)).unlink()


def replaced(path, picture):
    return lambda root: picture.save(next(root.glob(path)))


def broken(path, content):
    return lambda root: next(root.glob(path)).write_bytes(content)


INSTANCE_FILE, LABEL_FILE = "gtFine/**/*instanceIds.png", "gtFine/**/*labelIds.png"
FRAME = "leftImg8bit/**/*.png"


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        # A pair is incomplete, from either side.
        (without(INSTANCE_FILE), "a_gtFine_instanceIds.png", "does not exist"),
        (without(LABEL_FILE), "a_gtFine_labelIds.png", "does not exist"),
        (lambda root: tree_of_two(root), "b_gtFine_instanceIds.png", "has no image"),
        (without(FRAME), "train", r"holds no <city>/\*_leftImg8bit.png"),
        # One of the three has another size.
        (replaced(INSTANCE_FILE, Image.new("I;16", (6, 5))), "ceIds.png", "is 6x5, its image 6x4"),
        (replaced(LABEL_FILE, Image.new("L", (4, 6))), "labelIds.png", "is 4x6, its image 6x4"),
        (replaced(FRAME, Image.new("RGB", (9, 4))), "instanceIds.png", "is 6x4, its image 9x4"),
        # Not what a label map is.
        (replaced(LABEL_FILE, Image.new("RGB", (6, 4))), "labelIds.png", "mode RGB, not a map"),
        (broken(INSTANCE_FILE, b""), "instanceIds.png", "cannot be read"),
        (broken(FRAME, b"GIF?"), "leftImg8bit.png", "cannot be read"),
        # The two maps are of different releases.
        (replaced(LABEL_FILE, Image.new("L", (6, 4))), "labelIds.png", "contradict each other"),
    ],
)  # fmt: skip
def test_damaged_trees(cityscapes, tmp_path, damage, file, message):
    damage(tree(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        cityscapes.convert(tmp_path, "train")
    assert caught.value.file.endswith(file)


def tree_of_two(root):
    write_tree(root, {"b": (INSTANCES, labels_of(INSTANCES))})
    (root / "leftImg8bit" / "train" / "ulm" / "b_leftImg8bit.png").unlink()


@pytest.mark.parametrize(
    "value",
    [
        34,  # one past the last label
        255,  # void of a copy with train ids
        999,
        7000,  # instances of road
        23999,
        34000,
        65535,
    ],
)
def test_unknown_numbers(cityscapes, tmp_path, value):
    instances = INSTANCES.copy()
    instances[0, 2] = value
    tree(tmp_path, instances, labels_of(INSTANCES))
    with pytest.raises(DataError, match=f"holds {value}, which is neither a label"):
        cityscapes.convert(tmp_path, "train")


def test_command_reports_errors_in_one_line_and_writes_nothing(tmp_path):
    output = tmp_path / "out.json"
    output.write_text("before")
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "--split", "val", "--output", output],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r".*leftImg8bit.val: no such folder. Remedy: .*\n", done.stderr)
    assert output.read_text() == "before"
