"""The training mapper: boxes stay as given, and no instance is lost without being counted."""

import numpy as np
import pytest
from detectron2.data import transforms
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from masksmith_projects.mask2former.mapper import InstanceMapper, build_augmentations, moved_mask
from pseudolabel.errors import DataError
from pseudolabel.masks import encode_rle
from tests.projects.mask2former.tiny_model import tiny_cfg

H, W = 40, 60


def record(folder, *annotations):
    path = folder / "1.png"
    pixels = np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    listed = [{"bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, **a} for a in annotations]
    return {"file_name": str(path), "height": H, "width": W, "image_id": 1, "annotations": listed}


def annotation(rows, columns, bbox, **extra):
    mask = np.zeros((H, W), dtype=bool)
    mask[rows, columns] = True
    return {"segmentation": encode_rle(mask), "bbox": bbox, **extra}


BLOCK = (slice(10, 20), slice(30, 50))


def test_box_stays_as_given_and_is_not_drawn_around_the_mask(tmp_path):
    loose = annotation(*BLOCK, [25, 5, 30, 20])
    sample = InstanceMapper([], "RGB")(record(tmp_path, loose))
    assert sample["instances"].gt_boxes.tensor.tolist() == [[25, 5, 55, 25]]
    assert sample["instances"].gt_masks.tensor.sum() == 200
    assert sample["image"].shape == (3, H, W)
    assert "annotations" not in sample
    assert sample["lost_instances"] == 0


def test_flip_and_scale_move_box_and_mask_together(tmp_path):
    steps = [transforms.Resize((2 * H, 2 * W)), transforms.RandomFlip(prob=1.0)]
    mapper = InstanceMapper(steps, "RGB")
    instances = mapper(record(tmp_path, annotation(*BLOCK, [30, 10, 20, 10])))["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[20, 20, 60, 40]]
    expected = np.zeros((2 * H, 2 * W), dtype=bool)
    expected[20:40, 20:60] = True
    assert np.array_equal(instances.gt_masks.tensor.numpy()[0], expected)


def test_one_pixel_stays_when_the_image_shrinks(tmp_path):
    """Nearest-neighbour sampling skips most single pixels at a quarter of the size."""
    annotations = [annotation(y, x, [x, y, 1, 1]) for y in range(8) for x in range(8)]
    mapper = InstanceMapper([transforms.Resize((H // 4, W // 4))], "RGB")
    sample = mapper(record(tmp_path, *annotations))
    masks = sample["instances"].gt_masks.tensor
    assert len(masks) == 64
    assert sample["lost_instances"] == 0
    for source, mask in zip(annotations, masks):
        ((y, x),) = np.argwhere(mask.numpy())
        assert (y, x) == (source["bbox"][1] // 4, source["bbox"][0] // 4)


def test_what_lies_outside_of_the_crop_is_counted(tmp_path):
    inside = annotation(*BLOCK, [30, 10, 20, 10])
    outside = annotation(slice(30, 40), slice(0, 9), [0, 30, 9, 10])
    pixel = annotation(39, 0, [0, 39, 1, 1])
    crop = transforms.CropTransform(25, 5, 30, 30)
    sample = InstanceMapper([crop], "RGB")(record(tmp_path, inside, outside, pixel))
    assert len(sample["instances"]) == 1
    assert (sample["lost_instances"], sample["empty_instances"]) == (2, 0)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[5, 5, 25, 15]]


def test_a_mask_without_a_pixel_is_counted_apart(tmp_path):
    block, nothing = [30, 10, 20, 10], annotation(slice(0), slice(0), [3, 3, 4, 4])
    mapper = InstanceMapper([transforms.CropTransform(25, 5, 30, 30)], "RGB")
    outside = annotation(39, 0, [0, 39, 1, 1])
    sample = mapper(record(tmp_path, nothing, annotation(*BLOCK, block), nothing, outside))
    assert len(sample["instances"]) == 1
    assert (sample["lost_instances"], sample["empty_instances"]) == (1, 2)


def test_a_box_is_cut_at_the_crop_with_its_mask(tmp_path):
    crop = transforms.CropTransform(40, 0, 20, 40)
    half = annotation(*BLOCK, [30, 10, 20, 10])
    instances = InstanceMapper([crop], "RGB")(record(tmp_path, half))["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 10, 10, 20]]
    assert instances.gt_masks.tensor.sum() == 100


def test_weights_classes_and_polygons_and_no_crowds(tmp_path):
    polygon = {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]], "bbox": [0, 0, 10, 10]}
    source = record(
        tmp_path,
        annotation(*BLOCK, [30, 10, 20, 10], weight=0.25, category_id=4),
        annotation(*BLOCK, [30, 10, 20, 10], iscrowd=1),
        polygon,
    )
    source["weight"] = 0.5
    sample = InstanceMapper([], "RGB")(source)
    assert sample["instances"].gt_weights.tolist() == [0.25, 1.0]
    assert sample["instances"].gt_classes.tolist() == [4, 1]
    assert sample["instances"].gt_masks.tensor.flatten(1).sum(1).tolist() == [200, 100]
    assert sample["weight"] == 0.5
    assert (sample["lost_instances"], sample["crowds"]) == (0, 1)
    assert "annotations" in source, "the record of the data set is used again"


def test_an_image_without_instances(tmp_path):
    instances = InstanceMapper([], "RGB")(record(tmp_path))["instances"]
    assert len(instances) == 0
    assert instances.gt_masks.tensor.shape == (0, H, W)
    assert instances.gt_boxes.tensor.shape == (0, 4)


def test_channel_order(tmp_path):
    one, other = (InstanceMapper([], order)(record(tmp_path)) for order in ("RGB", "BGR"))
    assert np.array_equal(one["image"], other["image"].flip(0))


def test_large_scale_jitter_gives_its_square_and_pads_without_a_mask(tmp_path):
    cfg = tiny_cfg(["INPUT.LSJ.SIZE", 64, "INPUT.LSJ.MIN_SCALE", 0.5, "INPUT.LSJ.MAX_SCALE", 0.5])
    mapper = InstanceMapper.from_config(cfg)
    sample = mapper(record(tmp_path, annotation(slice(0, H), slice(0, W), [0, 0, W, H])))
    assert sample["image"].shape == (3, 64, 64)
    # Scaled to a width of half the square: 32 x 21 pixels of it are image.
    assert sample["instances"].gt_masks.tensor.sum() == 32 * 21


@pytest.mark.parametrize(
    ("opts", "kinds"),
    [
        ([], ["ResizeShortestEdge", "RandomFlip"]),
        (["INPUT.CROP.ENABLED", True], ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]),
        (["INPUT.LSJ.SIZE", 64], ["RandomFlip", "ResizeScale", "FixedSizeCrop"]),
        (["INPUT.LSJ.SIZE", 64, "INPUT.RANDOM_FLIP", "none"], ["ResizeScale", "FixedSizeCrop"]),
    ],
)
def test_augmentations_of_the_config(opts, kinds):
    assert [type(step).__name__ for step in build_augmentations(tiny_cfg(opts))] == kinds


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.RANDOM_FLIP", "both"], r"RANDOM_FLIP: 'both' is no way"),
        (["INPUT.LSJ.SIZE", 64, "INPUT.RANDOM_FLIP", "both"], r"RANDOM_FLIP: 'both' is no way"),
        (["INPUT.LSJ.SIZE", -3], r"LSJ\.SIZE: -3 is no size"),
        (["INPUT.LSJ.SIZE", 64, "INPUT.CROP.ENABLED", True], r"CROP\.ENABLED: is True, but"),
        (["INPUT.LSJ.SIZE", 64, "INPUT.LSJ.MIN_SCALE", 3.0], r"3\.0 is not between 0 and MAX"),
        (["INPUT.LSJ.SIZE", 64, "INPUT.LSJ.MIN_SCALE", 0.0], r"0\.0 is not between 0 and MAX"),
    ],
)
def test_augmentations_that_cannot_be_obeyed(opts, message):
    with pytest.raises(DataError, match=rf"{message}.*Remedy: "):
        build_augmentations(tiny_cfg(opts))


@given(
    mask=st.lists(st.integers(0, H * W - 1), min_size=1, max_size=3, unique=True),
    size=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    flip=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_mask_vanishes_by_scaling(mask, size, flip):
    flat = np.zeros(H * W, dtype=bool)
    flat[mask] = True
    steps = [transforms.ResizeTransform(H, W, *size)]
    if flip:
        steps.append(transforms.HFlipTransform(size[1]))
    moved = moved_mask(flat.reshape(H, W), transforms.TransformList(steps))
    assert moved.shape == size
    assert moved.any()
