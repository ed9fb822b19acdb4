"""Mask geometry against naive twins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_rle

from pseudolabel import masks

small_masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)
coordinate = st.floats(-12, 20, allow_nan=False) | st.integers(-12, 20).map(float)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


def naive_runs(mask):
    """Uncompressed run lengths down the columns, zeros first, counted one pixel at a time."""
    runs, value, length = [], False, 0
    for column in mask.T.tolist():
        for pixel in column:
            if pixel != value:
                runs.append(length)
                value, length = pixel, 0
            length += 1
    return [*runs, length]


@given(small_masks)
def test_rle_round_trip_and_naive_twin(mask):
    code = masks.encode_rle(mask)
    assert code["size"] == list(mask.shape)
    assert isinstance(code["counts"], str)
    runs = {"size": list(mask.shape), "counts": naive_runs(mask)}
    for form in (code, {**code, "counts": code["counts"].encode()}, runs):
        assert (masks.decode_segmentation(form, *mask.shape) == mask).all()
    assert masks._runs_of(code["counts"].encode()) == runs["counts"]


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_run_reader_takes_long_runs(seed):
    # Runs of several digits, and differences of both signs.
    lengths = np.random.default_rng(seed).integers(1, 40_000, 12)
    flat = np.repeat(np.arange(lengths.size) % 2, lengths).astype(bool)
    code = coco_rle.encode(np.asfortranarray(flat[:, None], dtype=np.uint8))
    assert masks._runs_of(code["counts"]) == lengths.tolist()


@given(small_masks, st.tuples(*[st.integers(0, 3)] * 4))
def test_patch_code_equals_code_of_canvas(patch, margins):
    top, bottom, left, right = margins
    canvas = np.pad(patch, ((top, bottom), (left, right)))
    assert masks.rle_from_patch(patch, top, left, *canvas.shape) == masks.encode_rle(canvas)


def test_patch_outside_the_image():
    for y0, x0 in ((-1, 0), (0, 3), (3, 0)):
        with pytest.raises(ValueError, match="leaves the 4x4 image"):
            masks.rle_from_patch(np.ones((2, 2)), y0, x0, 4, 4)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_patch_without_pixels(shape):
    code = masks.rle_from_patch(np.zeros(shape), 1, 1, 5, 7)
    assert code == masks.encode_rle(np.zeros((5, 7)))


def test_polygons():
    square = [1, 1, 4, 1, 4, 3, 1, 3]
    one = masks.decode_segmentation([square], 6, 8)
    assert one.dtype == bool
    assert one.sum() == 6
    assert one[1:3, 1:4].all()
    # Several parts are united.
    two = masks.decode_segmentation([square, [5, 4, 8, 4, 8, 6, 5, 6]], 6, 8)
    assert two.sum() == 12


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "no polygon"),
        ([[0, 0, 4, 4]], "three finite"),  # four numbers: the library would take them for a box
        ([[0, 0, 4, 4, 2]], "three finite"),  # odd
        ([[0, 0, 4, 4, 2, float("nan")]], "three finite"),
        ("abc", "got str"),
        (None, "got NoneType"),
        ({"size": [2, 2]}, "lacks"),
        ({"size": [2, 3], "counts": [6]}, "the image is"),  # another image's
        ({"size": [2, 2], "counts": [3]}, "covers 3 pixels"),
        ({"size": [2, 2], "counts": [5]}, "covers 5 pixels"),
        ({"size": [2, 2], "counts": [-1, 5]}, "negative"),
        ({"size": [2, 2], "counts": "3"}, "covers 3 pixels"),
        ({"size": [2, 2], "counts": "\u007f"}, "no digit"),
        ({"size": [2, 2], "counts": "T"}, "breaks off"),
        ({"size": [2, 2], "counts": "O4"}, "negative"),
        ({"size": [2, 2], "counts": "PPPPPP0"}, "too many digits"),  # 0, padded: C shifts too far
        ({"size": [10**5, 10**5], "counts": [10**10]}, "is for a mask of size"),  # a bomb
        ({"size": [2, 2], "counts": "é"}, "no digit"),
        ({"size": [2, 2], "counts": [1.5, 2.5]}, "malformed"),
        ({"size": ["2", 2], "counts": [4]}, "malformed"),
        ([["0", "0", "4", "0", "4", "4"]], "three finite"),  # text that looks like numbers
        ([[0, 0, 4, 0, 4, True]], "three finite"),
        ([[[0, 0], [4, 0], [4, 4]]], "three finite"),  # nested
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "far outside"),  # the library would need gigabytes
    ],
)
def test_bad_segmentation(segmentation, message):
    with pytest.raises(ValueError, match=message):
        masks.decode_segmentation(segmentation, 2, 2)


def test_a_mask_larger_than_any_image_is_refused():
    with pytest.raises(masks.SegmentationError, match="too large") as error:
        masks.decode_segmentation([[0, 0, 4, 0, 4, 4]], 10**5, 10**5)
    assert error.value.kind == "rle_huge"


def test_the_longest_run_is_read():
    side = 13_377  # squared, the most that a mask may have
    size = {"size": [side, side]}
    for runs in ([side * side], [0, side * side], [5, 1, 2, side * side - 9, 1]):
        code = coco_rle.frPyObjects({**size, "counts": runs}, side, side)
        assert masks._runs_of(code["counts"]) == runs


def test_encode_wants_two_dimensions():
    with pytest.raises(ValueError, match="two dimensions"):
        masks.encode_rle(np.zeros((2, 2, 1)))


@given(small_masks, st.integers(0, 2**32 - 1))
def test_iou(a, seed):
    b = np.random.default_rng(seed).random(a.shape) < 0.5
    pairs = list(zip(a.ravel().tolist(), b.ravel().tolist()))
    union = sum(p or q for p, q in pairs)
    naive = sum(p and q for p, q in pairs) / union if union else 0.0
    assert masks.mask_iou(a, b) == masks.mask_iou(b, a) == naive
    assert masks.mask_iou(a, a) == float(a.any())


def test_iou_shapes():
    with pytest.raises(ValueError, match="shape"):
        masks.mask_iou(np.zeros((2, 2)), np.zeros((2, 3)))


def test_size_bins():
    # Half-open: each bound belongs to the larger bin.
    areas = [0, 1023, 1023.99, 1024, 9215.5, 9216, 1e6]
    expected = [0, 0, 0, 1, 1, 2, 2]
    assert [masks.size_bin(a) for a in areas] == [masks.SIZE_BINS[k] for k in expected]
    assert masks.size_bin_index(np.array(areas)).tolist() == expected
    assert masks.size_bin_index(torch.tensor(areas)).tolist() == expected


def test_xywh_to_xyxy():
    assert masks.xywh_to_xyxy([1, 2, 3, 4]).tolist() == [1, 2, 4, 6]
    assert masks.xywh_to_xyxy(np.zeros((0, 4))).shape == (0, 4)
    assert masks.xywh_to_xyxy([[0, 0, 1, 1], [5, 5, 2, 0]]).tolist() == [[0, 0, 1, 1], [5, 5, 7, 5]]


@given(boxes, st.integers(1, 9), st.integers(1, 9))
def test_box_pixels_against_naive_twins(box, height, width):
    x0, y0, x1, y1 = box
    rows, cols = masks.box_to_slices(box, height, width)
    touched = np.zeros((height, width), dtype=bool)
    touched[rows, cols] = True
    filled = masks.filled_box_mask(box, height, width)
    meets = x1 >= 0 and y1 >= 0 and x0 <= width and y0 <= height
    assert masks.meets_image(box, height, width) == meets
    assert touched.any() == filled.any() == meets
    for y in range(height):
        for x in range(width):
            overlap = min(x1, x + 1) - max(x0, x), min(y1, y + 1) - max(y0, y)
            if min(overlap) > 1e-12:
                assert touched[y, x]
            elif max(x1 - x0, y1 - y0) > 0 and min(overlap) < 0:
                assert not touched[y, x]
            if x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1:
                assert filled[y, x]
    # Pixels beyond those whose centre is inside appear only where an axis holds no centre.
    holds = [
        sum(a <= k + 0.5 < b for k in range(n)) for a, b, n in ((x0, x1, width), (y0, y1, height))
    ]
    if meets:
        assert filled.sum() == max(holds[0], 1) * max(holds[1], 1)
    assert not (filled & ~touched).any()


@given(boxes)
def test_clipped_box_lies_in_the_image(box):
    clipped = masks.clip_box(box, 6, 9)
    assert (clipped >= 0).all()
    assert (clipped <= [9, 6, 9, 6]).all()
    if box[0] >= 0 and box[1] >= 0 and box[2] <= 9 and box[3] <= 6:
        assert clipped.tolist() == list(box)


def test_box_of_nan_meets_nothing():
    assert not masks.meets_image([0, 0, float("nan"), 3], 4, 4)
    assert not masks.filled_box_mask([0, 0, float("nan"), 3], 4, 4).any()
