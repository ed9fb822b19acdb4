"""Measures of quality: values by hand, properties, degenerate maps, naive twins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pseudolabel.quality import (
    ESTIMATE_WEIGHTS,
    MEASURES,
    Evidence,
    certainty,
    crowding,
    decision,
    estimate_features,
    expected_iou,
    inscribed_ellipse,
    mean_probability,
    soft_iou,
    stability,
)

unit_maps = arrays(np.float32, (4, 4), elements=st.floats(0, 1, width=32))
VIEWS = ("other", "mirror")


def evidence(probability, view=None, **options):
    probability = np.asarray(probability, np.float32)
    view = probability if view is None else np.asarray(view, np.float32)
    return Evidence(probability, 0.5, dict.fromkeys(VIEWS, view), **options)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 1, 0], 1 / 3),  # masks: the IoU
        ([0.8, 0.2], [0.4, 0.4], 0.6 / 1.2),
        ([0, 0], [0, 0], 0.0),  # nothing in either
        ([0, 0], [0.5, 0], 0.0),
    ],
)
def test_soft_iou(first, second, expected):
    first, second = np.array(first, np.float32), np.array(second, np.float32)
    assert soft_iou(first, second) == pytest.approx(expected)
    assert soft_iou(second, first) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("probability", "mask", "expected"),
    [
        ([[0.8, 0.6], [0.2, 0.0]], [[1, 1], [0, 0]], 0.7),
        ([[0.8, 0.6], [0.2, 0.0]], [[0, 0], [0, 0]], 0.0),  # no foreground
        ([[0.9]], [[1]], 0.9),  # one pixel
    ],
)
def test_mean_probability(probability, mask, expected):
    assert mean_probability(np.array(probability), np.array(mask, bool)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "threshold", "delta", "expected"),
    [
        ([0.95, 0.6, 0.3, 0.05], 0.5, 0.6, 1 / 3),
        ([0.95, 0.05], 0.5, 0.8, 1.0),  # certain: no threshold matters
        ([0.4, 0.4], 0.5, 0.1, 0.0),  # nothing above even the lower one
        ([0.5, 0.95], 0.7, 0.8, 0.5),  # .46 and .94: the band stays between 0 and 1
        ([0.0, 0.01, 0.9], 0.1, 0.8, 1.0),  # .02 and .18
    ],
)
def test_stability(values, threshold, delta, expected):
    assert stability(np.array([values]), threshold, delta) == pytest.approx(expected)


def test_certainty_and_decision_rise_from_undecided_to_sure():
    undecided, leaning, sure = (np.full((3, 3), p, np.float32) for p in (0.5, 0.8, 1.0))
    assert certainty(undecided) == pytest.approx(0, abs=1e-6)
    assert 0 < certainty(leaning) < certainty(sure) <= 1
    assert decision(undecided) == pytest.approx(0, abs=1e-6)
    assert decision(leaning) == pytest.approx(np.log(4), abs=1e-3)
    assert decision(1 - sure) == pytest.approx(decision(sure))
    assert decision(sure) > 5


def test_the_ellipse_has_its_area_and_touches_each_side():
    ellipse = inscribed_ellipse(48)
    assert ellipse.mean() == pytest.approx(np.pi / 4, abs=0.01)
    assert all(edge.any() for edge in (ellipse[0], ellipse[-1], ellipse[:, 0], ellipse[:, -1]))
    assert inscribed_ellipse(1).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([], []),
        ([[0, 0, 8, 8]], [0]),  # alone
        ([[0, 0, 8, 8], [8, 0, 16, 8]], [0, 0]),  # touching is not covering
        ([[0, 0, 8, 8], [4, 0, 12, 8]], [0.5, 0.5]),
        ([[0, 0, 8, 8], [2, 2, 6, 6]], [0.25, 1]),  # nested
        ([[0, 0, 8, 8], [0, 0, 8, 8]], [1, 1]),  # twice the same
        ([[0, 0, 8, 8], [0, 0, 4, 8], [0, 0, 4, 8]], [0.5, 1, 1]),  # the union counts, not the sum
        ([[3, 3, 3, 3], [9, 9, 10, 10]], [0, 0]),  # a point
    ],
)
def test_crowding(boxes, expected):
    assert crowding(np.array(boxes)).tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 12)] * 2), max_size=5))
def test_crowding_of_whole_boxes_equals_counting_pixels(boxes):
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], float).reshape(-1, 4)
    expected = []
    for index, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        others = np.zeros((24, 24), bool)
        for a0, b0, a1, b1 in np.delete(boxes, index, 0).astype(int):
            others[b0:b1, a0:a1] = True
        expected.append(others[y0:y1, x0:x1].mean())
    # 27720 parts would be exact for every side up to 12.
    assert crowding(boxes, 240) == pytest.approx(expected, abs=0.02)


@settings(max_examples=40, deadline=None)
@given(unit_maps, unit_maps, st.floats(0, 1), st.floats(0, 1e8))
def test_every_measure_of_any_evidence_is_a_number_of_0_to_1(probability, view, crowded, area):
    given_ = evidence(probability, view, crowding=crowded, area=area)
    assert np.isfinite(estimate_features(given_)).all()
    for name, measure in MEASURES.items():
        assert 0 <= measure(given_) <= 1, name


@pytest.mark.parametrize(
    "probability",
    [np.zeros((4, 4)), np.ones((4, 4)), [[0.7]], np.full((4, 4), 0.5)],
    ids=["nothing", "everything", "one point", "undecided"],
)
def test_degenerate_maps_have_a_quality(probability):
    for measure in MEASURES.values():
        assert 0 <= measure(evidence(probability)) <= 1


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_a_sure_round_mask_that_all_views_share_beats_a_doubtful_one(name):
    disc = 0.02 + 0.96 * inscribed_ellipse(16)
    doubtful = 0.35 + 0.3 * inscribed_ellipse(16)
    shifted = np.roll(doubtful, 5, axis=1)
    good, bad = evidence(disc, area=900.0), evidence(doubtful, shifted, crowding=0.7, area=900.0)
    assert MEASURES[name](good) > MEASURES[name](bad)


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.1, np.inf])
@pytest.mark.parametrize("place", ["probability", "other"])
def test_what_is_no_probability_is_refused(value, place):
    maps = {"probability": np.full((2, 2), 0.5), "other": np.full((2, 2), 0.5)}
    maps[place][1, 1] = value
    with pytest.raises(ValueError, match=f"{place}: a probability"):
        Evidence(maps["probability"], 0.5, {"other": maps["other"]})


def test_the_estimate_weighs_what_its_features_list():
    assert len(estimate_features(evidence(np.full((4, 4), 0.6)))) == len(ESTIMATE_WEIGHTS)


@pytest.mark.parametrize(
    ("probability", "mask", "expected"),
    [
        ([[0.9]], [[1]], 0.9),  # one pixel: its own probability
        ([[0.6, 0.6, 0.4]], [[1, 1, 0]], 1.2 / 2.4),
    ],
)
def test_expected_iou(probability, mask, expected):
    assert expected_iou(np.array(probability), np.array(mask, bool)) == pytest.approx(expected)
