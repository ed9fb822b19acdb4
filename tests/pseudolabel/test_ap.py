"""AP against pycocotools and lvis themselves, on real data and on tiny random data sets."""

import copy
import functools
import json
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
from tests.pseudolabel.made_up import (
    BACKENDS,
    FAST,
    detect,
    lvis_numbers,
    pycocotools_numbers,
    small_set,
    square,
)

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
        flags = {"iscrowd": crowd, "ignore": draw(st.sampled_from([0, 0, 1]))}
        annotations.append({"id": index + 1, **place, **shape, "area": area, **flags})
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
        # COCO's evaluation overwrites `ignore`, LVIS' obeys it.
        if style == "coco" and not most:
            assert_equal(tables[0], pycocotools_numbers(data, rows, task))


@pytest.mark.parametrize("backend", BACKENDS)
def test_instances_to_ignore_are_as_in_the_lvis_package(backend, tmp_path, data_dir):
    path, style = FILES["lvis"]
    data, rows = made_up(data_dir / path)
    marked = [{**a, "ignore": int(a["id"] % 3 == 0)} for a in data["annotations"]]
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps({**data, "annotations": marked}))
    found = average_precision(GroundTruth.read(file, style), rows, "bbox", backend=backend)
    expected = lvis_numbers(file, rows, "bbox")
    assert_equal(found, expected)
    without = average_precision(GroundTruth(data, "x", style), rows, "bbox", backend=backend)
    assert abs(without["AP"] - found["AP"]) > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", ["coco", "lvis"])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_without_detections_ap_is_zero(task, style, backend):
    found = average_precision(GroundTruth(small_set(), "x", style), [], task, backend=backend)
    assert (found["AP"], found["AP50"], found["APs"], found["AP-one"]) == (0, 0, 0, 0)
    assert math.isnan(found["APm"])
    assert math.isnan(found["AP-seven"])
    # No frequencies in the file: the means over them do not exist.
    assert style == "coco" or math.isnan(found["APf"])


@pytest.mark.parametrize("backend", BACKENDS)
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("style", ["coco", "lvis"])
@pytest.mark.parametrize(
    ("images", "categories"),
    [
        ((1, 2), (1, 7)),
        # as floats these are one number
        ((2**53, 2**53 + 1), (2**53 + 1, 2**53)),
        # more than 64 bits hold
        ((2**64, 2**65), (2**66, 2**64)),
        ((-2, -1), (-1, -7)),
        ((0, 1), (1, 0)),
        ((9, 5), (3, 1)),
    ],
)
def test_any_whole_numbers_are_ids(images, categories, style, backend):
    image, label = dict(zip((1, 2), images)), dict(zip((1, 7), categories))
    data = small_set()
    for record in data["images"]:
        record.update(id=image[record["id"]], neg_category_ids=[label[1]])
        record["not_exhaustive_category_ids"] = [label[7]]
    for record in data["categories"]:
        record["id"] = label[record["id"]]
    for record in data["annotations"]:
        record.update(image_id=image[1], category_id=label[1])
    results = [
        {"image_id": image[i], "category_id": c, "score": s, **square(2, 3, 10)}
        # the instance itself; its place in the other image; another class; no class of the file
        for i, c, s in [(1, label[1], 0.5), (2, label[1], 0.9), (1, label[7], 0.8), (1, 44, 0.7)]
    ]
    for task in ("bbox", "segm"):
        found = average_precision(GroundTruth(data, "x", style), results, task, backend=backend)
        assert found["AP-one"] == pytest.approx(50, abs=0.01)
        assert math.isnan(found["AP-seven"])


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
