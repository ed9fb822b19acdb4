"""Matrices of transforms, and boxes and masks through them, against pixel-wise twins."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from pais import view_ops
from pais.mapping import between_views, map_boxes, map_masks, matrix_of
from pais.views import GEOMETRIC_OPS, RandomGeometry

H, W = 60, 80


def geometric(name, seed, shear_about="corner", size=(H, W)):
    np.random.seed(seed)
    augmentation = RandomGeometry(shear_about=shear_about, names=[name])
    return augmentation.get_transform(np.zeros((*size, 3), np.uint8))


def view(seed, name=None, sides=(48, 80)):
    """Resize and flip of an H x W image, and perhaps a geometric operation."""
    image = np.zeros((H, W, 3), np.uint8)
    np.random.seed(seed)
    steps = [transforms.ResizeShortestEdge(sides, 2000, "range"), transforms.RandomFlip()]
    steps += [RandomGeometry(names=[name])] if name else []
    return transforms.apply_augmentations(steps, image)[1]


def as_size(transform):
    return transform.apply_image(np.zeros((H, W, 3), np.uint8)).shape[:2]


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (transforms.NoOpTransform(), np.eye(3)),
        (transforms.HFlipTransform(W), [[-1, 0, W], [0, 1, 0], [0, 0, 1]]),
        (transforms.VFlipTransform(H), [[1, 0, 0], [0, -1, H], [0, 0, 1]]),
        (transforms.ResizeTransform(H, W, 2 * H, W), [[1, 0, 0], [0, 2, 0], [0, 0, 1]]),
        (transforms.CropTransform(3, 5, 20, 20), [[1, 0, -3], [0, 1, -5], [0, 0, 1]]),
        (view_ops.AffineTransform(view_ops.shear(20, 5)), view_ops.shear(20, 5)),
        (view_ops.EraseTransform(np.zeros((0, 4)), 0), np.eye(3)),
        (view_ops.colour_transform("solarize", 1), np.eye(3)),
        # Left to right: first the flip, then the resize.
        (
            transforms.TransformList(
                [transforms.HFlipTransform(W), transforms.ResizeTransform(H, W, H, 2 * W)]
            ),
            [[-2, 0, 2 * W], [0, 1, 0], [0, 0, 1]],
        ),
        (transforms.TransformList([]), np.eye(3)),
    ],
)
def test_matrices_of_transforms(transform, expected):
    assert np.allclose(matrix_of(transform), expected, atol=1e-6)


def test_a_transform_that_is_not_affine_has_no_matrix():
    class Bent(transforms.Transform):
        def apply_image(self, img):
            return img

        def apply_coords(self, coords):
            return coords + 1e-4 * coords[:, :1] * coords[:, 1:]

    with pytest.raises(ValueError, match="not affine"):
        matrix_of(Bent())


@given(st.integers(0, 10**6), st.sampled_from(GEOMETRIC_OPS))
@settings(max_examples=40, deadline=None)
def test_the_map_is_that_of_the_transforms_themselves(seed, name):
    weak, strong = view(seed), view(seed + 1, name)
    points = np.random.default_rng(seed).uniform(-10, 90, (6, 2))
    there = weak.apply_coords(points.copy())
    mapped = between_views(weak, strong) @ np.c_[there, np.ones(6)].T
    assert np.allclose(mapped[:2].T, strong.apply_coords(points.copy()), atol=1e-6)
    back = between_views(strong, weak)
    assert np.allclose(back @ between_views(weak, strong), np.eye(3), atol=1e-6)


boxes = st.lists(st.floats(0, 80), min_size=4, max_size=4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]
)


@given(st.lists(boxes, max_size=4), st.integers(0, 10**6), st.sampled_from(GEOMETRIC_OPS))
@settings(max_examples=40, deadline=None)
def test_boxes_become_clipped_hulls_of_their_corners(listed, seed, name):
    matrix, size = between_views(view(seed), view(seed + 1, name)), (50, 70)
    given_boxes = torch.tensor(listed, dtype=torch.float32).reshape(-1, 4)
    mapped = map_boxes(given_boxes, torch.from_numpy(matrix), size)
    assert mapped.shape == given_boxes.shape
    assert mapped.dtype == torch.float32
    for box, result in zip(given_boxes.tolist(), mapped.tolist()):
        corners = [matrix @ [x, y, 1] for x, y in itertools.product(box[::2], box[1::2])]
        xs = [min(max(corner[0], 0), 70) for corner in corners]
        ys = [min(max(corner[1], 0), 50) for corner in corners]
        assert np.allclose(result, [min(xs), min(ys), max(xs), max(ys)], atol=1e-3)


def test_a_box_that_leaves_the_view_has_no_area():
    matrix = torch.from_numpy(view_ops.translation(100, 0))
    mapped = map_boxes(torch.tensor([[10.0, 10, 30, 30]]), matrix, (H, W))
    assert mapped.tolist() == [[80, 10, 80, 30]]


def naive_mask(mask, matrix, size):
    """Bilinear value at each target centre with zeros outside; the smallest distance to .5 too."""
    padded = np.pad(mask.astype(float), 1)
    back = np.linalg.inv(matrix)
    values = np.zeros(size)
    for row, column in np.ndindex(size):
        x, y, _ = back @ [column + 0.5, row + 0.5, 1]
        x, y = x + 0.5, y + 0.5
        if not (0 <= x < mask.shape[1] + 1 and 0 <= y < mask.shape[0] + 1):
            continue
        x0, y0 = int(x), int(y)
        part = padded[y0 : y0 + 2, x0 : x0 + 2]
        values[row, column] = [1 - y + y0, y - y0] @ part @ [1 - x + x0, x - x0]
    return values


@pytest.mark.parametrize("name", GEOMETRIC_OPS)
def test_masks_are_warped_bilinearly_and_halved(name):
    mask = np.random.default_rng(0).random((H, W)) > 0.5
    matrix, size = between_views(view(3), view(8, name)), (34, 45)
    values = naive_mask(mask, matrix, size)
    stack = torch.from_numpy(np.stack([mask, ~mask]))
    mapped = map_masks(stack, torch.from_numpy(matrix), size)
    assert mapped.shape == (2, *size)
    assert mapped.dtype == torch.bool
    sure = np.abs(values - 0.5) > 1e-3
    assert sure.mean() > 0.8
    assert np.array_equal(mapped[0].numpy()[sure], (values > 0.5)[sure])


def warped_whole(masks, matrix, size):
    """The slow form: every mask sampled as a whole at every target centre; float (N, h, w)."""
    back = np.linalg.inv(matrix)
    columns, rows = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    points = np.stack([columns, rows, np.ones(size)], axis=-1) @ back[:2].T
    grid = torch.from_numpy(2 * points / [masks.shape[2], masks.shape[1]] - 1).float()
    grid = grid.expand(len(masks), *grid.shape)
    values = F.grid_sample(masks[:, None].float(), grid, align_corners=False)
    return values[:, 0]


@given(st.integers(0, 10**6), st.sampled_from(GEOMETRIC_OPS))
@settings(max_examples=40, deadline=None)
def test_small_masks_are_warped_as_whole_ones(seed, name):
    """Near all borders and out of the view; one is empty, one a single pixel."""
    rng = np.random.default_rng(seed)
    weak = view(seed)
    height, width = as_size(weak)
    centres = rng.uniform(0, 1, (5, 2)) * [height, width]
    masks = [disc(y, x, r, (height, width)) for (y, x), r in zip(centres, (0, 0.8, 2, 5, 20))]
    matrix, size = between_views(weak, view(seed + 1, name)), tuple(rng.integers(20, 80, 2))
    stack = torch.from_numpy(np.stack(masks))
    values = warped_whole(stack, matrix, size)
    mapped = map_masks(stack, torch.from_numpy(matrix), tuple(map(int, size)))
    # Both round, at other places.
    sure = (values - 0.5).abs() > 1e-4
    assert torch.equal(mapped[sure], (values > 0.5)[sure])


def test_probabilities_are_warped_before_the_threshold():
    """Of .9 and .2 the mean is above one half, of a binary mask it would be at it."""
    soft = torch.tensor([[[0.9, 0.2]]])
    matrix = torch.from_numpy(view_ops.translation(-0.5, 0))
    assert map_masks(soft, matrix, (1, 1)).item()
    assert not map_masks(soft > 0.5, matrix, (1, 1)).item()


def test_any_number_of_masks():
    """None; and more than are warped at a time, each in its place."""
    eye = torch.eye(3)
    assert map_masks(torch.zeros(0, 5, 6), eye, (7, 8)).shape == (0, 7, 8)
    masks = torch.rand(70, 5, 6) > 0.5
    assert torch.equal(map_masks(masks, eye, (5, 6)), masks)


def disc(y, x, radius, size):
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


@given(st.integers(0, 10**6), st.sampled_from(GEOMETRIC_OPS))
@settings(max_examples=40, deadline=None)
def test_there_and_back_moves_a_mask_by_less_than_a_pixel(seed, name):
    """Inside of what both views show; a pixel of the coarser view. Half a pixel off in one of the
    two conventions would already shift the whole outline."""
    weak, strong = view(seed, sides=(60, 80)), view(seed + 1, name, sides=(60, 80))
    weak_size, strong_size = as_size(weak), as_size(strong)
    matrix = torch.from_numpy(between_views(weak, strong))
    rng = np.random.default_rng(seed)
    mask = disc(*rng.uniform(20, 40, 2), rng.uniform(6, 16), weak_size)
    there = map_masks(torch.from_numpy(mask)[None], matrix, strong_size)
    back = map_masks(there, torch.linalg.inv(matrix), weak_size)[0].numpy()
    # What no strong pixel's centre covers cannot come back.
    seen = map_masks(torch.ones(1, *strong_size), torch.linalg.inv(matrix), weak_size)[0].numpy()
    seen = distance_transform_edt(np.pad(seen, 1))[1:-1, 1:-1] > 1.5
    pixel = max(1.0, float(np.linalg.norm(np.linalg.inv(matrix.numpy()[:2, :2]), 2)))
    to_outline = distance_transform_edt(mask) + distance_transform_edt(~mask) - 0.5
    moved = (mask != back) & seen
    assert (to_outline[moved] < pixel).all()


@pytest.mark.parametrize("about", ["corner", "centre"])
@pytest.mark.parametrize("name", GEOMETRIC_OPS)
def test_a_pasted_square_is_where_its_mask_is(name, about):
    """In pixels of the views: the square is found again by its brightness."""
    ious = []
    for seed in range(10):
        change = geometric(name, seed, about, size=(120, 160))
        image = np.zeros((120, 160), np.uint8)
        image[30:80, 40:100] = 255
        pasted = torch.from_numpy(image == 255)[None]
        mapped = map_masks(pasted, torch.from_numpy(matrix_of(change)), (120, 160))[0].numpy()
        seen = change.apply_image(image) > 128  # the fill is 125
        ious.append((mapped & seen).sum() / (mapped | seen).sum())
        square = np.array([[40.0, 30, 100, 80]])
        hull = change.apply_box(square.copy())[0]
        box = map_boxes(torch.from_numpy(square), torch.from_numpy(matrix_of(change)), (120, 160))
        assert np.allclose(box[0], np.clip(hull, 0, [160, 120, 160, 120]))
        # A hull whose corners are cut off by the border is looser than what is seen.
        if np.array_equal(box[0], hull):
            x, y = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
            assert np.abs(hull - [x[0], y[0], x[-1] + 1, y[-1] + 1]).max() <= 1.5
    assert min(ious) > 0.95
