"""Catalogs; COCO files in and out."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
)
from detectron2.data import datasets as d2_datasets
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.datasets import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    register_coco_instances,
)
from detectron2.structures import BoxMode


@pytest.fixture
def names():
    """Hands out dataset names and forgets them afterwards."""
    used = []

    def new(suffix="a"):
        used.append(f"lite_data_test_{suffix}")
        return used[-1]

    yield new
    for name in used:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_dataset_catalog(names):
    name = names()
    calls = []
    DatasetCatalog.register(name, lambda: calls.append(1) or [{"a": 1}])
    assert calls == []  # lazy
    assert DatasetCatalog.get(name) == [{"a": 1}]
    assert name in DatasetCatalog.list()
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match="function"):
        DatasetCatalog.register("x", [1])
    DatasetCatalog.remove(name)
    with pytest.raises(KeyError, match="not registered"):
        DatasetCatalog.get(name)


def test_metadata(names):
    name = names()
    meta = MetadataCatalog.get(name).set(thing_classes=["a"], x=1)
    assert MetadataCatalog.get(name) is meta
    assert (meta.x, meta.get("x"), meta.get("y", 5)) == (1, 1, 5)
    meta.x = 1  # the same value again is fine
    with pytest.raises(AssertionError, match="'x'"):
        meta.x = 2
    with pytest.raises(AttributeError, match=r"'y'.*thing_classes"):
        _ = meta.y
    assert meta.as_dict() == {"name": name, "thing_classes": ["a"], "x": 1}
    assert name in MetadataCatalog.list()
    MetadataCatalog.remove(name)
    assert MetadataCatalog.get(name) is not meta


def _rle(compressed=True):
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[4:10, 5:25] = 1
    rle = mask_util.encode(mask)
    if compressed:
        return {"size": [20, 30], "counts": rle["counts"].decode()}, mask
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": [20, 30], "counts": counts}, mask


def _annotation(number, **kwargs):
    base = {
        "id": number,
        "image_id": 3,
        "category_id": 9,
        "bbox": [5, 4, 20, 6],
        "area": 120,
        "iscrowd": 0,
        "segmentation": [[5, 4, 25, 4, 25, 10, 5, 10]],
    }
    return {**base, **kwargs}


def _write(path, annotations):
    content = {
        "images": [
            {"id": 8, "file_name": "b.png", "height": 20, "width": 30},
            {"id": 3, "file_name": "sub/a.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 9, "name": "nine"}, {"id": 2, "name": "two"}],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_load_coco_json(tmp_path, names):
    name = names()
    keypoints = [1, 2, 2, 0, 0, 0]
    path = _write(
        tmp_path / "a.json",
        [
            _annotation(1, score=0.5, other=1),
            _annotation(2, category_id=2, segmentation=_rle()[0], keypoints=keypoints),
            _annotation(3, segmentation=_rle(compressed=False)[0], iscrowd=1),
            _annotation(4, segmentation=[]),  # a box only
        ],
    )
    first, second = load_coco_json(path, "root", name, extra_annotation_keys=["score"])
    assert (first["image_id"], second["image_id"]) == (3, 8)  # by id, not by position
    assert first["file_name"] == "root/sub/a.png"
    assert (first["height"], first["width"]) == (20, 30)
    assert second["annotations"] == []
    one, two, three, four = first["annotations"]
    assert one["bbox_mode"] == BoxMode.XYWH_ABS
    assert (one["category_id"], two["category_id"]) == (1, 0)  # ascending ids
    assert one["score"] == 0.5
    assert "other" not in one
    assert two["keypoints"] == [1.5, 2.5, 2, 0.5, 0.5, 0]
    for annotation in (two, three):  # both kinds of RLE mean the same mask
        assert np.array_equal(mask_util.decode(annotation["segmentation"]), _rle()[1])
    assert three["iscrowd"] == 1
    assert "segmentation" not in four
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == ["two", "nine"]
    assert meta.thing_dataset_id_to_contiguous_id == {2: 0, 9: 1}


def test_load_without_a_name_keeps_ids(tmp_path):
    path = _write(tmp_path / "a.json", [_annotation(1)])
    assert load_coco_json(path, "")[0]["annotations"][0]["category_id"] == 9


def test_polygons_without_area_are_dropped_and_counted(tmp_path, caplog):
    good = [5, 4, 25, 4, 25, 10]
    path = _write(
        tmp_path / "a.json",
        [
            _annotation(1, segmentation=[[1, 1, 2, 2], good, [1, 2, 3, 4, 5, 6, 7]]),
            _annotation(2, segmentation=[[1, 1, 2, 2]]),
        ],
    )
    (annotation,) = load_coco_json(path, "")[0]["annotations"]
    assert annotation["segmentation"] == [good]
    assert "left out 1 annotation" in caplog.text


# (annotations, part of the message)
WRONG = [
    ([_annotation(1), _annotation(1)], "not unique"),
    ([_annotation(7, ignore=1)], "annotation 7 of image 3.*ignore"),
    ([_annotation(7, bbox=[])], "annotation 7 of image 3.*bbox is empty"),
    ([_annotation(7, category_id=4)], "annotation 7 of image 3.*category_id 4"),
]


@pytest.mark.parametrize(("annotations", "message"), WRONG)
def test_wrong_annotations_are_named(annotations, message, tmp_path, names):
    path = _write(tmp_path / "bad.json", annotations)
    with pytest.raises((AssertionError, ValueError), match=rf"bad\.json.*{message}"):
        load_coco_json(path, "", names())


def test_register_coco_instances(tmp_path, names):
    name = names()
    path = _write(tmp_path / "a.json", [_annotation(1)])
    register_coco_instances(name, {"colour": "red"}, path, "images")
    meta = MetadataCatalog.get(name)
    assert (meta.json_file, meta.image_root, meta.colour) == (path, "images", "red")
    assert meta.evaluator_type == "coco"
    assert len(DatasetCatalog.get(name)) == 2


def test_convert_to_coco_round_trip(tmp_path, names):
    source, target = names("source"), names("target")
    rle, mask = _rle()
    path = _write(tmp_path / "a.json", [_annotation(1), _annotation(2, segmentation=rle)])
    register_coco_instances(source, {}, path, "root")
    original = DatasetCatalog.get(source)
    content = convert_to_coco_dict(source)
    assert content["categories"] == [{"id": 2, "name": "two"}, {"id": 9, "name": "nine"}]
    first, second = content["annotations"]
    assert (first["id"], first["category_id"], first["image_id"]) == (1, 9, 3)
    assert first["bbox"] == [5, 4, 20, 6]
    assert first["area"] == second["area"] == 120
    out = tmp_path / "out" / "b.json"
    convert_to_coco_json(source, str(out))
    again = load_coco_json(str(out), "", target)
    assert [r["image_id"] for r in again] == [r["image_id"] for r in original]
    assert np.array_equal(mask_util.decode(again[0]["annotations"][1]["segmentation"]), mask)


def test_convert_boxes_in_another_mode_and_without_masks(names):
    name = names()
    record = {"file_name": "f", "height": 9, "width": 9, "image_id": "x", "annotations": []}
    box = np.array([1.0, 2.0, 5.0, 4.0])
    record["annotations"].append({"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0})
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).thing_classes = ["c"]
    (annotation,) = convert_to_coco_dict(name)["annotations"]
    assert annotation["bbox"] == [1.0, 2.0, 4.0, 2.0]
    assert annotation["area"] == 8.0
    assert annotation["category_id"] == 0


def test_converted_file_is_cached_on_request(tmp_path, names, caplog):
    name, out = names(), tmp_path / "c.json"
    DatasetCatalog.register(name, lambda: [{"file_name": "f", "height": 1, "width": 1}])
    MetadataCatalog.get(name).thing_classes = ["c"]
    out.write_text("old")
    convert_to_coco_json(name, str(out), allow_cached=True)
    assert out.read_text() == "old"
    assert "delete it" in caplog.text
    convert_to_coco_json(name, str(out), allow_cached=False)
    assert json.loads(out.read_text())["images"][0]["id"] == 0


def _record(*categories, crowd=0):
    return {"annotations": [{"category_id": c, "iscrowd": crowd} for c in categories]}


def test_get_detection_dataset_dicts(names):
    a, b = names("a"), names("b")
    DatasetCatalog.register(a, lambda: [_record(0), _record(), _record(1, crowd=1)])
    DatasetCatalog.register(b, lambda: [_record(1, 1)])
    for name in (a, b):
        MetadataCatalog.get(name).thing_classes = ["x", "y"]
    assert len(get_detection_dataset_dicts([a, b])) == 2  # empty and all-crowd ones are gone
    assert len(get_detection_dataset_dicts(a, filter_empty=False)) == 3
    with pytest.raises(KeyError, match="nowhere"):
        get_detection_dataset_dicts([a, "nowhere"])
    with pytest.raises(AssertionError, match=r"DATASETS\.TRAIN"):
        get_detection_dataset_dicts([])


def test_datasets_with_other_classes_do_not_mix(names):
    a, b = names("a"), names("b")
    for name, classes in ((a, ["x"]), (b, ["y"])):
        DatasetCatalog.register(name, lambda: [_record(0)])
        MetadataCatalog.get(name).thing_classes = classes
    with pytest.raises(ValueError, match=r"thing_classes. differs"):
        get_detection_dataset_dicts([a, b])


def test_empty_dataset_is_named(names):
    name = names()
    DatasetCatalog.register(name, list)
    with pytest.raises(AssertionError, match=name):
        get_detection_dataset_dicts(name)


def test_histogram_refuses_unknown_categories():
    with pytest.raises(AssertionError, match="category_id 5"):
        print_instances_class_histogram([_record(5)], ["a"])


def test_upstream_only_parts_say_so():
    with pytest.raises(NotImplementedError, match="upstream"):
        load_proposals_into_dataset([], "f")
    with pytest.raises(NotImplementedError, match="register_pascal_voc"):
        _ = d2_datasets.register_pascal_voc


def test_coco_is_registered_by_name():
    assert "coco_2017_train" in DatasetCatalog.list()
    assert MetadataCatalog.get("coco_2017_val").json_file.endswith(
        "coco/annotations/instances_val2017.json"
    )
