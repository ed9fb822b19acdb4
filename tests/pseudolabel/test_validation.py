"""The defect table: each thing that can be wrong with a label file, its name and its record."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel.defects import ERROR, FILE, KINDS, WARNING
from pseudolabel.errors import DataError
from pseudolabel.masks import encode_rle, parse_segmentation
from pseudolabel.validation import check_images, check_labels, load_labels, read_checked
from pseudolabel.validation_masks import measure
from tests.pseudolabel.label_files import SQUARE, TABLE, A, annotation, change, damaged, sound


def test_a_sound_file_has_no_defect():
    assert check_labels(sound()) == []


@pytest.mark.parametrize(
    ("kind", "record", "damage"), TABLE, ids=[f"{n}-{row[0]}" for n, row in enumerate(TABLE)]
)
def test_each_defect_has_its_name_its_record_and_a_remedy(kind, record, damage):
    data = sound()
    damage(data)
    found = {(defect.kind, defect.record): defect for defect in check_labels(data)}
    defect = found[kind, record]
    assert (defect.severity, defect.remedy) == KINDS[kind]
    message = str(defect.as_error("labels.json"))
    where = "labels.json" if record == FILE else f"labels.json ({record})"
    assert message == f"{where}: {defect.problem}. Remedy: {defect.remedy}."
    assert len(message) < 400
    if record != FILE:
        kind_of_list, position = defect.place
        assert data[kind_of_list][position] is not None or kind == "not_a_record"


@pytest.mark.parametrize(
    "data", [None, 7, "text", [1], [], {}, {"images": None, "annotations": 3, "categories": ""}]
)
def test_anything_but_an_instances_file_is_refused(data):
    kinds = {defect.kind for defect in check_labels(data)}
    assert kinds == ({"missing_list"} if isinstance(data, dict) else {"not_an_object"})


def test_duplicate_keys_are_found_at_each_level(tmp_path):
    """`json` keeps the last silently; here half a file would be lost."""
    path = tmp_path / "labels.json"
    text = json.dumps(sound())
    path.write_text(text)
    assert load_labels(path) == (sound(), [])
    path.write_text(text[:-1] + ', "annotations": []}')
    data, (defect,) = load_labels(path)
    assert data["annotations"] == []
    assert (defect.kind, defect.severity, defect.record) == ("duplicate_key", ERROR, FILE)
    assert defect.problem == "an object has the key 'annotations' twice"
    path.write_text(text.replace('{"id": 13,', '{"area": 1, "id": 13,'))
    _, (defect,) = load_labels(path)
    assert defect.problem == "the object with the id 13 has the key 'area' twice"


def test_a_score_out_of_range_is_no_error_and_nan_is():
    data = sound()
    data["annotations"][0] |= {"score": 87.5, "quality": "good"}
    assert [(d.kind, d.severity) for d in check_labels(data)] == [("score_range", WARNING)] * 2
    data["annotations"][0] |= {"score": float("nan"), "quality": 1}
    assert [(d.kind, d.severity) for d in check_labels(data)] == [("not_finite", ERROR)]


def test_what_only_some_readers_take_is_settled_when_read(tmp_path):
    """A null for `iscrowd`, and a run-length code by a writer that knows no whole numbers."""
    data = sound()
    column = {"size": [30.0, 40], "counts": [0, 30.0, 1170]}
    data["annotations"][2] |= {"iscrowd": None, "segmentation": column}
    warned = {d.kind: d.severity for d in check_labels(data)}
    assert warned == {"iscrowd_null": WARNING, "rle_float": WARNING}
    entry = read_checked(write(tmp_path, data))["annotations"][2]
    assert entry["iscrowd"] == 0
    assert repr(entry["segmentation"]) == "{'size': [30, 40], 'counts': [0, 30, 1170]}"


def test_sizes_may_be_left_to_the_images():
    data = sound()
    for entry in data["images"]:
        del entry["height"], entry["width"]
    assert check_labels(data, need_size=False) == []
    assert {d.kind for d in check_labels(data)} == {"missing_key"}


def test_an_lvis_entry_is_named_by_its_url():
    data = sound()
    del data["images"][0]["file_name"]
    data["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/000000000005.jpg"
    data["images"][0] |= {"neg_category_ids": [9], "not_exhaustive_category_ids": []}
    assert check_labels(data) == []


@settings(max_examples=150, deadline=None)
@given(damaged)
def test_no_value_makes_the_checks_fail(data):
    for defect in check_labels(data):
        assert defect.kind in KINDS
        assert len(defect.problem) < 300


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_measure_needs_no_drawing(seed):
    mask = np.random.default_rng(seed).random((7, 9)) < 0.3
    area, box = measure(parse_segmentation(encode_rle(mask), 7, 9))
    rows, columns = np.nonzero(mask)
    assert area == mask.sum()
    if area:
        low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1
        assert box.tolist() == [*low, *(high - low)]


def test_values_nested_as_deep_as_json_reads_them():
    data = sound()
    deep = []
    for _ in range(100_000):
        deep = [deep]
    data["annotations"][0]["extra"] = deep
    data["annotations"][1]["bbox"] = deep
    data["annotations"][2]["segmentation"] = [deep]
    kinds = {(d.kind, d.record) for d in check_labels(data)}
    assert ("not_finite", A) in kinds
    assert {("box_malformed", "annotation 13"), ("polygon_malformed", "annotation 14")} <= kinds


def test_measure_of_rings():
    triangle = [1000.0, 1000.0, 1004.0, 1000.0, 1000.0, 1003.0]
    area, box = measure(parse_segmentation([triangle, SQUARE], 1100, 1100))
    assert area == pytest.approx(106)
    assert box.tolist() == [5, 5, 999, 998]


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (None, "file_unreadable"),
        (b'{"images": [', "json_malformed"),  # truncated
        (b"", "json_malformed"),
        (b"\xff\xfe{\x00", "json_malformed"),  # UTF-16
        (b"[" * 100_000, "json_malformed"),  # nested beyond any reader
        (b"\xef\xbb\xbf{}", "byte_order_mark"),
    ],
)
def test_load_labels(raw, kind, tmp_path):
    path = tmp_path / "labels.json"
    if raw is not None:
        path.write_bytes(raw)
    data, (defect,) = load_labels(path)
    assert (defect.kind, defect.record) == (kind, FILE)
    assert data == ({} if kind == "byte_order_mark" else None)
    if data is None:
        with pytest.raises(DataError, match=r"labels\.json.*Remedy"):
            read_checked(path)


def write(folder, data):
    path = folder / "labels.json"
    path.write_text(json.dumps(data))
    return path


def test_read_checked_raises_the_first_error_and_counts_the_others(tmp_path):
    data = sound()
    assert read_checked(write(tmp_path, data)) == data
    annotation(bbox=[1, 2])(data)
    change("annotations", 3, category_id=8)(data)
    with pytest.raises(DataError, match=r"annotation 12.*bbox is \[1, 2\].*1 more error.*validate"):
        read_checked(write(tmp_path, data))


@pytest.mark.parametrize(
    "damage",
    [
        annotation(bbox=[5, 5, 0, 10]),  # as in COCO's own train2017; Detectron2 leaves it out
        annotation(area=400),  # a warning
    ],
)
def test_what_the_loaders_tolerate(damage, tmp_path):
    data = sound()
    damage(data)
    assert check_labels(data)
    assert read_checked(write(tmp_path, data)) == data


def test_the_caller_says_what_it_handles_itself(tmp_path):
    data = sound()
    annotation(bbox=[90, 5, 5, 5])(data)
    with pytest.raises(DataError, match="annotation 12"):
        read_checked(write(tmp_path, data))
    read_checked(write(tmp_path, data), tolerated={"box_outside"})


def test_real_files_are_sound(data_dir):
    for name, file in (
        ("coco_dev", "instances_val.json"),
        ("lvis_dev", "lvis_v0.5_val_subset.json"),  # file names of 2014, files of 2017
        ("dsb2018_dev", "instances_val.json"),
    ):
        data, defects = load_labels(data_dir / name / "annotations" / file)
        defects += check_labels(data) + check_images(data, data_dir / name / "images", pixels=False)
        assert [d for d in defects if d.severity == ERROR] == []
        # 13 boxes of three LVIS images do stand elsewhere than their masks.
        assert {d.kind for d in defects} <= ({"box_differs"} if name == "lvis_dev" else set())
