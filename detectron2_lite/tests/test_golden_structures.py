"""Structures and layers against numbers that upstream Detectron2 produced."""

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    PolygonMasks,
    pairwise_iou,
    polygons_to_bitmask,
)

BOXES = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15], [3, 3, 3, 9]])
CROPS = torch.tensor([[2.0, 3, 30, 28], [4, 4, 37, 39]])


@pytest.fixture
def polygons() -> PolygonMasks:
    return PolygonMasks(
        [
            [np.array([2.0, 3, 30, 3, 30, 28, 2, 28])],
            [np.array([5.0, 5, 25, 8, 12, 30]), np.array([28.0, 28, 36, 28, 32, 38])],
        ]
    )


def _pasted(threshold: float) -> torch.Tensor:
    samples = np.random.RandomState(3).random_sample((2, 28, 28)).astype("float32")
    boxes = Boxes(torch.tensor([[4.2, 6.1, 30.5, 40.9], [-3.0, 10, 12, 60]]))
    return paste_masks_in_image(torch.as_tensor(samples), boxes, (48, 40), threshold=threshold)


def test_paste(parts: dict) -> None:
    want, masks = parts["paste"], _pasted(0.5)
    assert str(masks.dtype) == want["dtype"]
    assert masks.flatten(1).sum(1).tolist() == want["area"]
    assert [mask[20].int().tolist() for mask in masks] == want["row20"]


def test_paste_without_threshold(parts: dict) -> None:
    want, masks = parts["paste_neg_threshold"], _pasted(-1)
    assert str(masks.dtype) == want["dtype"]
    assert masks.flatten(1).sum(1).tolist() == want["sum"]


def test_polygon_masks(parts: dict, polygons: PolygonMasks) -> None:
    want = parts["polygon_masks"]
    crops = polygons.crop_and_resize(CROPS, 7)
    assert [crop.int().tolist() for crop in crops] == want["crop7"]
    assert polygons.get_bounding_boxes().tensor.tolist() == want["bbox"]
    assert polygons.area().tolist() == want["area"]


def test_bit_masks(parts: dict, polygons: PolygonMasks) -> None:
    want, masks = parts["bit_masks"], BitMasks.from_polygon_masks(polygons, 40, 40)
    crops = masks.crop_and_resize(CROPS, 7)
    assert masks.tensor.flatten(1).sum(1).tolist() == want["area"]
    assert masks.get_bounding_boxes().tensor.tolist() == want["bbox"]
    assert [crop.int().tolist() for crop in crops] == want["crop7"]
    assert str(crops.dtype) == want["crop7_dtype"]


def test_polygons_to_bitmask(parts: dict, polygons: PolygonMasks) -> None:
    areas = [int(polygons_to_bitmask(p, 40, 40).sum()) for p in polygons.polygons]
    assert areas == parts["polygons_to_bitmask_area"]


def test_boxes(parts: dict) -> None:
    boxes = Boxes(BOXES)
    want = torch.tensor(parts["pairwise_iou"])
    torch.testing.assert_close(pairwise_iou(boxes, boxes), want, atol=1e-6, rtol=1e-4)
    assert boxes.nonempty().tolist() == parts["boxes_nonempty"]
    assert boxes.area().tolist() == parts["boxes_area"]


def test_image_list(parts: dict) -> None:
    want = parts["imagelist"]
    images = ImageList.from_tensors(
        [torch.ones(3, 20, 30), torch.ones(3, 25, 10)], 32, pad_value=7.0
    )
    assert list(images.tensor.shape) == want["shape"]
    assert [list(size) for size in images.image_sizes] == want["sizes"]
    assert list(images[1].shape) == want["item1"]
    assert float(images.tensor[1, 0, 31, 31]) == want["corner"]


def test_box_modes(parts: dict) -> None:
    assert {mode.name: mode.value for mode in BoxMode} == parts["boxmode"]
    converted = BoxMode.convert([1.0, 2.0, 3.0, 4.0], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    assert converted == parts["boxmode_xywh_to_xyxy"]
