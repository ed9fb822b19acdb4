"""Samples as plain containers: written, read by torch without code, and the same as before."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks

from pseudolabel.errors import DataError
from pseudolabel.plain_samples import from_plain, to_plain


def there_and_back(value, folder):
    torch.save(to_plain(value), folder / "plain.pth")
    return from_plain(torch.load(folder / "plain.pth", weights_only=True))


def instances(masks):
    made = Instances((6, 8), gt_boxes=Boxes(torch.tensor([[1.0, 2, 5, 6]])), gt_masks=masks)
    made.gt_classes = torch.tensor([2])
    return made


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, "x", None, True], 3: (4, {"b": ()})},  # nothing to do
        {"size": np.int64(3), "ok": np.bool_(False), "score": np.float32(0.5)},  # numpy's scalars
        BoxMode.XYWH_ABS,  # an integer with a name
        [float("inf")],  # what such a dump is about
    ],
)
def test_plain_values_stay(value, tmp_path):
    back = there_and_back(value, tmp_path)
    assert back == value
    assert type(back) in (dict, int, list)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.bool_, np.int64])
def test_arrays_keep_dtype_and_shape(dtype, tmp_path):
    # Not contiguous, with a negative stride, which torch cannot take over.
    array = np.arange(12).reshape(3, 4).astype(dtype)[::-1, ::2]
    (back,) = there_and_back([array], tmp_path)
    assert back.dtype == dtype
    assert np.array_equal(back, array)


@pytest.mark.parametrize(
    "masks",
    [
        BitMasks(torch.arange(48).reshape(1, 6, 8) % 3 == 0),
        PolygonMasks([[np.array([1.0, 2, 5, 2, 5, 6]), np.array([0.0, 0, 1, 0, 1, 1])]]),
    ],
    ids=lambda masks: type(masks).__name__,
)
def test_instances_keep_size_and_fields(masks, tmp_path):
    """Nested, as the sample of an image nests them."""
    before = instances(masks)
    back = there_and_back({"weak": {"instances": before}}, tmp_path)["weak"]["instances"]
    assert back.image_size == (6, 8)
    assert torch.equal(back.gt_boxes.tensor, before.gt_boxes.tensor)
    assert torch.equal(back.gt_classes, before.gt_classes)
    cut = [each.gt_masks.crop_and_resize(before.gt_boxes.tensor, 5) for each in (before, back)]
    assert type(back.gt_masks) is type(masks)
    assert torch.equal(*cut)


def test_an_image_without_objects(tmp_path):
    before = instances(BitMasks(torch.zeros(1, 6, 8, dtype=torch.bool)))[torch.tensor([False])]
    back = there_and_back(before, tmp_path)
    assert len(back) == 0
    assert back.gt_masks.tensor.shape == (0, 6, 8)


@pytest.mark.parametrize(
    ("value", "name"),
    [(SimpleNamespace(x=1), "SimpleNamespace"), (np.array([None]), "ndarray")],
)
def test_an_unknown_object_does_not_keep_the_rest_from_being_written(value, name, tmp_path):
    torch.save(to_plain({"image": torch.ones(2), "x": value}), tmp_path / "plain.pth")
    plain = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert torch.equal(plain["image"], torch.ones(2))
    with pytest.raises(DataError, match=rf"left out \(unknown {name}\).*Remedy"):
        from_plain(plain)
