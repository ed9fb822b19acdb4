"""The strong view's operations against per-pixel twins, and the geometry of pixel centres."""

import math

import numpy as np
import pytest
from detectron2.data import transforms
from hypothesis import given, settings
from hypothesis import strategies as st

from pais import view_ops
from pais.view_ops import AffineTransform, EraseTransform, colour_transform

IMAGE = np.random.default_rng(0).integers(20, 230, (7, 9, 3), dtype=np.uint8)


def test_magnitudes_become_the_released_numbers():
    """PAIS: solarise at 25.6 m, factors .28 to 1.72, bits 4,4,3,3,2,2,2,1,1."""
    assert list(view_ops.MAGNITUDES) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    bits = [view_ops.posterize_bits(m) for m in view_ops.MAGNITUDES]
    assert bits == [4, 4, 3, 3, 2, 2, 2, 1, 1]
    factors = [view_ops.enhance_factor(m) for m in view_ops.MAGNITUDES]
    assert np.allclose(factors, np.linspace(0.28, 1.72, 9))
    thresholds = [view_ops.solarize_threshold(m) for m in view_ops.MAGNITUDES]
    assert np.allclose(thresholds, 256 * np.arange(1, 10) / 10)


def luma(pixel):
    return round(0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2])


def each_pixel(image, function):
    out = np.zeros(image.shape)
    for y, x, c in np.ndindex(image.shape):
        out[y, x, c] = function(image.astype(int), y, x, c)
    return out


def blended(degenerate):
    def twin(image, m):
        factor = 0.1 + 0.18 * m

        def value(a, y, x, c):
            worst = degenerate(a, y, x, c)
            return min(255, max(0, worst + factor * (a[y, x, c] - worst)))

        return each_pixel(image, value)

    return twin


def smoothed(a, y, x, c):
    if y in (0, a.shape[0] - 1) or x in (0, a.shape[1] - 1):
        return a[y, x, c]
    around = a[y - 1 : y + 2, x - 1 : x + 2, c].sum()
    return round((around + 4 * a[y, x, c]) / 13)


def mean_luma(a, y, x, c):
    return int(np.mean([luma(pixel) for pixel in a.reshape(-1, 3)]) + 0.5)


def stretched(a, y, x, c):
    low, high = a[..., c].min(), a[..., c].max()
    return int((a[y, x, c] - low) * 255 / (high - low))


def equalized(a, y, x, c):
    channel = a[..., c].ravel()
    step = int((channel < channel.max()).sum()) // 255
    # Fewer pixels than levels: nothing to spread.
    below = int((channel < a[y, x, c]).sum())
    return a[y, x, c] if step == 0 else min(255, (step // 2 + below) // step)


def coarse(level, m):
    step = 2 ** (8 - (4, 4, 3, 3, 2, 2, 2, 1, 1)[m - 1])
    return level // step * step


TWINS = {
    "identity": lambda image, m: image,
    "autocontrast": lambda image, m: each_pixel(image, stretched),
    "equalize": lambda image, m: each_pixel(image, equalized),
    "solarize": lambda image, m: each_pixel(
        image, lambda a, y, x, c: a[y, x, c] if a[y, x, c] < 25.6 * m else 255 - a[y, x, c]
    ),
    "colour": blended(lambda a, y, x, c: luma(a[y, x])),
    "contrast": blended(mean_luma),
    "brightness": blended(lambda a, y, x, c: 0),
    "sharpness": blended(smoothed),
    "posterize": lambda image, m: each_pixel(image, lambda a, y, x, c: coarse(a[y, x, c], m)),
}


def test_there_are_nine_colour_operations_and_each_has_a_twin():
    assert len(view_ops.COLOUR_OPS) == 9
    assert set(view_ops.COLOUR_OPS) == set(TWINS)


@pytest.mark.parametrize("magnitude", [1, 4, 5, 9])
@pytest.mark.parametrize("name", view_ops.COLOUR_OPS)
def test_colour_operations_are_their_twins(name, magnitude):
    """Within one level, which rounding may cost."""
    image = IMAGE
    if name == "equalize":
        # More pixels than levels, or nothing would happen; unevenly spread over the levels.
        dark = np.random.default_rng(1).integers(0, 40, (30, 20, 3), dtype=np.uint8)
        image = np.where(dark > 35, 5 * dark, dark)
    changed = colour_transform(name, magnitude).apply_image(image.copy())
    assert changed.dtype == np.uint8
    assert np.abs(changed - TWINS[name](image, magnitude)).max() <= 1


@pytest.mark.parametrize("name", sorted(set(view_ops.COLOUR_OPS) - {"equalize"}))
def test_all_but_the_identity_change_the_image(name):
    changed = colour_transform(name, 1).apply_image(IMAGE)
    assert np.array_equal(changed, IMAGE) == (name == "identity")


@pytest.mark.parametrize("name", view_ops.COLOUR_OPS)
def test_order_of_channels_does_not_matter(name):
    rgb = colour_transform(name, 2).apply_image(IMAGE)
    bgr = colour_transform(name, 2, "BGR").apply_image(np.ascontiguousarray(IMAGE[:, :, ::-1]))
    assert np.array_equal(bgr[:, :, ::-1], rgb)


def test_colour_operations_move_nothing():
    change = colour_transform("contrast", 3)
    assert change.apply_coords(np.array([[3.0, 4.0]])).tolist() == [[3.0, 4.0]]
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(change.apply_segmentation(labels), labels)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("contrast", 0), ValueError),  # magnitudes begin at 1
        (("contrast", 10), ValueError),  # and end at 9
        (("contrast", 1, "L"), ValueError),  # no colours
        (("hue", 1), KeyError),  # PAIS has no such operation
    ],
)
def test_unknown_colour_operations_are_refused(arguments, error):
    with pytest.raises(error):
        colour_transform(*arguments)


def test_shift_by_whole_pixels_copies_and_fills():
    moved = AffineTransform(view_ops.translation(2, -1), fill=125).apply_image(IMAGE)
    assert np.array_equal(moved[:-1, 2:], IMAGE[1:, :-2])
    assert (moved[-1] == 125).all()
    assert (moved[:, :2] == 125).all()


def test_a_quarter_turn_is_about_the_centre():
    """Half a pixel off in the centre would shift the square by one. Pillow cuts off fractions,
    so that a level may be lost."""
    square = IMAGE[:, :7]
    turn = AffineTransform(view_ops.about(view_ops.rotation(90), 3.5, 3.5))
    turned = turn.apply_image(square).astype(int)
    assert np.abs(turned - np.rot90(square, -1)).max() <= 1
    # The first pixel's centre goes to that of the last column.
    assert np.allclose(turn.apply_coords(np.array([[0.5, 0.5]])), [[6.5, 0.5]])
    labels = square[..., 0]
    assert np.array_equal(turn.apply_segmentation(labels), np.rot90(labels, -1))


def test_shear_is_along_x_then_y_by_the_tanh_of_the_angle():
    along_x, along_y = math.tanh(math.radians(30)), math.tanh(math.radians(-10))
    x, y = view_ops.shear(30, -10)[:2, :2] @ [3.0, 5.0]
    assert x == pytest.approx(3 + 5 * along_x)
    assert y == pytest.approx(5 + along_y * (3 + 5 * along_x))


matrices = st.tuples(
    st.floats(-30, 30), st.floats(-30, 30), st.floats(-3, 3), st.floats(-3, 3)
).map(lambda v: view_ops.translation(*v[2:]) @ view_ops.shear(*v[:2]) @ view_ops.rotation(v[1]))


def bilinear(image, x, y):
    """Value at a continuous point inside of the image; clamped half a pixel from its edge."""
    height, width = image.shape
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    x0, y0 = int(x), int(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    top = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
    below = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
    return top * (1 - y + y0) + below * (y - y0)


@given(matrices)
@settings(max_examples=25, deadline=None)
def test_affine_images_are_sampled_at_the_centres_of_pixels(matrix):
    channel = IMAGE[..., 0]
    moved = AffineTransform(matrix, fill=125).apply_image(channel)
    back = np.linalg.inv(matrix)
    for row, column in np.ndindex(channel.shape):
        x, y, _ = back @ [column + 0.5, row + 0.5, 1]
        # On the very edge rounding decides.
        if min(abs(x), abs(x - 9), abs(y), abs(y - 7)) < 1e-6:
            continue
        inside = 0 < x < 9 and 0 < y < 7
        value = bilinear(channel.astype(float), x, y) if inside else 125
        assert abs(moved[row, column] - value) <= 1


@given(matrices)
@settings(max_examples=25, deadline=None)
def test_the_inverse_brings_points_back(matrix):
    there = AffineTransform(matrix)
    points = np.array([[0.0, 0.0], [9.0, 7.0], [2.5, -3.0]])
    assert np.allclose(there.inverse().apply_coords(there.apply_coords(points)), points)


def test_affine_transform_refuses_what_pillow_would_misread():
    with pytest.raises(ValueError, match="uint8"):
        AffineTransform(np.eye(3)).apply_image(np.zeros((4, 4, 3), np.float32))


def test_erasing_paints_pixels_alone():
    patches = np.array([[1, 2, 4, 5], [8, 0, 9, 7]])
    change = EraseTransform(patches, 125)
    before = IMAGE.copy()
    erased = change.apply_image(IMAGE)
    assert (erased[2:5, 1:4] == 125).all()
    assert (erased[:, 8] == 125).all()
    assert np.array_equal(erased[:, 4:8], IMAGE[:, 4:8])
    assert np.array_equal(IMAGE, before)
    mask = np.ones((7, 9), bool)
    assert change.apply_segmentation(mask).all()
    assert change.apply_box(np.array([[0, 0, 3, 4]])).tolist() == [[0, 0, 3, 4]]


def test_no_patch_erases_nothing():
    assert np.array_equal(EraseTransform(np.zeros((0, 4)), 125).apply_image(IMAGE), IMAGE)


def test_all_are_transforms_of_detectron2():
    everything = [AffineTransform(np.eye(3)), EraseTransform(np.zeros((0, 4)), 0)]
    everything += [colour_transform(name, 1) for name in view_ops.COLOUR_OPS]
    assert all(isinstance(one, transforms.Transform) for one in everything)
