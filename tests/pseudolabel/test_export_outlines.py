"""Outlines: four independent ways to fill them give back the mask, for every mask."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw
from scipy import ndimage

from pseudolabel.export.outlines import (
    INSET,
    flatten_ring,
    mask_to_rings,
    segmentation_patch,
    segmentation_to_rings,
)
from pseudolabel.export.yolo import join_rings
from pseudolabel.masks import SegmentationError, decode_segmentation, encode_rle

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12))


def drawing(text):
    return np.array([[c == "#" for c in line] for line in text.split()])


CASES = {
    "one pixel": "#",
    "full image": "### ###",
    "empty": "... ...",
    "one row": ".###.",
    "diagonal touch": "#. .#",
    "other diagonal": ".#. #.. ..#",
    "hole": "### #.# ###",
    "hole that touches the outside at a corner": "##. #.# ###",
    "two holes that touch at a corner": "##### #.### ##.## #####",
    "holes side by side": "##### #.#.# #####",
    "hole below a hole": "### #.# ### #.# ###",
    "lower hole under the middle of a wide one": "##### #...# ##### ##.## #####",
    "a part in a hole, with a hole": "####### #.....# #.###.# #.#.#.# #.###.# #.....# #######",
    "two parts, one with a hole": "#.### #.#.# #.###",
    "comb": "#.#.# #.#.# #####",
    "chequers": "#.#.# .#.#. #.#.#",
}


def by_coco(rings, shape):
    if not rings:
        return np.zeros(shape, dtype=bool)
    return decode_segmentation([flatten_ring(ring) for ring in rings], *shape)


def by_pixel_centres(rings, shape):
    """Even-odd for every pixel centre: edges to the left of it that cross its row."""
    inside = np.zeros(shape, dtype=bool)
    for y, x in np.ndindex(shape):
        for ring in rings:
            crossed = 0
            for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1]):
                if (y0 > y + 0.5) != (y1 > y + 0.5):
                    crossed += x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0) < x + 0.5
            inside[y, x] |= crossed % 2 == 1
    return inside


def by_opencv(rings, shape):
    import cv2

    canvas = np.zeros(shape, dtype=np.uint8)
    for ring in rings:
        cv2.fillPoly(canvas, [np.array(ring).astype(np.int32)], 1)
    return canvas != 0


def by_pillow(rings, shape):
    image = Image.new("1", shape[::-1])
    for ring in rings:
        ImageDraw.Draw(image).polygon([(int(x), int(y)) for x, y in ring], fill=1, outline=1)
    return np.array(image)


def enclosed_area(ring):
    x, y = np.array(ring).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def check(mask):
    parts, number = ndimage.label(mask)
    rings = mask_to_rings(mask)
    inset = mask_to_rings(mask, INSET)
    for read in (by_coco, by_pixel_centres):
        np.testing.assert_array_equal(read(rings, mask.shape), mask)
    for read in (by_coco, by_pixel_centres, by_opencv, by_pillow):
        np.testing.assert_array_equal(read(inset, mask.shape), mask)
    # One ring per part, clockwise, its area the pixels of the part, its edges along the axes.
    assert len(rings) == len(inset) == number
    areas = sorted(np.bincount(parts.ravel(), minlength=number + 1)[1:].tolist())
    assert sorted(map(enclosed_area, rings)) == areas
    for ring in rings + inset:
        steps = np.array(ring) - np.roll(ring, 1, axis=0)
        assert ((steps != 0).sum(axis=1) == 1).all()
    # Joined to one ring, as YOLO has it.
    if number:
        joined = [join_rings(inset)]
        for read in (by_coco, by_pixel_centres):
            np.testing.assert_array_equal(read(joined, mask.shape), mask)


@pytest.mark.parametrize("name", CASES)
def test_shapes_that_are_easily_lost(name):
    check(drawing(CASES[name]))


@settings(max_examples=150, deadline=None)
@given(masks)
def test_random_masks(mask):
    check(mask)


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(1, 3))
def test_masks_full_of_holes(mask, scale):
    """Dense masks, where every other hole hangs on a hole, and smooth ones."""
    dense = mask | np.roll(mask, 1, axis=0) | (np.indices(mask.shape).sum(axis=0) % 3 > 0)
    check(np.kron(dense, np.ones((scale, scale), dtype=bool)))


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 3), st.integers(0, 3))
def test_only_the_tight_box_is_drawn(mask, top, left):
    """A code gives the same rings as its whole mask."""
    whole = np.pad(mask, ((top, 1), (left, 2)))
    code = encode_rle(whole)
    assert segmentation_to_rings(code, *whole.shape) == mask_to_rings(whole)
    patch, x0, y0 = segmentation_patch(code, *whole.shape)
    back = np.zeros_like(whole)
    back[y0 : y0 + patch.shape[0], x0 : x0 + patch.shape[1]] = patch
    np.testing.assert_array_equal(back, whole)


def test_a_square_is_four_corners_from_the_upper_left_clockwise():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 2:4] = True
    ring = [(2, 1), (4, 1), (4, 3), (2, 3)]
    assert mask_to_rings(mask) == [ring]
    assert flatten_ring(ring) == [2, 1, 4, 1, 4, 3, 2, 3]
    assert mask_to_rings(mask, 0.25)[0][:2] == [(2.25, 1.25), (3.75, 1.25)]


def test_polygons_of_people_and_codes_of_another_size():
    """Any COCO segmentation can be outlined anew; one of another image cannot."""
    polygon = [[1.2, 1.1, 6.7, 1.4, 4.1, 5.2]]
    expected = decode_segmentation(polygon, 7, 8)
    assert expected.any()
    np.testing.assert_array_equal(by_coco(segmentation_to_rings(polygon, 7, 8), (7, 8)), expected)
    with pytest.raises(SegmentationError, match="the image is"):
        segmentation_to_rings(encode_rle(expected), 8, 7)


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("coco_dev/annotations/instances_val.json", 6),  # polygons, several parts, crowds
        ("lvis_dev/annotations/lvis_v0.5_val_subset.json", 12),
        ("dsb2018_dev/annotations/instances_val.json", 12),  # run lengths of nuclei
    ],
)
def test_real_masks(data_dir, file, step):
    """Human masks, outlined anew: the same pixels."""
    data = json.loads((data_dir / file).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    assert len(data["annotations"]) > 600
    for annotation in data["annotations"][::step]:
        size = sizes[annotation["image_id"]]
        mask = decode_segmentation(annotation["segmentation"], *size)
        again = by_coco(segmentation_to_rings(annotation["segmentation"], *size), size)
        np.testing.assert_array_equal(again, mask, err_msg=str(annotation["id"]))
