"""Windows, crops and box masks, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mal import crops
from mal.crops import Window

H, W = 11, 7


@st.composite
def windows(draw):
    y0, x0 = draw(st.integers(-40, 40)), draw(st.integers(-40, 40))
    return Window(y0, x0, y0 + draw(st.integers(1, 30)), x0 + draw(st.integers(1, 30)))


@st.composite
def boxes(draw):
    x0, y0 = draw(st.floats(0, W)), draw(st.floats(0, H))
    return [x0, y0, draw(st.floats(x0, W)), draw(st.floats(y0, H))]


# numpy's name of each border, as an oracle that pads and does not index.
PADDINGS = {"wrap": "wrap", "reflect": "reflect", "replicate": "edge"}


@pytest.mark.parametrize("border", crops.BORDERS)
@settings(max_examples=60, deadline=None)
@given(windows(), st.booleans(), st.sampled_from([(H, W), (1, W), (2, 1), (3, 2)]))
def test_a_window_equals_a_cut_out_of_the_padded_image(border, window, colour, size):
    array = np.arange(size[0] * size[1] * 3).reshape(*size, 3)
    array = array if colour else array[..., 0]
    far = 90  # more than any window reaches
    padded = np.pad(array, [(far, far)] * 2 + [(0, 0)] * colour, mode=PADDINGS[border])
    expected = padded[far + window.y0 : far + window.y1, far + window.x0 : far + window.x1]
    crop = crops.wrap_crop(array, window, border)
    assert np.array_equal(crop, expected)
    assert crop.flags.c_contiguous


def test_wrapped_content_is_that_of_the_opposite_side():
    array = np.arange(H * W).reshape(H, W)
    crop = crops.wrap_crop(array, Window(-1, -2, 2, 3))
    for i, y in enumerate((H - 1, 0, 1)):
        for j, x in enumerate((W - 2, W - 1, 0, 1, 2)):
            assert crop[i, j] == array[y, x]


def test_an_unknown_border_is_refused():
    with pytest.raises(ValueError, match=r"BORDER 'zero': use one of wrap, reflect, replicate"):
        crops.border_index(-1, 3, 5, "zero")


def test_crops_are_copies():
    array = np.zeros((H, W), dtype=np.uint8)
    crops.wrap_crop(array, Window(1, 1, 4, 4))[:] = 9
    assert not array.any()


def test_a_box_as_wide_as_the_image_stays_positive_in_the_wrapped_strip():
    mask = crops.box_mask([0, 3, W, 6], H, W)
    window = Window(2, -2, 8, W + 2)
    assert crops.wrap_crop(mask, window)[1:5].all()


def test_extra_width_of_training_windows():
    rng = np.random.default_rng(0)
    width, height = 10_000.0, 20_000.0
    box = [50.0, 70.0, 50.0 + width, 70.0 + height]
    drawn = [crops.train_window(box, rng) for _ in range(20_000)]
    extra_x = np.array([window.width for window in drawn]) / width - 1
    extra_y = np.array([window.height for window in drawn]) / height - 1
    for extra in (extra_x, extra_y):
        assert extra.mean() == pytest.approx(0.30, abs=0.005)
        assert extra.max() < 0.60 + 3 / width  # floor, ceil and the inclusive far edge
        assert np.quantile(extra, 0.95) == pytest.approx(0.53, abs=0.01)
    assert abs(np.corrcoef(extra_x, extra_y)[0, 1]) < 0.03


def test_ungated_margins_are_independent_and_wider():
    rng = np.random.default_rng(0)
    drawn = [crops.train_window([0, 0, 9999, 9999], rng, gated=False) for _ in range(4000)]
    extra = np.array([window.width for window in drawn]) / 9999 - 1
    assert extra.mean() == pytest.approx(0.60, abs=0.02)
    assert 1.1 < extra.max() < 1.2 + 3 / 9999


@settings(max_examples=100, deadline=None)
@given(boxes(), st.integers(0, 99), st.booleans())
def test_every_window_covers_the_whole_box_mask(box, seed, gated):
    mask = crops.box_mask(box, H, W)
    for window in (
        crops.train_window(box, np.random.default_rng(seed), gated=gated),
        crops.test_window(box),
    ):
        assert window.height > 0
        assert window.width > 0
        rows, columns = slice(max(window.y0, 0), window.y1), slice(max(window.x0, 0), window.x1)
        assert mask[rows, columns].sum() == mask.sum()


def test_training_window_is_a_function_of_the_generator():
    box = [10.5, 20.25, 300.0, 180.0]
    first, second, other = (
        crops.train_window(box, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # 100 wide, 50 high: 15 and 7.5 px on each side, one more at the far ends, outwards
        ([100, 200, 200, 250], Window(192, 85, 259, 216)),
        # one pixel in the corner reaches outside the image on both near sides
        ([0, 0, 1, 1], Window(-1, -1, 3, 3)),
        # without any extent there is still a pixel to look at
        ([5, 5, 5, 5], Window(5, 5, 6, 6)),
    ],
)
def test_labelling_window_is_centred(box, expected):
    assert crops.test_window(box) == expected


def test_labelling_window_is_1_3_times_the_box():
    window = crops.test_window([0, 0, 10_000, 10_000])
    assert window.width == pytest.approx(13_000, abs=3)


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([2.9, 1.2, 4.1, 3.99], range(1, 4), range(2, 5)),  # truncated, both ends included
        ([0, 0, W, H], range(H), range(W)),  # the far edge itself is no pixel
        ([-9, -9, -3, -3], range(0), range(0)),  # outside
        ([3, 2, 3, 2], range(2, 3), range(3, 4)),  # no extent, one pixel
    ],
)
def test_box_mask(box, rows, columns):
    expected = np.zeros((H, W), dtype=np.uint8)
    for y in rows:
        for x in columns:
            expected[y, x] = 1
    mask = crops.box_mask(box, H, W)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([2, 1, 4, 3], range(1, 3), range(2, 4)),  # whole numbers: exactly w x h pixels
        ([2.9, 1.2, 4.1, 3.99], range(1, 4), range(2, 5)),  # every pixel touched
        ([0, 0, W, H], range(H), range(W)),
        ([-9, -9, -3, -3], range(0), range(0)),  # outside
        ([3, 2, 3, 2], range(2, 3), range(3, 4)),  # no extent, one pixel
    ],
)
def test_box_mask_without_the_far_pixel(box, rows, columns):
    expected = np.zeros((H, W), dtype=np.uint8)
    expected[np.ix_(rows, columns)] = 1
    assert np.array_equal(crops.box_mask(box, H, W, inclusive=False), expected)


@pytest.mark.parametrize(
    "box", [[0, 0, 1], [0, 0, np.nan, 1], [5, 0, 1, 1], [0, 5, 1, 1], [0, 0, np.inf, 1]]
)
def test_bad_boxes_are_refused(box):
    for use in (
        lambda: crops.box_mask(box, H, W),
        lambda: crops.test_window(box),
        lambda: crops.train_window(box, np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match="box must"):
            use()


def test_resize_image_is_pillows_bicubic():
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((6, 6), Image.Resampling.BICUBIC))
    assert np.array_equal(crops.resize_image(image, 6), expected)
    # antialiased: a fine checkerboard turns gray instead of aliasing to one of its colours
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert abs(crops.resize_image(board, 8).astype(int) - 127).max() < 20


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 24))
def test_resize_mask_takes_the_pixel_under_the_centre(height, width, size):
    mask = np.random.default_rng(height * 20 + width).integers(0, 2, (height, width))
    resized = crops.resize_mask(mask.astype(np.uint8), size)
    for i in range(size):
        for j in range(size):
            source = mask[(2 * i + 1) * height // (2 * size), (2 * j + 1) * width // (2 * size)]
            assert resized[i, j] == source
