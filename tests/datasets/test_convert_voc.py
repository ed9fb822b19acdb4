"""PASCAL VOC segmentation to COCO JSON, against a naive second reading of the same files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudolabel.errors import DataError
from pseudolabel.masks import decode_segmentation
from tests.datasets.naive import check_masks

SCRIPT = Path(__file__).parents[2] / "datasets" / "convert_voc.py"
FOLDER = "VOCdevkit/VOC2012"


@pytest.mark.parametrize(("split", "images", "objects"), [("train", 16, 132), ("val", 8, 28)])
def test_real_masks_are_those_of_the_maps_pixel_for_pixel(
    data_dir, tmp_path, split, images, objects
):
    root = data_dir / "voc_like" / FOLDER
    output = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, root, "--split", split, "--output", output],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{images} images (0 without any object), {objects} instances" in done.stdout
    data = json.loads(output.read_text())
    listed = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
    assert [i["file_name"] for i in data["images"]] == [f"{name}.jpg" for name in sorted(listed)]
    assert [c["id"] for c in data["categories"]] == list(range(1, 21))
    # Rows of VOC's own list of classes.
    names = {c["id"]: c["name"] for c in data["categories"]}
    assert (names[1], names[15], names[20]) == ("aeroplane", "person", "tvmonitor")

    def expected(image):
        stem = Path(image["file_name"]).stem
        numbers, classes = (
            np.array(Image.open(root / kind / f"{stem}.png"))
            for kind in ("SegmentationObject", "SegmentationClass")
        )
        table = {}
        for number in set(numbers.ravel().tolist()) - {0, 255}:
            here = numbers == number
            (category,) = np.unique(classes[here])
            table[number] = (category, here)
        return table

    check_masks(data, expected)


OBJECTS = np.array(
    [
        [1, 255, 0, 3, 3],
        [1, 255, 3, 3, 3],
        [0, 1, 255, 2, 3],
    ]
)
CLASSES = np.array(
    [
        [15, 255, 0, 9, 9],
        [15, 255, 9, 9, 255],
        [0, 15, 255, 9, 9],
    ]
)
"""A person in two parts and two chairs; void as the border, once in the class map alone."""


def write_tree(root, objects=OBJECTS, classes=CLASSES, names=("a",)):
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationObject"):
        (root / folder).mkdir(parents=True)
    (root / "SegmentationClass").mkdir()
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    for name in dict.fromkeys(names):
        Image.new("RGB", (objects.shape[1], objects.shape[0])).save(root / f"JPEGImages/{name}.jpg")
        for kind, numbers in (("Object", objects), ("Class", classes)):
            palette = Image.frombytes("P", numbers.shape[::-1], numbers.astype(np.uint8).tobytes())
            # The index is the number; what colour it has must not matter.
            palette.putpalette([(37 * i) % 256 for i in range(768)])
            palette.save(root / f"Segmentation{kind}/{name}.png")
    return root


def test_void_belongs_to_nothing(voc, tmp_path):
    data = voc.convert(write_tree(tmp_path), "train").data
    rows = [
        (a["instance_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"])
        for a in data["annotations"]
    ]
    assert rows == [
        (1, 15, [0, 0, 2, 3], 3, 0),
        (2, 9, [3, 2, 1, 1], 1, 0),
        (3, 9, [2, 0, 3, 3], 5, 0),
    ]
    clear = (OBJECTS != 255) & (CLASSES != 255)
    for annotation in data["annotations"]:
        mask = decode_segmentation(annotation["segmentation"], 3, 5)
        np.testing.assert_array_equal(mask, clear & (annotation["instance_id"] == OBJECTS))


def test_images_without_objects_stay_in_sorted_order(voc, tmp_path):
    nothing = np.zeros((2, 3), int)
    data = voc.convert(write_tree(tmp_path, nothing, nothing, ("z", "b")), "train").data
    assert [(i["id"], i["file_name"]) for i in data["images"]] == [(1, "b.jpg"), (2, "z.jpg")]
    assert data["annotations"] == []


def changed(numbers, where, value):
    copy = numbers.copy()
    copy[where] = value
    return copy


@pytest.mark.parametrize(
    ("objects", "classes", "message"),
    [
        # Two classes in one object, and a class on part of it only.
        (OBJECTS, changed(CLASSES, (2, 1), 9), r"\(object 1\): .* 1 chair, 2 person in Seg"),
        (OBJECTS, changed(CLASSES, (2, 1), 0), r"\(object 1\): .* 1 background, 2 person in Seg"),
        # No class at all: background, or void.
        (OBJECTS, changed(CLASSES, OBJECTS == 2, 0), r"\(object 2\): .* of 1 background in Seg"),
        (OBJECTS, changed(CLASSES, OBJECTS == 2, 255), r"\(object 2\): .* void alone"),
        # An object is lost.
        (changed(OBJECTS, OBJECTS == 2, 0), CLASSES, "on 1 pixels .* of chair at row 2, column 3"),
        (OBJECTS, changed(CLASSES, (0, 2), 21), "holds 21, which is no class"),
        # A palette flattened to grey has other numbers.
        (OBJECTS, changed(CLASSES, (0, 2), 147), "holds 147, which is no class"),
    ],
)  # fmt: skip
def test_maps_that_contradict_each_other(voc, tmp_path, objects, classes, message):
    write_tree(tmp_path, objects, classes)
    with pytest.raises(DataError, match=message) as caught:
        voc.convert(tmp_path, "train")
    assert caught.value.file.endswith("a.png")


@pytest.mark.parametrize(
    ("names", "missing", "message"),
    [
        ((), None, "lists no image"),
        (("a", "b", "a"), None, r"\(a\): lists an image twice"),
        (("a",), "ImageSets/Segmentation/train.txt", "cannot be read"),
        (("a",), "JPEGImages/a.jpg", "a.jpg: the image does not exist"),
        (("a",), "SegmentationObject/a.png", "SegmentationObject.a.png: the label map does not"),
        (("a",), "SegmentationClass/a.png", "SegmentationClass.a.png: the label map does not"),
    ],
)
def test_damaged_trees(voc, tmp_path, names, missing, message):
    write_tree(tmp_path, names=names)
    if missing:
        (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=message):
        voc.convert(tmp_path, "train")


def test_sizes_that_differ_and_names_that_climb_out(voc, tmp_path):
    write_tree(tmp_path)
    Image.new("P", (5, 4)).save(tmp_path / "SegmentationClass/a.png")
    with pytest.raises(DataError, match="is 5x4, its image 5x3"):
        voc.convert(tmp_path, "train")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("../a\n")
    with pytest.raises(DataError, match="not a path below the image folder"):
        voc.convert(tmp_path, "train")


@pytest.mark.parametrize("output", ["", "a/folder"])
def test_output_that_is_a_folder(tmp_path, output):
    write_tree(tmp_path)
    (tmp_path / "a/folder").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path, "--split", "train", "--output", tmp_path / output],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Remedy" in done.stderr
