"""Transforms and augmentations."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps


def _image(*shape, dtype=np.uint8):
    return (np.random.RandomState(0).random_sample(shape) * 255).astype(dtype)


def test_shortest_edge_sizes_equal_upstream(parts):
    augmentation = T.ResizeShortestEdge([128], 200, "choice")
    for size, expected in parts["resize_shortest_edge_128_200"].items():
        height, width = map(int, size.split("x"))
        transform = augmentation.get_transform(np.zeros((height, width, 3), "uint8"))
        assert [transform.new_h, transform.new_w] == expected, size


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1000), st.integers(1, 2000))
def test_shortest_edge_properties(height, width, length, limit):
    new_h, new_w = T.ResizeShortestEdge.get_output_shape(height, width, length, limit)
    assert max(new_h, new_w) <= max(limit, length)
    if max(height, width) / min(height, width) * length <= limit:
        assert min(new_h, new_w) == length  # the limit did not matter
    # The aspect ratio is kept up to rounding.
    assert abs(new_h * width - new_w * height) <= 0.5 * (width + height) + 1e-6


# (short edges, style, allowed values)
STYLES = [((3, 6), "range", {3, 4, 5, 6}), ((3, 6), "choice", {3, 6}), (4, "range", {4})]


@pytest.mark.parametrize(("lengths", "style", "allowed"), STYLES)
def test_shortest_edge_draws(lengths, style, allowed):
    augmentation = T.ResizeShortestEdge(lengths, 100, style)
    drawn = {augmentation.get_transform(np.zeros((8, 9))).new_h for _ in range(60)}
    assert drawn == allowed


def test_shortest_edge_zero_means_no_change():
    transform = T.ResizeShortestEdge([0], 100, "choice").get_transform(np.zeros((8, 9)))
    assert isinstance(transform, T.NoOpTransform)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("trailing", [(), (1,), (3,)])
def test_resize_keeps_channels_and_type(trailing, dtype):
    image = _image(10, 20, *trailing, dtype=dtype)
    transform = T.ResizeTransform(10, 20, 30, 40)
    resized = transform.apply_image(image)
    assert resized.shape == (30, 40, *trailing)
    assert resized.dtype == dtype
    assert resized.flags.writeable
    flipped = transform.apply_image(image[:, ::-1])  # negative strides
    assert np.allclose(flipped, resized[:, ::-1], atol=1)


def test_resize_agrees_with_pil_and_itself():
    image = _image(16, 12, 3)
    expected = np.asarray(Image.fromarray(image).resize((30, 40), Image.Resampling.BILINEAR))
    transform = T.ResizeTransform(16, 12, 40, 30)
    assert np.array_equal(transform.apply_image(image), expected)
    # Enlarging is interpolation in both libraries.
    assert np.allclose(transform.apply_image(image.astype("float32")), expected, atol=1.01)
    points = np.array([[3.0, 4.0], [12.0, 16.0]])
    moved = transform.apply_coords(points.copy())
    assert moved.tolist() == [[7.5, 10.0], [30.0, 40.0]]
    assert np.allclose(transform.inverse().apply_coords(moved), points)


def test_segmentation_is_resized_without_new_labels():
    labels = np.array([[0, 7], [9, 200]], dtype=np.uint8)
    resized = T.ResizeTransform(2, 2, 5, 6).apply_segmentation(labels)
    assert set(np.unique(resized)) == {0, 7, 9, 200}


def test_resize_checks_the_image():
    with pytest.raises((ValueError, AssertionError), match="10 x 20"):
        T.ResizeTransform(10, 20, 3, 3).apply_image(_image(11, 20))
    with pytest.raises(ValueError, match="LANCZOS"):
        T.ResizeTransform(4, 4, 3, 3, Image.Resampling.LANCZOS).apply_image(np.zeros((4, 4)))


@pytest.mark.parametrize("trailing", [(), (1,), (3,)])
def test_extent(trailing):
    image = _image(20, 20, *trailing)
    transform = T.ExtentTransform((5, 5, 15, 10), (5, 10))
    # Same scale: plain cropping.
    assert np.array_equal(transform.apply_image(image), image[5:10, 5:15])
    doubled = T.ExtentTransform((5, 5, 15, 10), (10, 20))
    assert doubled.apply_image(image).shape == (10, 20, *trailing)
    assert doubled.apply_coords(np.array([[6.0, 7.0]])).tolist() == [[2.0, 4.0]]
    # Outside there is 0: upstream takes `fill`, and does not use it.
    outside = T.ExtentTransform((-5, 0, 5, 5), (5, 10), fill=9).apply_image(image)
    assert (outside[:, :5] == 0).all()
    assert np.array_equal(outside[:, 5:], image[:5, :5])


# Types that PIL holds as one channel, and what becomes of them.
EXTENT_TYPES = [("bool", "bool"), ("int32", "int32"), ("float64", "float32")]


@pytest.mark.parametrize(("given_type", "expected_type"), EXTENT_TYPES)
def test_extent_of_other_types(given_type, expected_type):
    image = (_image(20, 20) // 16 % 2).astype(given_type)
    cut = T.ExtentTransform((5, 5, 15, 10), (5, 10)).apply_image(image)
    assert cut.dtype == expected_type
    assert np.array_equal(cut, image[5:10, 5:15])


# Floats of several channels, 64-bit integers; PIL holds uint16, but interpolates it wrongly.
REFUSED = [((20, 20, 3), "float32"), ((20, 20), "int64"), ((20, 20), "uint16")]


@pytest.mark.parametrize(("shape", "dtype"), REFUSED)
def test_extent_refuses_what_pil_cannot_cut_out(shape, dtype):
    with pytest.raises(TypeError, match=r"data type|uint16"):
        T.ExtentTransform((5, 5, 15, 10), (5, 10)).apply_image(_image(*shape, dtype=dtype))


def test_extent_of_labels_invents_none():
    labels = np.repeat([0, 40_000], 10)[None].repeat(20, 0).astype("uint16")
    enlarged = T.ExtentTransform((1, 1, 18, 18), (40, 41)).apply_segmentation(labels)
    assert set(np.unique(enlarged)) == {0, 40_000}


def test_color_transforms():
    image = _image(5, 6, 3)
    assert np.array_equal(T.ColorTransform(lambda x: 255 - x).apply_image(image), 255 - image)
    solarized = T.PILColorTransform(lambda x: ImageOps.solarize(x, 100)).apply_image(image)
    assert np.array_equal(solarized, ImageOps.solarize(Image.fromarray(image), 100))
    box = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert np.array_equal(T.ColorTransform(lambda x: x).apply_box(box), box)


def test_flip():
    image = _image(4, 6)
    horizontal = T.RandomFlip(1.0).get_transform(image)
    assert np.array_equal(horizontal.apply_image(image), image[:, ::-1])
    vertical = T.RandomFlip(1.0, horizontal=False, vertical=True).get_transform(image)
    assert np.array_equal(vertical.apply_image(image), image[::-1])
    assert isinstance(T.RandomFlip(0.0).get_transform(image), T.NoOpTransform)
    for both in (True, False):
        with pytest.raises(ValueError, match="one of"):
            T.RandomFlip(horizontal=both, vertical=both)


# (type, size, allowed range of h, of w) for an image of 20 x 30
CROPS = [
    ("relative", (0.5, 0.2), (10, 10), (6, 6)),
    ("relative_range", (0.5, 0.2), (10, 20), (6, 30)),
    ("absolute", (7, 50), (7, 7), (30, 30)),
    ("absolute_range", (7, 25), (7, 20), (7, 25)),
]


@pytest.mark.parametrize(("kind", "size", "heights", "widths"), CROPS)
def test_random_crop(kind, size, heights, widths):
    image = _image(20, 30, 3)
    for _ in range(30):
        transform = T.RandomCrop(kind, size).get_transform(image)
        height, width = transform.apply_image(image).shape[:2]
        assert heights[0] <= height <= heights[1]
        assert widths[0] <= width <= widths[1]


def test_random_crop_refuses_unknown_types():
    with pytest.raises((ValueError, AssertionError), match="crop_type"):
        T.RandomCrop("round", (1, 1))


# image sizes around a target of 10 x 12: larger, smaller, mixed
@pytest.mark.parametrize("size", [(20, 30), (5, 6), (20, 6), (10, 12)])
def test_fixed_size_crop_pads(size):
    image = np.ones(size, np.uint8)
    transform = T.FixedSizeCrop((10, 12), pad_value=3, seg_pad_value=255).get_transform(image)
    result = transform.apply_image(image)
    assert result.shape == (10, 12)
    kept = min(10, size[0]), min(12, size[1])
    assert (result[: kept[0], : kept[1]] == 1).all()
    assert (result == 3).sum() == 120 - kept[0] * kept[1]
    assert (transform.apply_segmentation(image) == 255).sum() == (result == 3).sum()
    no_pad = T.FixedSizeCrop((10, 12), pad=False).get_transform(image)
    assert no_pad.apply_image(image).shape == kept


def test_resize_scale_fits_into_the_scaled_target():
    transform = T.ResizeScale(0.5, 0.5, 40, 80).get_transform(_image(10, 10))
    assert (transform.new_h, transform.new_w) == (20, 20)


def test_random_extent_without_randomness_is_the_image():
    image = _image(8, 9, 3)
    transform = T.RandomExtent((1.0, 1.0), (0.0, 0.0)).get_transform(image)
    assert np.array_equal(transform.apply_image(image), image)


def test_intensity():
    image = np.full((2, 2, 3), 100.0, np.float32)
    image[0, 0] = 20.0
    assert np.allclose(_apply(T.RandomBrightness(0.5, 0.5), image), image * 0.5)
    assert np.allclose(_apply(T.RandomContrast(0.0, 0.0), image), 80.0)  # the mean
    colourful = image * np.array([1.0, 0.5, 0.0])
    grey = _apply(T.RandomSaturation(0.0, 0.0), colourful.astype("float32"))
    assert np.allclose(grey[1, 1], 100 * 0.299 + 50 * 0.587)
    assert np.allclose(_apply(T.RandomLighting(0.0), image), image)
    shifted = _apply(T.RandomLighting(5.0), image) - image
    assert np.allclose(shifted, shifted[0, 0])  # one offset for the whole image
    for augmentation in (T.RandomSaturation(1, 1), T.RandomLighting(1)):
        with pytest.raises((ValueError, AssertionError)):
            _apply(augmentation, image[:, :, 0])


def _apply(augmentation, image):
    return augmentation.get_transform(image).apply_image(image)


def test_random_apply():
    image = _image(4, 6)
    always, never = T.RandomApply(T.RandomFlip(1.0), 1.0), T.RandomApply(T.HFlipTransform(6), 0.0)
    assert isinstance(always.get_transform(image), T.HFlipTransform)
    assert isinstance(never.get_transform(image), T.NoOpTransform)
    inputs = T.AugInput(image)
    assert isinstance(always(inputs), T.HFlipTransform)
    assert np.array_equal(inputs.image, image[:, ::-1])
    for prob in (-0.1, 1.1):
        with pytest.raises(AssertionError):
            T.RandomApply(T.NoOpTransform(), prob)


def test_everything_in_the_input_is_transformed():
    inputs = T.AugInput(
        _image(4, 6, 3), boxes=np.array([[0.0, 0.0, 2.0, 4.0]]), sem_seg=_image(4, 6)
    )
    labels = inputs.sem_seg
    augmentations = T.AugmentationList([T.RandomFlip(1.0), T.AugmentationList([T.Resize((8, 6))])])
    transforms = augmentations(inputs)
    assert inputs.image.shape == (8, 6, 3)
    assert inputs.boxes.tolist() == [[4.0, 0.0, 6.0, 8.0]]
    assert np.array_equal(inputs.sem_seg, labels[:, ::-1].repeat(2, axis=0))
    assert transforms.apply_box(np.array([[0.0, 0.0, 2.0, 4.0]])).tolist() == [[4, 0, 6, 8]]
    image, _ = T.apply_augmentations([T.Resize(5)], _image(4, 6))
    assert image.shape == (5, 5)


class _ByName(T.Augmentation):
    def get_transform(self, sem_seg, image):
        assert sem_seg.max() == 9
        assert image.ndim == 3
        return T.HFlipTransform(image.shape[1])


class _Missing(T.Augmentation):
    def get_transform(self, image, depth):
        return T.NoOpTransform()


class _Variadic(T.Augmentation):
    def get_transform(self, image, *rest):
        return T.NoOpTransform()


class _NoTransform(T.Augmentation):
    def get_transform(self, image):
        return image


def test_arguments_are_chosen_by_name():
    inputs = T.AugInput(_image(2, 3, 3), sem_seg=np.full((2, 3), 9))
    assert isinstance(inputs.apply_augmentations([_ByName()])[0], T.HFlipTransform)
    with pytest.raises(AttributeError, match="depth"):
        _Missing()(inputs)
    for wrong in (_Variadic(), _NoTransform()):
        with pytest.raises((TypeError, AssertionError)):
            wrong(inputs)


# what is not an image
@pytest.mark.parametrize(
    "image", [[[1]], np.zeros((2, 2), int), np.zeros(3), np.zeros((1, 1, 1, 1))]
)
def test_augmentation_input_checks_the_image(image):
    with pytest.raises((TypeError, ValueError, AssertionError)):
        T.AugInput(image)


# (augmentation, how it prints)
PRINTED = [
    (T.RandomFlip(), "RandomFlip()"),
    (T.RandomFlip(prob=0.3), "RandomFlip(prob=0.3)"),
    # Stated, though equal to the default.
    (T.RandomFlip(prob=0.5), "RandomFlip(prob=0.5)"),
    (
        T.RandomCrop("relative", (0.1, 0.2)),
        "RandomCrop(crop_type='relative', crop_size=(0.1, 0.2))",
    ),
    (
        T.AugmentationList([T.RandomFlip(), T.RandomFlip(prob=0.3)]),
        "AugmentationList[RandomFlip(), RandomFlip(prob=0.3)]",
    ),
]


@pytest.mark.parametrize(("augmentation", "text"), PRINTED)
def test_printing(augmentation, text):
    assert str(augmentation) == repr(augmentation) == text


def test_upstream_only_parts_say_so():
    with pytest.raises(NotImplementedError, match="RandomRotation"):
        _ = T.RandomRotation
