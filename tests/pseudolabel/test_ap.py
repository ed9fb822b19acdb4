"""AP against pycocotools and lvis themselves, on real data and on tiny random data sets."""

import copy
import functools
import json
import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel import ap
from pseudolabel.ap import GroundTruth, average_precision
from pseudolabel.ap_backends import lvis_rows, numpy_float_alias
from pseudolabel.errors import DataError
from pseudolabel.masks import encode_rle
from tests.pseudolabel.made_up import detect, lvis_numbers, pycocotools_numbers

FAST = ("faster_coco_eval", "hotcoco")
FILES = {
    "coco": ("coco_dev/annotations/instances_val.json", "coco"),
    "nuclei": ("dsb2018_dev/annotations/instances_val.json", "coco"),
    "lvis": ("lvis_dev/annotations/lvis_v0.5_val_subset.json", "lvis"),
}


def assert_equal(found, expected):
    """Every number within 1e-4, and NaN in the same places."""
    assert found.keys() >= expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4, nan_ok=True), name


@functools.cache
def made_up(file):
    data = json.loads(file.read_text())
    return data, detect(data)


@functools.cache
def expected_numbers(file, style, task, most):
    data, rows = made_up(file)
    if style == "lvis":
        return lvis_numbers(file, rows, task)
    numbers = pycocotools_numbers(data, rows, task, most)
    # The AP of the only class would repeat the first line.
    return {k: v for k, v in numbers.items() if "-" not in k or len(data["categories"]) > 1}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("name", "most", "limit"),
    [
        ("coco", 0, 100),  # 80 classes, 3 without ground truth; crowds
        ("nuclei", 0, 100),  # an image with more detections than count
        ("nuclei", 200, 200),  # where pycocotools' own summary would print -1
        ("lvis", 0, 300),  # federated: negative and not exhaustive lists, frequencies
    ],
)
def test_every_number_is_the_libraries(name, most, limit, task, backend, data_dir):
    path, style = FILES[name]
    file = data_dir / path
    data, rows = made_up(file)
    truth = GroundTruth(data, file, style)
    found = average_precision(truth, rows, task, backend=backend, max_dets=most)
    expected = expected_numbers(file, style, task, limit)
    assert found["AP"] > 5
    assert_equal(found, expected)
    assert len(found) == len(expected)


def test_the_reference_backend_is_lvis_for_lvis(data_dir):
    """pycocotools is compared on random sets below."""
    path, style = FILES["lvis"]
    file = data_dir / path
    data, rows = made_up(file)
    found = average_precision(GroundTruth(data, file, style), rows, "segm", backend="reference")
    assert_equal(found, expected_numbers(file, style, "segm", 300))


def test_more_detections_count_when_asked(data_dir):
    """The trap: 88 of 1370 nuclei are out of reach of 100 detections per image."""
    file = data_dir / FILES["nuclei"][0]
    data, rows = made_up(file)
    truth = GroundTruth(data, file)
    tables = [average_precision(truth, rows, "segm", max_dets=most) for most in (100, 200)]
    assert tables[1]["AP"] > tables[0]["AP"] + 0.5


@st.composite
def tiny_sets(draw, style):
    """A data set of at most three images of 12x12 and two of three classes, and results."""
    number = functools.partial(st.integers, 0)

    def mask():
        y, x, h, w = (draw(number(n)) for n in (8, 8, 6, 6))
        canvas = np.zeros((12, 12), dtype=bool)
        canvas[y : y + h, x : x + w] = True
        box = [float(v) for v in (x, y, w, h)]
        return {"bbox": box, "segmentation": encode_rle(canvas)}, float(canvas.sum())

    images = [{"id": 5 - i, "height": 12, "width": 12} for i in range(draw(st.integers(1, 3)))]
    labels = st.sampled_from([2, 4])  # class 9 has no instance
    places = st.sampled_from([image["id"] for image in images])
    if style == "lvis":
        lists = st.lists(st.sampled_from([2, 4, 9]), unique=True, max_size=2)
        for image in images:
            image["neg_category_ids"] = draw(lists)
            image["not_exhaustive_category_ids"] = draw(lists)
    annotations, rows = [], []
    for index in range(draw(number(6))):
        shape, area = mask()
        # Areas on both sides of COCO's limits, without large images.
        area *= draw(st.sampled_from([1, 40, 400]))
        crowd = draw(st.sampled_from([0, 0, 1])) if style == "coco" else 0
        place = {"image_id": draw(places), "category_id": draw(labels)}
        annotations.append({"id": index + 1, **place, **shape, "area": area, "iscrowd": crowd})
    for _ in range(draw(st.integers(1, 10))):
        shape, _ = mask()
        label = draw(st.sampled_from([2, 4, 9]))
        # Three scores only: ties within and between images.
        score = draw(st.sampled_from([0.2, 0.5, 0.9]))
        rows.append({"image_id": draw(places), "category_id": label, "score": score, **shape})
    frequencies = {2: "r", 4: "f", 9: "c"}
    categories = [{"id": i, "name": f"c{i}", "frequency": f} for i, f in frequencies.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, rows


@pytest.mark.parametrize("style", ["coco", "lvis"])
@given(sets=st.data())
@settings(max_examples=40, deadline=None)
def test_backends_agree_on_random_sets(style, sets):
    data, rows = sets.draw(tiny_sets(style))
    most = sets.draw(st.sampled_from([0, 2]))
    truth = GroundTruth(data, "x.json", style)
    for task in ("bbox", "segm"):
        tables = [
            average_precision(truth, rows, task, backend=backend, max_dets=most)
            for backend in ("reference", *FAST)
        ]
        assert_equal(tables[1], tables[0])
        assert_equal(tables[2], tables[0])
        if style == "coco" and not most:
            assert_equal(tables[0], pycocotools_numbers(data, rows, task))


def square(y, x, side):
    canvas = np.zeros((40, 40), dtype=bool)
    canvas[y : y + side, x : x + side] = True
    return {
        "bbox": [float(x), float(y), float(side), float(side)],
        "segmentation": encode_rle(canvas),
    }


SQUARE = square(2, 3, 12)


def small_set(**changes):
    """Two images, the second empty; one instance of class 1, none of class 7."""
    annotation = {"id": 1, "image_id": 1, "category_id": 1, **square(2, 3, 10)}
    data = {
        "images": [{"id": 1, "height": 40, "width": 40}, {"id": 2, "height": 40, "width": 40}],
        "annotations": [{**annotation, "area": 100, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "seven"}, {"id": 1, "name": "one"}],
    }
    return {**data, **changes}


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize("style", ["coco", "lvis"])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_without_detections_ap_is_zero(task, style, backend):
    found = average_precision(GroundTruth(small_set(), "x", style), [], task, backend=backend)
    assert (found["AP"], found["AP50"], found["APs"], found["AP-one"]) == (0, 0, 0, 0)
    assert math.isnan(found["APm"])
    assert math.isnan(found["AP-seven"])
    # No frequencies in the file: the means over them do not exist.
    assert style == "coco" or math.isnan(found["APf"])


@pytest.mark.parametrize("backend", [*FAST, "reference"])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # the instance itself
        ([(1, 1, 0.5, (2, 3, 10))], 100),
        # a better-scored false one in the empty image halves precision
        ([(1, 1, 0.5, (2, 3, 10)), (2, 1, 0.9, (0, 0, 5))], 50),
        # a worse-scored false one costs nothing
        ([(1, 1, 0.5, (2, 3, 10)), (2, 1, 0.1, (0, 0, 5))], 100),
        # of another class
        ([(1, 7, 0.5, (2, 3, 10))], 0),
        # 90 of 100 pixels in common, 110 together: IoU .818 clears .5 to .8, 7 of 10 thresholds
        ([(1, 1, 0.5, (2, 4, 10))], 70),
    ],
)
def test_numbers_worked_out_by_hand(rows, expected, backend):
    results = [
        {"image_id": image, "category_id": label, "score": score, **square(*place)}
        for image, label, score, place in rows
    ]
    before = copy.deepcopy(results)
    for task in ("bbox", "segm"):
        found = average_precision(GroundTruth(small_set(), "x"), results, task, backend=backend)
        assert found["AP"] == pytest.approx(expected, abs=0.01)
    assert results == before


def test_lvis_cut_is_per_image_and_ties_go_to_the_first():
    rows = [
        {"image_id": i, "category_id": c, "score": s, "bbox": [0, 0, w, 1]}
        for i, c, s, w in [
            (1, 1, 0.5, 1),
            (1, 2, 0.9, 1),
            (1, 3, 0.5, 1),
            (2, 1, 0.1, 1),
            (2, 2, 0.9, 0),
        ]
    ]
    kept = [(row["image_id"], row["category_id"]) for row in lvis_rows(rows, "bbox", 2)]
    # The box without area of image 2 has taken a place, as in lvis itself.
    assert kept == [(1, 2), (1, 1), (2, 1)]


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
    for backend in (*FAST, "reference"):
        found = average_precision(GroundTruth(data, "x"), rows, "segm", backend=backend)
        assert found["AP"] == pytest.approx(100)


def test_rejected_images_are_not_evaluated():
    data = small_set()
    data["images"][0]["status"] = "rejected"
    truth = GroundTruth(data, "x")
    assert list(truth.sizes) == [2]
    assert truth.annotations == []


def changed(part, **values):
    data = small_set()
    data[part][0].update(values)
    return data


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


def test_bad_requests_are_refused(monkeypatch):
    truth = GroundTruth(small_set(), "x.json")
    with pytest.raises(DataError, match=r"unknown backend 'coco'.*hotcoco"):
        average_precision(truth, [], "bbox", backend="coco")
    with pytest.raises(DataError, match="image 9"):
        average_precision(
            truth, [{"image_id": 9, "category_id": 1, "score": 1, "bbox": [0, 0, 1, 1]}], "bbox"
        )
    with pytest.raises(ValueError, match="task 'keypoints'"):
        average_precision(truth, [], "keypoints")
    with pytest.raises(DataError, match="evaluation style 'voc'"):
        GroundTruth(small_set(), "x.json", "voc")
    monkeypatch.setitem(ap.BACKENDS, "hotcoco", ("no_such_package", None))
    with pytest.raises(DataError, match=r"no_such_package cannot be imported.*fast-eval"):
        average_precision(truth, [], "bbox", backend="hotcoco")


def test_numpy_is_as_before_after_the_alias():
    before = vars(np).get("float")

    def fails():
        with numpy_float_alias(), numpy_float_alias():
            assert np.float is float
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert vars(np).get("float") is before
    # Where numpy still has the name, it is kept.
    with numpy_float_alias():
        with numpy_float_alias():
            pass
        assert np.float is float
