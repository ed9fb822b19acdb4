"""Boxes, instances and masks: rules, bad input, and naive twins."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.layers import mask_ops, paste_masks_in_image
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    ImageList,
    Instances,
    PolygonMasks,
    ROIMasks,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
)
from hypothesis import given, settings
from hypothesis import strategies as st

CORNER = st.integers(-6, 24)
BOX = st.tuples(CORNER, CORNER, st.integers(0, 12), st.integers(0, 12)).map(
    lambda t: [t[0], t[1], t[0] + t[2], t[1] + t[3]]
)


def _overlap(a: list[int], b: list[int]) -> int:
    """Intersection area by counting unit cells."""
    cells = [{(x, y) for x in range(x0, x1) for y in range(y0, y1)} for x0, y0, x1, y1 in (a, b)]
    return len(cells[0] & cells[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(BOX, max_size=4), st.lists(BOX, max_size=4))
def test_pairwise_ratios_by_counting(first: list, second: list) -> None:
    a, b = Boxes(torch.tensor(first)), Boxes(torch.tensor(second))
    inter, iou, ioa = pairwise_intersection(a, b), pairwise_iou(a, b), pairwise_ioa(a, b)
    assert inter.shape == iou.shape == ioa.shape == (len(first), len(second))
    area = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in second]
    for i, p in enumerate(first):
        for j, q in enumerate(second):
            shared = _overlap(p, q)
            union = _overlap(p, p) + area[j] - shared
            assert inter[i, j] == shared
            assert float(iou[i, j]) == pytest.approx(shared / union if union else 0)
            assert float(ioa[i, j]) == pytest.approx(shared / area[j] if area[j] else 0)
    if first and len(first) == len(second):
        torch.testing.assert_close(matched_pairwise_iou(a, b), iou.diagonal())


def test_boxes_indexing_and_editing() -> None:
    boxes = Boxes([[0, 0, 4, 2], [-3, 1, 30, 50], [5, 5, 5, 9]])
    assert boxes.tensor.dtype == torch.float32
    assert boxes[1].tensor.shape == (1, 4)
    assert boxes[-1:].tensor.shape == (1, 4)
    assert boxes[boxes.nonempty()].tensor.shape == (2, 4)
    assert boxes.nonempty(threshold=2).tolist() == [False, True, False]
    assert boxes.inside_box((10, 10)).tolist() == [True, False, True]
    assert boxes.inside_box((10, 10), boundary_threshold=45).tolist() == [True, True, True]
    assert boxes.get_centers()[0].tolist() == [2, 1]
    clipped = boxes.clone()
    clipped.clip((20, 10))
    assert clipped.tensor[1].tolist() == [0, 1, 10, 20]
    assert boxes.tensor[1].tolist() == [-3, 1, 30, 50]
    clipped.scale(2, 0.5)
    assert clipped.tensor[1].tolist() == [0, 0.5, 20, 10]
    assert [tuple(box.shape) for box in boxes] == [(4,)] * 3


def test_boxes_cat_to_and_empty() -> None:
    assert Boxes.cat([]).tensor.shape == (0, 4)
    assert Boxes([]).tensor.shape == (0, 4)
    one = Boxes(torch.rand(1, 4, dtype=torch.float64))
    assert Boxes.cat([one, Boxes(torch.zeros(0, 4))]).tensor.shape == (1, 4)
    assert one.to("meta").device.type == "meta"
    # A gradient through an empty set of boxes must survive.
    empty = torch.zeros(0, 4, requires_grad=True)
    assert Boxes(empty).tensor.requires_grad


BAD_BOXES: dict[str, Callable[[], Any]] = {
    "five columns": lambda: Boxes(torch.zeros(2, 5)),
    "one dimension": lambda: Boxes(torch.zeros(4)),
    "infinite corner": lambda: Boxes([[0, 0, float("inf"), 1]]).clip((5, 5)),
    "cat of tensors": lambda: Boxes.cat([torch.zeros(1, 4)]),
    "unequal pairing": lambda: matched_pairwise_iou(Boxes([]), Boxes([[0, 0, 1, 1]])),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_bad_boxes(name: str) -> None:
    with pytest.raises((ValueError, AssertionError, TypeError)):
        BAD_BOXES[name]()


CONTAINERS: dict[str, Callable[[list], Any]] = {
    "list": list,
    "tuple": tuple,
    "float32 array": lambda box: np.array([box], dtype=np.float32),
    "float64 tensor": lambda box: torch.tensor([box], dtype=torch.float64),
    "flat tensor": torch.tensor,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_box_mode_keeps_the_container(name: str) -> None:
    make = CONTAINERS[name]
    box, want = make([5.0, 6.0, 10.0, 12.0]), make([5.0, 6.0, 15.0, 18.0])
    got = BoxMode.convert(box, 1, BoxMode.XYXY_ABS)
    assert type(got) is type(want)
    assert np.array_equal(np.asarray(got), np.asarray(want))
    back = BoxMode.convert(got, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert np.array_equal(np.asarray(back), np.asarray(make([5.0, 6.0, 10.0, 12.0])))
    # The input is not edited in place.
    assert np.array_equal(np.asarray(box), np.asarray(make([5.0, 6.0, 10.0, 12.0])))
    assert getattr(got, "dtype", None) == getattr(want, "dtype", None)


def test_box_mode_errors_and_json() -> None:
    for box, source, target in (
        ([[1, 2, 3, 4]], 0, 1),  # a list of lists is ambiguous
        ([1, 2, 3], 0, 1),
        (torch.zeros(2, 5), 0, 1),
        ([1, 2, 3, 4], 2, 0),  # relative
        ([1, 2, 3, 4], 4, 0),  # a rotated box without an angle
        ([1, 2, 3, 4, 5], 4, 1),  # rotated to sizes: upstream refuses it as well
    ):
        with pytest.raises((ValueError, NotImplementedError)):
            BoxMode.convert(box, source, target)
    assert json.loads(json.dumps({"bbox_mode": BoxMode.XYWH_REL})) == {"bbox_mode": 3}


@pytest.mark.parametrize("angle", [0, 30, 90, -135, 200])
def test_a_rotated_box_is_enclosed(angle: float) -> None:
    got = BoxMode.convert((40.0, 50.0, 30.0, 10.0, angle), BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    turn = np.exp(-1j * np.deg2rad(angle))  # y points down
    corners = (40 + 50j) + turn * np.array([15 + 5j, 15 - 5j, -15 + 5j, -15 - 5j])
    want = corners.real.min(), corners.imag.min(), corners.real.max(), corners.imag.max()
    assert got == pytest.approx(want)


def test_a_box_without_rotation_is_a_rotated_box() -> None:
    assert BoxMode.convert([10.0, 20.0, 30.0, 14.0], 1, 4) == [25.0, 27.0, 30.0, 14.0, 0.0]


def _three() -> Instances:
    return Instances((10, 20), boxes=Boxes(torch.rand(3, 4)), classes=torch.arange(3), tag=[*"abc"])


INDICES = {
    "int": (1, [1]),
    "negative int": (-1, [2]),
    "slice": (slice(1, None), [1, 2]),
    "bool tensor": (torch.tensor([True, False, True]), [0, 2]),
    "index tensor": (torch.tensor([2, 0]), [2, 0]),
    "nothing": (torch.zeros(3, dtype=torch.bool), []),
}


@pytest.mark.parametrize("name", INDICES)
def test_instances_indexing(name: str) -> None:
    index, want = INDICES[name]
    source = _three()
    if isinstance(index, torch.Tensor):
        source.remove("tag")  # a list cannot be indexed by a tensor
    chosen = source[index]
    assert chosen.classes.tolist() == want
    assert len(chosen) == len(want)
    assert chosen.image_size == (10, 20)
    torch.testing.assert_close(chosen.boxes.tensor, source.boxes.tensor[want])


def test_instances_fields() -> None:
    x = _three()
    assert x.has("tag")
    assert not x.has("scores")
    x.scores = torch.ones(3)
    assert set(x.get_fields()) == {"boxes", "classes", "tag", "scores"}
    with pytest.raises(AssertionError, match="2 entries"):
        x.masks = torch.zeros(2)
    with pytest.raises(AttributeError, match="masks"):
        _ = x.masks
    with pytest.raises(KeyError):
        x.get("masks")
    x._note = "not a field"
    assert not x.has("_note")
    x.remove("scores")
    assert not x.has("scores")
    moved = x.to("meta")
    assert (moved.boxes.device.type, moved.tag) == ("meta", [*"abc"])
    for clone in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert clone.classes.tolist() == [0, 1, 2]
    assert "num_instances=3" in str(x)


def test_instances_cat_and_refusals() -> None:
    x = _three()
    assert Instances.cat([x]) is x
    joined = Instances.cat([x, x[0]])
    assert joined.tag == [*"abca"]
    assert len(joined.boxes) == 4
    with pytest.raises(IndexError):
        x[3]
    with pytest.raises(NotImplementedError):
        len(Instances((1, 1)))
    with pytest.raises(NotImplementedError):
        iter(x)
    with pytest.raises(AssertionError):
        Instances.cat([])
    with pytest.raises(AssertionError):
        Instances.cat([x, Instances((1, 1), boxes=Boxes([]))])
    with pytest.raises(ValueError, match="name"):
        Instances.cat([Instances((1, 1), name="ab"), Instances((1, 1), name="c")])


def test_image_list_padding() -> None:
    images = [torch.ones(3, 5, 7), torch.ones(3, 6, 4)]
    plain = ImageList.from_tensors(images)
    assert plain.tensor.shape == (2, 3, 6, 7)
    assert float(plain.tensor.sum()) == 3 * (35 + 24)
    constraints = {"size_divisibility": 4}
    assert ImageList.from_tensors(images, 32, padding_constraints=constraints).tensor.shape == (
        2,
        3,
        8,
        8,
    )
    square = ImageList.from_tensors(images, padding_constraints={"square_size": 9})
    assert square.tensor.shape == (2, 3, 9, 9)
    assert ImageList.from_tensors([torch.ones(5, 7)], 4).tensor.shape == (1, 8, 8)
    for bad in ([], [torch.ones(3, 5, 7), torch.ones(1, 5, 7)]):
        with pytest.raises(ValueError, match="agree"):
            ImageList.from_tensors(bad)
    with pytest.raises(ValueError, match="square_size"):
        ImageList.from_tensors(images, padding_constraints={"square_size": 6})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bitmask_boxes_by_scanning(seed: int) -> None:
    masks = np.random.RandomState(seed).random_sample((4, 5, 7)) > 0.9
    got = BitMasks(masks).get_bounding_boxes().tensor
    for mask, box in zip(masks, got.tolist()):
        ys, xs = np.nonzero(mask)
        want = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else [0, 0, 0, 0]
        assert box == want
    assert BitMasks(masks).nonempty().tolist() == masks.any((1, 2)).tolist()


def test_bitmasks() -> None:
    masks = BitMasks(torch.ones(3, 4, 6))
    assert masks.image_size == (4, 6)
    assert masks.tensor.dtype == torch.bool
    assert masks[0].tensor.shape == (1, 4, 6)
    assert len(masks[torch.tensor([True, False, True])]) == 2
    assert len(BitMasks.cat([masks, masks[1]])) == 4
    empty = BitMasks.from_polygon_masks([], 4, 6)
    assert empty.tensor.shape == (0, 4, 6)
    assert empty.crop_and_resize(torch.zeros(0, 4), 7).shape == (0, 7, 7)
    assert BitMasks.from_polygon_masks([[]], 4, 6).tensor.sum() == 0
    with pytest.raises(ValueError, match="N, H, W"):
        BitMasks(torch.ones(4, 6))


TRIANGLE = [1.0, 1, 6, 1, 1, 6]


def test_polygon_masks() -> None:
    masks = PolygonMasks([[TRIANGLE], [TRIANGLE, np.array(TRIANGLE) + 3], []])
    assert masks.area().tolist() == [12.5, 25, 0]
    # Areas of large images pass the 2**24 that float32 counts exactly.
    large = PolygonMasks([[[0, 0, 4097, 0, 4097, 4097, 0, 4097]]]).area()
    assert (large.dtype, large.item()) == (torch.float64, 4097**2)
    assert masks.nonempty().tolist() == [True, True, False]
    assert masks.get_bounding_boxes().tensor.tolist() == [[1, 1, 6, 6], [1, 1, 9, 9], [0] * 4]
    assert masks.polygons[0][0].dtype == np.float64
    for index, want in (
        (1, [2]),
        (slice(0, 2), [1, 2]),
        ([2, 0], [0, 1]),
        (torch.tensor([False, True, False]), [2]),
        (torch.zeros(0, dtype=torch.int64), []),
    ):
        assert [len(parts) for parts in masks[index]] == want
    assert len(PolygonMasks.cat([masks, masks])) == 6
    assert masks.to("cuda") is masks
    # A box without extent must not overflow the rasteriser.
    assert masks[0].crop_and_resize(torch.tensor([[2.0, 2, 2, 2]]), 5).shape == (1, 5, 5)


BAD_POLYGONS = {
    "odd number": ([[[0, 0, 1, 1, 2]]], "Object 0"),
    "two points": ([[TRIANGLE], [[0, 0, 1, 1]]], "Object 1"),
    "no parts level": ([np.array(TRIANGLE)], "Object 0"),
    "no list": (np.zeros((1, 1, 6)), "list"),
}


@pytest.mark.parametrize("name", BAD_POLYGONS)
def test_bad_polygons(name: str) -> None:
    polygons, hint = BAD_POLYGONS[name]
    with pytest.raises(ValueError, match=hint):
        PolygonMasks(polygons)


def _paste_naively(mask: np.ndarray, box: list[float], height: int, width: int) -> np.ndarray:
    """Bilinear sampling of one mask with loops, zero outside."""
    side, (x0, y0, x1, y1) = len(mask), box
    padded = np.pad(mask, 1)
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            v = (row + 0.5 - y0) / (y1 - y0) * side - 0.5
            u = (column + 0.5 - x0) / (x1 - x0) * side - 0.5
            if not (-1 < u < side and -1 < v < side):
                continue
            i, j = int(np.floor(v)), int(np.floor(u))
            a, b = v - i, u - j
            cell = padded[i + 1 : i + 3, j + 1 : j + 3]
            out[row, column] = np.array([1 - a, a]) @ cell @ np.array([1 - b, b])
    return out


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.tuples(*[st.floats(-8, 12)] * 2, *[st.floats(0.5, 25)] * 2),
)
def test_paste_equals_loops(seed: int, box: tuple[float, ...]) -> None:
    mask = np.random.RandomState(seed).random_sample((6, 6)).astype("float32")
    x, y, w, h = np.float32(box).tolist()
    corners = torch.tensor([[x, y, x + w, y + h]])
    want = _paste_naively(mask, corners[0].tolist(), 14, 17)
    got = paste_masks_in_image(torch.from_numpy(mask)[None], corners, (14, 17), threshold=0.5)
    # Values on the threshold itself may fall to either side.
    clear = np.abs(want - 0.5) > 1e-4
    assert np.array_equal(got[0].numpy()[clear], (want >= 0.5)[clear])


def test_paste_in_large_batches_equals_small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    masks, corners = torch.rand(5, 6, 6), torch.rand(5, 4) * 10
    corners[:, 2:] += corners[:, :2] + 1
    corners[3, 2] = float("nan")  # nothing can be pasted there
    want = paste_masks_in_image(masks, corners, (14, 17))
    assert want.flatten(1).any(1).tolist() == [True, True, True, False, True]
    # The plan of an accelerator, with room for two masks at a time.
    monkeypatch.setattr(mask_ops, "_GPU_BUDGET", 2 * 14 * 17 * 16)
    plan = mask_ops._large_batches(5, 14, 17)
    assert [(rows.start, rows.stop) for rows, _ in plan] == [(0, 2), (2, 4), (4, 5)]
    monkeypatch.setattr(mask_ops, "_plan", lambda *_: plan)
    assert torch.equal(paste_masks_in_image(masks, corners, (14, 17)), want)


def test_paste_corner_cases() -> None:
    ones = torch.ones(3, 1, 4, 4)
    boxes = Boxes([[2.0, 2, 2, 6], [50, 50, 60, 60], [1, 2, 4, 7]])
    pasted = paste_masks_in_image(ones, boxes, (9, 8))
    # Without width, outside the image, and a box on whole pixels: filled exactly.
    assert pasted.flatten(1).sum(1).tolist() == [0, 0, 15]
    assert bool(pasted[2, 2:7, 1:4].all())
    assert paste_masks_in_image(
        ones[:0], boxes[torch.tensor([], dtype=torch.long)], (9, 8)
    ).shape == (
        0,
        9,
        8,
    )
    bits = ROIMasks(ones[:, 0]).to_bitmasks(boxes, 9, 8)
    assert torch.equal(bits.tensor, pasted)
    with pytest.raises(ValueError, match="2 boxes"):
        paste_masks_in_image(ones, boxes[:2], (9, 8))
    with pytest.raises(ValueError, match="square"):
        paste_masks_in_image(torch.ones(1, 4, 5), boxes[:1], (9, 8))
