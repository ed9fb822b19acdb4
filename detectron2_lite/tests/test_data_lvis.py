"""LVIS files, and folders of label maps."""

import copy
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data import datasets as d2_datasets
from detectron2.data.datasets import (
    get_lvis_instances_meta,
    load_lvis_json,
    load_sem_seg,
    register_lvis_instances,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode
from PIL import Image

POLYGON = [1, 2, 4, 2, 4, 6, 1, 6]
FILE = {
    "images": [
        {
            "id": 30,
            "width": 20,
            "height": 10,
            "coco_url": "http://images.cocodataset.org/val2017/000000000030.jpg",
            "neg_category_ids": [2],
            "not_exhaustive_category_ids": [1],
        },
        {"id": 4, "width": 20, "height": 10, "file_name": "COCO_val2014_000000000004.jpg"},
    ],
    "categories": [
        {"id": 2, "name": "bat", "synonyms": ["bat"], "frequency": "c", "image_count": 7},
        {"id": 1, "name": "ant", "synonyms": ["ant"], "frequency": "r", "image_count": 1},
    ],
    "annotations": [
        {
            "id": 7,
            "image_id": 30,
            "category_id": 2,
            "bbox": [1, 2, 3, 4],
            "area": 12,
            "segmentation": [POLYGON],
            "score": 0.5,
        }
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes FILE after a change."""

    def do(change=None):
        content = copy.deepcopy(FILE)
        if change is not None:
            change(content)
        path = tmp_path / "lvis.json"
        path.write_text(json.dumps(content))
        return str(path)

    return do


@pytest.fixture
def name():
    """A dataset name, forgotten afterwards."""
    yield "lite_lvis_test"
    DatasetCatalog.pop("lite_lvis_test", None)
    MetadataCatalog.pop("lite_lvis_test", None)


def test_records(write):
    first, second = load_lvis_json(write(), "coco/", extra_annotation_keys=["score"])
    assert first == {
        "file_name": "coco/000000000004.jpg",  # the name that COCO 2017 has for it
        "height": 10,
        "width": 20,
        "image_id": 4,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        "annotations": [],
    }
    assert second["file_name"] == "coco/val2017/000000000030.jpg"
    assert (second["neg_category_ids"], second["not_exhaustive_category_ids"]) == ([2], [1])
    assert second["annotations"] == [
        {
            "bbox": [1, 2, 3, 4],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 1,
            "segmentation": [POLYGON],
            "score": 0.5,
        }
    ]


# (entries of the image, image_root, path)
PATHS = [
    # coco_url goes before file_name
    ({"coco_url": "http://h/a/train2017/9.jpg", "file_name": "x.jpg"}, "r/", "r/train2017/9.jpg"),
    # the root is glued on as it is: a slash must be there, or be meant to be missing
    ({"coco_url": "http://h/train2017/9.jpg"}, "r/coco_", "r/coco_train2017/9.jpg"),
    # without a URL
    ({"coco_url": None, "file_name": "sub/x.jpg"}, "r", "r/sub/x.jpg"),
    ({"coco_url": "", "file_name": "COCO_train2014_000000000009.jpg"}, "r/", "r/000000000009.jpg"),
]


@pytest.mark.parametrize(("entries", "root", "expected"), PATHS)
def test_image_paths(write, entries, root, expected):
    path = write(lambda content: content["images"][0].update(entries))
    assert load_lvis_json(path, root)[1]["file_name"] == expected


def _annotation(**entries):
    return lambda content: content["annotations"][0].update(entries)


def _without(key, part="annotations"):
    return lambda content: content[part][0].pop(key)


# (change, error, part of the message)
WRONG = {
    "RLE": (_annotation(segmentation={"size": [10, 20], "counts": "00"}), AssertionError, "dict"),
    "no masks": (_without("segmentation"), AssertionError, "load_coco_json"),
    "empty": (_annotation(segmentation=[]), AssertionError, "empty"),
    "two points": (_annotation(segmentation=[POLYGON, [1, 2, 3, 4]]), AssertionError, "points"),
    "odd": (_annotation(segmentation=[[*POLYGON, 1]]), AssertionError, "odd"),
    "no box": (_without("bbox"), KeyError, "'bbox'"),
    "no height": (_without("height", "images"), KeyError, "image 30 has no 'height'"),
    "URL without folder": (
        lambda content: content["images"][0].update(coco_url="a.jpg"),
        ValueError,
        "no folder",
    ),
    "repeated id": (lambda c: c["annotations"].extend(c["annotations"]), AssertionError, "unique"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(write, case):
    change, error, message = WRONG[case]
    with pytest.raises(error) as caught:
        load_lvis_json(write(change), "r/")
    assert message in str(caught.value)
    if case in ("RLE", "no masks", "empty", "two points", "odd", "no box"):
        assert "annotation 7 of image 30" in str(caught.value)


def test_classes_come_from_the_file(write, name):
    register_lvis_instances(name, {"colour": "red"}, write(), "coco/")
    assert len(get_detection_dataset_dicts(name)) == 1  # the image without objects is left out
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.colour) == ("lvis", "red")
    assert metadata.thing_classes == ["ant", "bat"]
    assert metadata.get("thing_dataset_id_to_contiguous_id") is None  # ids 1..n: id - 1
    assert metadata.class_image_count == [
        {"id": 1, "image_count": 1},
        {"id": 2, "image_count": 7},
    ]
    found = get_lvis_instances_meta(name)
    assert found == {key: metadata.get(key) for key in ("thing_classes", "class_image_count")}
    DatasetCatalog.get(name)  # a second time, with the metadata there


def test_ids_with_gaps_get_a_map(write, name):
    def gaps(content):
        content["categories"][0]["id"] = content["annotations"][0]["category_id"] = 40
        del content["categories"][0]["image_count"]

    register_lvis_instances(name, {}, write(gaps), "coco/")
    assert DatasetCatalog.get(name)[1]["annotations"][0]["category_id"] == 1
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 40: 1}
    assert metadata.get("class_image_count") is None
    # Without a name there is no map, and LVIS's rule holds.
    assert load_lvis_json(write(gaps), "r/")[1]["annotations"][0]["category_id"] == 39


def test_metadata_of_the_user_goes_first(write, name):
    given = {"thing_classes": ["b"], "thing_dataset_id_to_contiguous_id": {2: 0}}
    register_lvis_instances(name, given, write(), "coco/")
    assert DatasetCatalog.get(name)[1]["annotations"][0]["category_id"] == 0
    assert MetadataCatalog.get(name).thing_classes == ["b"]


def test_category_outside_the_map(write, name):
    register_lvis_instances(name, {"thing_dataset_id_to_contiguous_id": {1: 0}}, write(), "coco/")
    with pytest.raises(KeyError, match="annotation 7"):
        DatasetCatalog.get(name)


def test_metadata_of_an_unknown_name():
    for unknown in ("", "lvis_v1_nobody_registered_this"):
        with pytest.raises(ValueError, match="register_lvis_instances"):
            get_lvis_instances_meta(unknown)
    MetadataCatalog.pop("lvis_v1_nobody_registered_this", None)


def test_rare_categories_are_repeated(write):
    def ten_images(content):
        image, annotation = content["images"][0], content["annotations"][0]
        content["images"] = [{**image, "id": i} for i in range(10)]
        content["annotations"] = [
            {**annotation, "id": i, "image_id": i, "category_id": 1 if i == 3 else 2}
            for i in range(10)
        ]

    records = load_lvis_json(write(ten_images), "r/")
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.4)
    # Category 1 is in 1 of 10 images: sqrt(0.4 / 0.1).
    assert factors.tolist() == [1, 1, 1, 2, 1, 1, 1, 1, 1, 1]


def _maps(folder, names, ending):
    folder.mkdir(exist_ok=True)
    for stem in names:
        Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(folder / f"{stem}.{ending}")


# (images, label maps, pairs)
FOLDERS = [
    (["b", "a"], ["a", "b"], [("a", "a"), ("b", "b")]),
    # as many of both: by order, whatever the names
    (["b", "a"], ["a_labels", "b_labels"], [("a", "a_labels"), ("b", "b_labels")]),
    # more of one: by name
    (["a", "b", "c"], ["c", "a"], [("a", "a"), ("c", "c")]),
    (["a"], ["z", "a"], [("a", "a")]),
]


@pytest.mark.parametrize(("images", "maps", "pairs"), FOLDERS)
def test_pairs_of_image_and_label_map(tmp_path, caplog, images, maps, pairs):
    _maps(tmp_path / "images", images, "jpg")
    _maps(tmp_path / "maps", maps, "png")
    (tmp_path / "maps" / "notes.txt").write_text("not a map")
    found = load_sem_seg(str(tmp_path / "maps"), str(tmp_path / "images"))
    assert found == [
        {
            "file_name": str(tmp_path / "images" / f"{image}.jpg"),
            "sem_seg_file_name": str(tmp_path / "maps" / f"{label}.png"),
        }
        for image, label in pairs
    ]
    assert ("same name" in caplog.text) == (len(images) != len(maps))


def test_folder_without_label_maps(tmp_path):
    _maps(tmp_path / "images", ["a"], "jpg")
    with pytest.raises(AssertionError, match=r"images has no label map.*png"):
        load_sem_seg(str(tmp_path / "images"), str(tmp_path / "images"))


def test_endings(tmp_path):
    _maps(tmp_path / "a", ["x"], "bmp")
    assert len(load_sem_seg(str(tmp_path / "a"), str(tmp_path / "a"), "bmp", "bmp")) == 1


def test_upstream_only_formats_say_so():
    with pytest.raises(NotImplementedError, match="load_voc_instances"):
        _ = d2_datasets.load_voc_instances
