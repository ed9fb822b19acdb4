"""The ground truth that AP is taken against: filled in, checked, and whole."""

import copy
import logging
import math

import pytest

from pseudolabel.ap import GroundTruth, average_precision
from pseudolabel.errors import DataError
from pseudolabel.masks import decode_segmentation, encode_rle
from tests.pseudolabel.made_up import BACKENDS, small_set, square

SQUARE = square(2, 3, 12)


def changed(part, **values):
    data = small_set()
    data[part][0].update(values)
    return data


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "a", "c"], ["b", "a", "c"]),
        (["a", "a", "b"], ["a (id 1)", "a (id 2)", "b"]),
        # a name that would be taken by then
        (["a", "a", "a (id 2)"], ["a (id 1)", "a (id 2) (id 2)", "a (id 2) (id 3)"]),
    ],
)
def test_classes_of_one_name_keep_their_lines(names, expected):
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    truth = GroundTruth(small_set(categories=categories), "x")
    found = average_precision(truth, [], "bbox")
    assert list(found)[6:] == [f"AP-{name}" for name in expected]
    assert [found[f"AP-{name}"] == 0 for name in expected] == [True, False, False]


@pytest.mark.parametrize(
    ("drop", "segmentation", "area"),
    [
        ("area", SQUARE["segmentation"], 144),
        ("area", {"size": [40, 40], "counts": [5, 7, 1588]}, 7),
        ("area", [[0, 0, 8, 0, 8, 6, 0, 6]], 48),
        # without a mask the box is all there is
        ("area", None, 100),
        ("iscrowd", None, 100),
    ],
)
def test_missing_area_and_crowd_flag_are_filled_in_memory(drop, segmentation, area, caplog):
    data = small_set()
    del data["annotations"][0][drop]
    data["annotations"][0]["segmentation"] = segmentation
    before = copy.deepcopy(data)
    with caplog.at_level(logging.INFO):
        truth = GroundTruth(data, "file.json")
    assert truth.annotations[0]["area"] == area
    assert truth.annotations[0]["iscrowd"] == 0
    assert data == before
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "file.json" in caplog.text


def test_annotation_id_zero_counts_like_any_other():
    data = small_set()
    data["annotations"][0]["id"] = 0
    rows = [{"image_id": 1, "category_id": 1, "score": 0.5, **square(2, 3, 10)}]
    for backend in BACKENDS:
        found = average_precision(GroundTruth(data, "x"), rows, "segm", backend=backend)
        assert found["AP"] == pytest.approx(100)


def test_run_length_codes_of_integral_floats_are_evaluated():
    data = small_set()
    data["annotations"][0].update(
        segmentation={"size": [40.0, 40.0], "counts": [82.0, 10.0, 1508.0]}, bbox=[2, 2, 1, 10]
    )
    code = {"size": [40, 40], "counts": [82, 10, 1508]}
    rle = encode_rle(decode_segmentation(code, 40, 40))
    packed = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": rle}]
    for backend in BACKENDS:
        found = average_precision(GroundTruth(data, "x"), packed, "segm", backend=backend)
        assert found["AP"] == pytest.approx(100)


def test_rejected_images_are_not_evaluated():
    data = small_set()
    # They may have been rejected for what is wrong with them.
    data["images"][0].update(status="rejected", height=-1)
    data["annotations"][0]["bbox"] = None
    truth = GroundTruth(data, "x")
    assert list(truth.sizes) == [2]
    assert truth.annotations == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (small_set(images=[]), "x.json: has no images"),
        (small_set(categories=None), "x.json: has no categories"),
        (changed("images", height=None), "x.json (image 1): has no height"),
        (changed("annotations", bbox=None), "x.json (annotation 1): has no bbox"),
        # a run-length code of another size, needed for the area
        (
            changed("annotations", area=None, segmentation={"size": [4, 4], "counts": [16]}),
            "x.json (annotation 1): run-length code is for a [4, 4] image",
        ),
        # what training refuses, too
        (changed("annotations", image_id=5), "x.json (annotation 1): unknown image_id 5"),
        (changed("annotations", area=10**400), "x.json (annotation 1): area is "),
        (changed("annotations", bbox=[0, 0, math.nan, 1]), "x.json (annotation 1): bbox is "),
        (
            changed("annotations", segmentation={"size": [40, 40.5], "counts": [1600]}),
            "x.json (annotation 1): run-length code is malformed: its size",
        ),
        (
            changed("annotations", segmentation={"size": [40, 40], "counts": [0.5, 1599.5]}),
            "x.json (annotation 1): run-length code is malformed: its counts",
        ),
        (small_set(images=["1.png"]), "x.json (image at position 0): is '1.png', no JSON object"),
        (small_set(images={"id": 1}), "x.json: has no list 'images'"),
        (small_set(annotations=[7]), "x.json (annotation at position 0): is 7, no JSON object"),
        (small_set(annotations=None), "x.json: has no list 'annotations'"),
        (small_set(annotations={}), "x.json: has no list 'annotations'"),
        (small_set(categories=["a"]), "x.json (category at position 0): is 'a', no JSON object"),
        (changed("annotations", category_id=[1]), "x.json (annotation 1): unknown category_id [1]"),
        # masks are to be compared
        (
            changed("annotations", segmentation=[]),
            "x.json (first in image 1): 1 of 1 annotations have no segmentation",
        ),
    ],
)
def test_bad_ground_truth_is_refused(data, message):
    with pytest.raises(DataError) as caught:
        average_precision(GroundTruth(data, "x.json"), [], "segm")
    assert str(caught.value).startswith(message)
    assert "Remedy: " in str(caught.value)
