"""Means and differences over seeds, against numpy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pseudolabel.config_diff import ABSENT, differences
from pseudolabel.paired import paired_difference, paired_percent, spread

numbers = st.dictionaries(st.integers(0, 9), st.floats(1, 100), max_size=6)


@given(numbers, numbers)
def test_differences_are_those_of_the_common_seeds(ours, theirs):
    common = sorted(set(ours) & set(theirs))
    a, b = np.array([ours[s] for s in common]), np.array([theirs[s] for s in common])
    found = paired_difference(ours, theirs)
    assert found.n == len(common)
    if common:
        assert found.mean == pytest.approx((a - b).mean())
        assert paired_percent(ours, theirs).mean == pytest.approx((100 * a / b).mean())
    if len(common) > 1:
        assert found.std == pytest.approx((a - b).std(ddof=1))
    else:
        assert math.isnan(found.std)


# Numbers, digits, with sign; what is shown and what is stored.
SHOWN = [
    ([1.0, 2.0], 2, False, "1.50 ± 0.71", {"mean": 1.5, "n": 2}),
    ([1.0, 2.0], 1, True, "+1.5 ± 0.7", {"mean": 1.5, "n": 2}),
    ([-2.0], 1, True, "-2.0", {"mean": -2.0, "std": None, "n": 1}),  # one seed: no deviation
    ([], 1, False, "–", {"mean": None, "std": None, "n": 0}),
]


@pytest.mark.parametrize(("values", "digits", "sign", "text", "stored"), SHOWN)
def test_shown_and_stored(values, digits, sign, text, stored):
    assert spread(values).show(digits, sign) == text
    assert stored.items() <= spread(values).json().items()


def test_percent_of_nothing_is_left_out():
    assert paired_percent({0: 5.0, 1: 5.0}, {0: 0.0, 1: 10.0}).mean == 50.0


# Two configs, and what differs.
DIFFERENCES = [
    ({"A": {"B": 1, "C": 2}}, {"A": {"B": 1, "C": 3}}, {"A.C": (2, 3)}),
    ({"A": (1, (2,))}, {"A": [1, [2]]}, {}),  # YAML has no tuples
    ({"A": 1}, {"B": {"C": 1}}, {"A": (1, ABSENT), "B.C": (ABSENT, 1)}),
    ({"A": [{"x": 1}]}, {"A": [{"x": 2}]}, {"A": ([{"x": 1}], [{"x": 2}])}),
]


@pytest.mark.parametrize(("old", "new", "expected"), DIFFERENCES)
def test_config_differences(old, new, expected):
    assert differences(old, new) == expected
