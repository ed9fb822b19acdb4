"""Labels against hidden truth: a naive twin that draws every mask, COCO's own matching, by hand."""

import contextlib
import copy
import io
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pseudolabel.errors import DataError
from pseudolabel.files import read_json
from pseudolabel.hidden_truth import (
    agreement,
    compare_files,
    compare_labels,
    floor_rows,
    pearson,
    pool,
    reliability,
    spearman,
    summarize,
)
from pseudolabel.masks import decode_segmentation, encode_rle, mask_iou

SIDE = 12
NAMES = [{"id": 2, "name": "nut"}, {"id": 5, "name": "bolt"}]


def patch(y, x, height, width):
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y : y + height, x : x + width] = True
    return encode_rle(mask)


def row(key, where, image=1, category=2, **more):
    """An annotation; `where` is (y, x, height, width)."""
    y, x, height, width = where
    box = {"bbox": [x, y, width, height], "area": height * width}
    base = {"id": key, "image_id": image, "category_id": category, "iscrowd": 0}
    return {**base, **box, "segmentation": patch(*where), **more}


def coco(rows, images=(1,)):
    size = {"height": SIDE, "width": SIDE}
    entries = [{"id": key, "file_name": f"{key}.png", **size} for key in images]
    return {"images": entries, "categories": copy.deepcopy(NAMES), "annotations": list(rows)}


# A 4 x 4 square, its upper three rows (IoU 3/4), its upper half (1/2), its upper row (1/4).
WHOLE, THREE, HALF, ROW = (2, 2, 4, 4), (2, 2, 3, 4), (2, 2, 2, 4), (2, 2, 1, 4)
AWAY = (8, 8, 3, 3)
N = float("nan")
CASES = [
    # truth, predictions (where, score), their matched IoU, best IoU, ignored
    ("nothing found", [row(1, WHOLE)], [], [], [], []),
    ("nothing there", [], [(WHOLE, 0.9)], [N], [0], [0]),
    ("exact", [row(1, WHOLE)], [(WHOLE, 0.9)], [1], [1], [0]),
    ("just good enough", [row(1, WHOLE)], [(HALF, 0.9)], [0.5], [0.5], [0]),
    ("not good enough", [row(1, WHOLE)], [(ROW, 0.9)], [N], [0.25], [0]),
    ("elsewhere", [row(1, WHOLE)], [(AWAY, 0.9)], [N], [0], [0]),
    # The surer one takes the instance, though the other one is better and comes first.
    ("twice", [row(1, WHOLE)], [(WHOLE, 0.4), (THREE, 0.9)], [N, 0.75], [1, 0.75], [0, 0]),
    ("twice, equally sure", [row(1, WHOLE)], [(THREE, 0.4), (WHOLE, 0.4)], [0.75, N], [0.75, 1])
    + ([0, 0],),
    # The second finds its best instance taken and gets the other one.
    (
        "the next best",
        [row(1, WHOLE), row(2, HALF)],
        [(WHOLE, 0.9), (THREE, 0.8)],
        [1, 2 / 3],
        [1, 0.75],
        [0, 0],
    ),
    ("another class", [row(1, WHOLE, category=5)], [(WHOLE, 0.9)], [N], [0], [0]),
    ("another image", [row(1, WHOLE, image=2)], [(WHOLE, 0.9)], [N], [0], [0]),
    # Half of the prediction's own area is enough in a crowd, and a crowd takes any number.
    (
        "crowd",
        [row(1, (0, 0, 12, 12), iscrowd=1)],
        [(WHOLE, 0.9), (ROW, 0.8)],
        [N, N],
        [0, 0],
        [1, 1],
    ),
    ("beside a crowd", [row(1, AWAY, iscrowd=1)], [(WHOLE, 0.9)], [N], [0], [0]),
    # An instance counts even in a crowd; only what finds it taken is ignored.
    (
        "instance in a crowd",
        [row(1, (0, 0, 12, 12), iscrowd=1), row(2, WHOLE)],
        [(WHOLE, 0.9), (WHOLE, 0.8)],
        [1, N],
        [1, 1],
        [0, 1],
    ),
    ("crowd of another class", [row(1, WHOLE, iscrowd=1, category=5)], [(WHOLE, 1)], [N], [0], [0]),
]


@pytest.mark.parametrize(("true", "found", "matched", "best", "ignored"), [c[1:] for c in CASES])
def test_matching_by_hand(true, found, matched, best, ignored):
    labels = [row(k, where, score=score) for k, (where, score) in enumerate(found, 1)]
    result = compare_labels(coco(labels, (1, 2)), coco(true, (1, 2)))
    np.testing.assert_allclose(result.matched_iou, matched)
    np.testing.assert_allclose(result.best_iou, best)
    assert result.ignored.tolist() == [bool(v) for v in ignored]
    assert sum(result.truths.values()) == sum(not a["iscrowd"] for a in true)


@st.composite
def scenes(draw, crowds=True):
    """Labels and truth: two images, two classes, squares that often overlap, scores with ties."""
    places = st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 6)] * 2)
    where = st.tuples(places, st.sampled_from([1, 2]), st.sampled_from([2, 5]))
    levels = st.sampled_from([0.1, 0.35, 0.5, 0.8, 1.0])
    true = draw(st.lists(st.tuples(where, st.booleans() if crowds else st.just(False)), max_size=8))
    found = draw(st.lists(st.tuples(where, levels), max_size=10))
    truth = [row(k, *w, iscrowd=int(crowd)) for k, (w, crowd) in enumerate(true, 1)]
    labels = [row(k, *w, score=score, quality=score) for k, (w, score) in enumerate(found, 1)]
    return coco(labels, (1, 2)), coco(truth, (1, 2))


def naive(labels, truth, threshold):
    """(matched IoU, best IoU, ignored) of every prediction by plain loops over drawn masks."""
    drawn = {}
    for name, data in (("found", labels), ("true", truth)):
        for a in data["annotations"]:
            drawn[name, a["id"]] = decode_segmentation(a["segmentation"], SIDE, SIDE)
    taken, result = set(), {}
    for a in sorted(labels["annotations"], key=lambda a: -a["score"]):
        own, ious, in_crowd = drawn["found", a["id"]], {}, False
        for b in truth["annotations"]:
            if (a["image_id"], a["category_id"]) != (b["image_id"], b["category_id"]):
                continue
            other = drawn["true", b["id"]]
            if b["iscrowd"]:
                in_crowd |= (own & other).sum() / own.sum() >= threshold
            else:
                ious[b["id"]] = mask_iou(own, other)
        left = {key: iou for key, iou in ious.items() if key not in taken and iou >= threshold}
        winner = max(left, key=left.get, default=None)
        taken.add(winner)
        found = N if winner is None else left[winner]
        result[a["id"]] = (found, max(ious.values(), default=0.0), winner is None and in_crowd)
    return [result[a["id"]] for a in labels["annotations"]]


@settings(max_examples=80, deadline=None)
@given(scenes(), st.sampled_from([0.3, 0.5, 0.75, 1.0]))
def test_matching_is_that_of_a_naive_twin(scene, threshold):
    labels, truth = scene
    result = compare_labels(labels, truth, threshold)
    expected = np.array(naive(labels, truth, threshold), dtype=float).reshape(-1, 3).T
    np.testing.assert_allclose(result.matched_iou, expected[0])
    np.testing.assert_allclose(result.best_iou, expected[1])
    np.testing.assert_array_equal(result.ignored, expected[2] > 0)


@settings(max_examples=40, deadline=None)
@given(scenes(), st.sampled_from([0.1, 0.35, 0.5, 0.8]))
def test_what_lies_below_a_floor_changes_nothing_above_it(scene, floor):
    """So one matching serves all floors."""
    labels, truth = scene
    above = [a for a in labels["annotations"] if a["score"] > floor]
    direct = compare_labels({**labels, "annotations": above}, truth)
    (expected,), (found,) = (
        floor_rows(direct, [0.0]),
        floor_rows(compare_labels(labels, truth), [floor]),
    )
    assert found.pop("floor") == floor
    assert expected.pop("floor") == 0
    assert found == pytest.approx(expected, nan_ok=True)


def coco_counts(labels, truth, threshold):
    """(matched, ignored) of COCO's evaluation, by pycocotools' public steps."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(truth)
        reference.createIndex()
        run = COCOeval(reference, reference.loadRes(copy.deepcopy(labels["annotations"])), "segm")
        run.params.iouThrs = np.array([threshold])
        run.params.maxDets = [1, 10, 1000]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
    tables = [image for image in run.evalImgs if image is not None]
    right = sum(((t["dtMatches"][0] > 0) & ~t["dtIgnore"][0].astype(bool)).sum() for t in tables)
    return right, sum(t["dtIgnore"][0].sum() for t in tables)


@settings(max_examples=40, deadline=None)
@given(scenes(), st.sampled_from([0.3, 0.5, 0.75]))
def test_counts_are_those_of_cocos_evaluation(scene, threshold):
    labels, truth = scene
    if not labels["annotations"]:  # its reader takes no empty list
        return
    result = compare_labels(labels, truth, threshold)
    assert (result.matched.sum(), result.ignored.sum()) == coco_counts(labels, truth, threshold)


def test_more_than_255_predictions_on_an_image():
    """pycocotools has a trap there, for areas."""
    many = [row(k, WHOLE if k == 300 else ROW, score=0.5) for k in range(1, 301)]
    result = compare_labels(coco(many), coco([row(1, WHOLE)]))
    assert result.matched.nonzero()[0].tolist() == [299]
    assert result.best_iou[:299].tolist() == [0.25] * 299


def test_polygons_are_drawn():
    ring = [2, 2, 6, 2, 6, 6, 2, 6]
    result = compare_labels(
        coco([row(1, WHOLE, score=1)]), coco([row(1, WHOLE) | {"segmentation": [ring]}])
    )
    assert result.matched_iou.tolist() == [1.0]


def three():
    """Right and sure, right with three quarters, wrong; a class that is missed, one in a crowd."""
    labels = [
        row(1, WHOLE, score=0.9, quality=0.95),
        row(2, THREE, image=2, score=0.6, quality=0.7),
        row(3, AWAY, score=0.4, quality=0.2),
        row(4, AWAY, image=2, score=0.99, quality=0.5),
    ]
    truth = [row(1, WHOLE), row(2, WHOLE, image=2), row(3, WHOLE, category=5)]
    truth += [row(4, AWAY, image=2, iscrowd=1)]
    return coco(labels, (1, 2)), coco(truth, (1, 2))


# floor, class: kept, right, precision, recall, mean IoU
ROWS = [
    (0.3, None, (3, 2, 2 / 3, 2 / 3, 0.875)),
    (0.4, None, (2, 2, 1.0, 2 / 3, 0.875)),  # a score must exceed the floor
    (0.7, None, (1, 1, 1.0, 1 / 3, 1.0)),
    (0.95, None, (0, 0, N, 0.0, N)),  # the ignored one is not kept
    (0.3, 2, (3, 2, 2 / 3, 1.0, 0.875)),
    (0.3, 5, (0, 0, N, 0.0, N)),
]


@pytest.mark.parametrize(("floor", "category", "expected"), ROWS)
def test_rows_of_floors(floor, category, expected):
    (found,) = floor_rows(compare_labels(*three()), [floor], category)
    keys = ("kept", "matched", "precision", "recall", "mean_iou")
    assert [found[key] for key in keys] == pytest.approx(expected, nan_ok=True)
    assert found["kept_per_image"] == found["kept"] / 2


def test_summary():
    summary = summarize(compare_labels(*three()), [0.3, 0.5])
    json.dumps(summary, allow_nan=False)
    assert (summary["predictions"], summary["ignored"], summary["truths"]) == (4, 1, 3)
    assert summary["classes"]["bolt"]["truths"] == 1
    best = summary["quality"]["best"]  # stated .95, .7, .2; true 1, .75, 0
    assert (best["n"], best["spearman"]) == (3, pytest.approx(1.0))
    assert best["mean_iou"] == pytest.approx(1.75 / 3)
    assert best["calibration_error"] == pytest.approx((0.05 + 0.05 + 0.2) / 3)
    assert summary["quality"]["matched"]["n"] == 2
    assert [b["matched"] for b in summary["score"]["reliability"]] == [0, 1, 1]
    assert sum(summary["scores"]) == 3  # all but the ignored


@pytest.mark.parametrize("rows", [[], [row(1, WHOLE, score=0.5)]])
def test_summary_of_next_to_nothing(rows):
    """Without a prediction, and with one that states no quality."""
    summary = summarize(compare_labels(coco(rows), coco([])))
    json.dumps(summary, allow_nan=False)
    assert summary["score"]["best"]["spearman"] is None
    assert (summary["quality"] is None) == bool(rows)


def test_the_quality_of_a_filled_box_does_not_count():
    """It is a constant; the mask and the score count as any other's."""
    labels, truth = three()
    labels["annotations"][2].update(mask_source="filled_tiny", quality=0.58)
    labels["annotations"][1]["mask_source"] = "model"
    summary = summarize(compare_labels(labels, truth), [0.3])
    assert summary["quality"]["best"]["n"] == 2
    assert summary["quality"]["best"]["mean_stated"] == pytest.approx((0.95 + 0.7) / 2)
    assert summary["score"]["best"]["n"] == summary["floors"][0]["kept"] == 3
    assert summary["floors"][0]["quality_spearman"] == pytest.approx(1.0)


numbers = st.lists(st.tuples(*[st.integers(0, 9)] * 2), min_size=3, max_size=30)


@given(numbers)
def test_correlations_are_scipys(pairs):
    first, second = np.array(pairs).T / 9
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert np.isnan(pearson(first, second))
        assert np.isnan(spearman(first, second))
        return
    assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert agreement(first, second)["n"] == len(pairs)


@given(numbers, st.integers(1, 12))
def test_bins_of_reliability(pairs, bins):
    stated, iou = np.array(pairs).T / 9
    rows = reliability(stated, iou, iou > 0.5, bins)
    counts = [r["n"] for r in rows]
    assert len(rows) == min(bins, len(pairs))
    assert max(counts) - min(counts) <= 1
    for key, whole in (("mean_stated", stated), ("mean_iou", iou), ("matched", iou > 0.5)):
        assert np.dot([r[key] for r in rows], counts) == pytest.approx(whole.sum())
    assert all(a["high"] <= b["low"] for a, b in itertools.pairwise(rows))


def test_comparisons_together():
    one = compare_labels(*three())
    both = pool([one, one])
    (single,), (double,) = floor_rows(one, [0.3]), floor_rows(both, [0.3])
    assert double["kept"] == 2 * single["kept"]
    assert double["kept_per_image"] == single["kept_per_image"]
    assert double["recall"] == pytest.approx(single["recall"])
    for others in ([], [one, compare_labels(*three(), 0.75)]):
        with pytest.raises(ValueError, match="equal classes and threshold"):
            pool(others)


def spoil(change):
    labels, truth = three()
    change(labels, truth)
    return labels, truth


# What is wrong, what the one line says.
BAD = [
    (lambda d, t: d["images"].pop(), r"^L \(image 2\): lacks 1 of 2 images of T"),
    (lambda d, t: t["images"].pop(0), r"^T \(image 1\): lacks 1 of 2 images of L"),
    # What a label job could not read is not there to be compared.
    (lambda d, t: d["images"][0].update(status="rejected"), r"^L \(image 1\): lacks 1 of 2"),
    (lambda d, t: d["images"][0].update(height=99), r"^L \(image 1\): is \(99, 12\) high"),
    (lambda d, t: d["categories"].pop(), r"^L \(category 5\): 1 categories differ from T"),
    (lambda d, t: t["categories"][0].update(name="x"), r"^L \(category 2\).*'nut' where.*'x'"),
    (lambda d, t: d["annotations"][1].pop("score"), r"^L \(annotation 2\).*tools/evaluate"),
    (lambda d, t: d["annotations"][1].update(score="1"), r"^L \(annotation 2\): its score"),
    (lambda d, t: d["annotations"][1].pop("segmentation"), r"^L \(annotation 2\): has no mask"),
    (lambda d, t: t["annotations"][3].pop("segmentation"), r"^T \(annotation 4\): has no mask"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_one_clear_error(change, message):
    with pytest.raises(DataError, match=message):
        compare_labels(*spoil(change), label_file="L", truth_file="T")


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, N])
def test_a_threshold_that_is_none(threshold):
    with pytest.raises(DataError, match="--iou"):
        compare_labels(*three(), threshold)


def test_human_masks_against_themselves(data_dir, tmp_path):
    """Real polygons, codes and crowds: all is found, and exactly."""
    truth = data_dir / "coco_dev/annotations/instances_val.json"
    data = read_json(truth)
    own = [{**a, "score": 1.0} for a in data["annotations"] if not a["iscrowd"]]
    (tmp_path / "labels.json").write_text(json.dumps({**data, "annotations": own}))
    result = compare_files(tmp_path / "labels.json", truth)
    (found,) = floor_rows(result, [0.5])
    assert (found["kept"], found["precision"], found["recall"]) == (len(own), 1.0, 1.0)
    assert found["mean_iou"] == 1.0
    assert not result.ignored.any()
