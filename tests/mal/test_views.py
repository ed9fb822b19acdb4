"""The student's colour view."""

import colorsys

import numpy as np
import pytest

from mal.views import student_view

OFF = {"jitter_prob": 0.0, "gray_prob": 0.0, "blur_prob": 0.0}


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)


def _rng(seed=0):
    return np.random.default_rng(seed)


def test_nothing_drawn_nothing_changed(image):
    view = student_view(image, _rng(), **OFF)
    assert np.array_equal(view, image)
    view[:] = 0
    assert image.any()  # the result never shares memory with the teacher's view


def test_a_view_is_a_function_of_the_generator(image):
    on = {"jitter_prob": 1.0, "gray_prob": 0.0, "blur_prob": 1.0}
    first, same, other = (student_view(image, _rng(seed), **on) for seed in (1, 1, 2))
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_consumption_of_the_generator_does_not_depend_on_the_outcome(image):
    full, none = _rng(), _rng()
    student_view(image, full, jitter_prob=1.0, gray_prob=1.0, blur_prob=1.0)
    student_view(image, none, **OFF)
    assert full.uniform() == none.uniform()


def test_gray_has_equal_channels(image):
    view = student_view(image, _rng(), **{**OFF, "gray_prob": 1.0})
    assert (np.ptp(view, axis=2) == 0).all()
    assert view.std() > 10


def test_blur_smooths_and_keeps_the_mean(image):
    view = student_view(image, _rng(), **{**OFF, "blur_prob": 1.0}, blur_radius=(2.0, 2.0))
    assert view.std() < 0.6 * image.std()
    assert view.mean() == pytest.approx(image.mean(), abs=4)


def test_brightness_factors_stay_in_range():
    gray = np.full((4, 4, 3), 100, dtype=np.uint8)
    only = {**OFF, "jitter_prob": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    means = [student_view(gray, _rng(seed), **only).mean() for seed in range(200)]
    assert 59 <= min(means) < 66
    assert 134 < max(means) <= 141


def test_hue_turns_the_circle_and_wraps():
    red = np.full((2, 2, 3), (250, 20, 20), dtype=np.uint8)
    only = {**OFF, "jitter_prob": 1.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0.1}
    hues = []
    for seed in range(60):
        pixel = student_view(red, _rng(seed), **only)[0, 0] / 255
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        hues.append((hue + 0.5) % 1 - 0.5)
        assert saturation == pytest.approx(0.92, abs=0.03)
        assert value == pytest.approx(250 / 255, abs=0.01)
    assert -0.11 < min(hues) < -0.07
    assert 0.07 < max(hues) < 0.11


def test_frequencies_of_the_three_steps():
    image = np.zeros((3, 3, 3), dtype=np.uint8)
    image[1, 1] = (200, 100, 30)
    changed = gray = blurred = 0
    for seed in range(600):
        view = student_view(image, _rng(seed))
        changed += not np.array_equal(view, image)
        gray += np.ptp(view[1, 1].astype(int)) == 0
        # without jitter, whose contrast would lift black as well
        blurred += student_view(image, _rng(seed), jitter_prob=0.0)[0, 1].any()
    assert changed / 600 == pytest.approx(0.80, abs=0.05)  # 1 - .5 * .8 * .5
    assert gray / 600 == pytest.approx(0.20, abs=0.05)
    # a radius below ~.3 px rounds away in 8 bits, so a little less than one half
    assert blurred / 600 == pytest.approx(0.45, abs=0.08)


@pytest.mark.parametrize(
    "bad",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)],
)
def test_other_arrays_are_refused(bad):
    with pytest.raises(ValueError, match="uint8 RGB"):
        student_view(bad, _rng())
