"""Crops by category and draws of sizes, against what upstream drew with equal seeds."""

import detectron2.data.transforms as T
import numpy as np
import pytest

IMAGE = np.zeros((40, 50, 3), np.uint8)
HALVES = np.zeros((40, 50), np.uint8)
HALVES[:, 25:] = 1
HALVES[:3] = 255


@pytest.mark.parametrize(
    ("share", "ignored", "labels", "seed", "corner"),
    [
        # any crop will do
        (1.0, None, HALVES, 0, (15, 12)),
        (0.75, 255, HALVES, 1, (11, 5)),
        # the first one is refused: one class has more than 55 %
        (0.55, None, HALVES, 1, (15, 5)),
        # nothing will do, the tenth is taken
        (0.01, 255, HALVES, 0, (24, 14)),
        (0.01, 255, HALVES, 2, (3, 7)),
        # one class alone is never enough, nor is none
        (0.5, None, np.zeros_like(HALVES), 0, (24, 14)),
        (0.5, 0, np.zeros_like(HALVES), 0, (24, 14)),
    ],
)
def test_category_crop_equals_upstream(share, ignored, labels, seed, corner):
    np.random.seed(seed)
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20), share, ignored)
    tfm = crop.get_transform(IMAGE, labels)
    assert (tfm.x0, tfm.y0, tfm.w, tfm.h) == (*corner, 20, 20)


def test_category_crop_prints_its_arguments():
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20), 0.5, 255)
    assert str(crop) == (
        "RandomCrop_CategoryAreaConstraint(crop_type='absolute', crop_size=(20, 20), "
        "single_category_max_area=0.5, ignored_category=255)"
    )


@pytest.mark.parametrize(
    ("seed", "size"), [(0, (20, 30)), (1, (40, 10)), (2, (20, 30)), (3, (20, 30))]
)
def test_random_resize_equals_upstream(seed, size):
    np.random.seed(seed)
    tfm = T.RandomResize([(20, 30), (40, 10)]).get_transform(IMAGE)
    assert (tfm.h, tfm.w, tfm.new_h, tfm.new_w) == (40, 50, *size)
    assert tfm.apply_image(IMAGE).shape == (*size, 3)
