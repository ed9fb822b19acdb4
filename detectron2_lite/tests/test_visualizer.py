"""One shape at a time: which pixels change, and what a mask turns into."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.utils.visualizer import GenericMask, VisImage, Visualizer
from PIL import Image

H, W = 60, 80
GREY = np.full((H, W, 3), 100, dtype=np.uint8)


def square() -> np.ndarray:
    """Rows 10..29, columns 20..49."""
    mask = np.zeros((H, W), dtype=bool)
    mask[10:30, 20:50] = True
    return mask


def ring() -> np.ndarray:
    """The square with a hole of 6 x 10."""
    mask = square()
    mask[17:23, 30:40] = False
    return mask


SQUARE_POLYGON = [20.0, 10.0, 50.0, 10.0, 50.0, 30.0, 20.0, 30.0]


def changed(output: VisImage, before: np.ndarray = GREY) -> np.ndarray:
    """(H, W) bool: pixels that are not those of the picture any more."""
    return (output.get_image() != before).any(axis=2)


def words(visualizer: Visualizer) -> list[str]:
    return [text.get_text() for text in visualizer.output.ax.texts]


def rle(mask: np.ndarray, compressed: bool) -> dict:
    if compressed:
        return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int))).tolist()
    bounds = [0, *edges, flat.size]
    return {"size": [H, W], "counts": np.diff(bounds).tolist()}


# ---- GenericMask ---------------------------------------------------------------------------------

STORED: dict[str, Callable[[], Any]] = {
    "bool array": square,
    "number array": lambda: square().astype(np.float32),
    "tensor": lambda: torch.from_numpy(square()),
    "compressed RLE": lambda: rle(square(), True),
    "run lengths": lambda: rle(square(), False),
    "list polygon": lambda: [SQUARE_POLYGON],
    "array polygon": lambda: [np.array(SQUARE_POLYGON)],
    # A part of two points covers nothing.
    "thin part": lambda: [[1.0, 1.0, 70.0, 50.0], SQUARE_POLYGON],
}


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_every_way_to_store_a_mask(stored: Callable[[], Any]) -> None:
    mask = GenericMask(stored(), H, W)
    assert (mask.mask == square()).all()
    assert mask.mask.dtype == np.uint8
    assert mask.area() == 600
    assert mask.bbox().tolist() == [20, 10, 50, 30]
    assert not mask.has_holes
    points = {tuple(point) for point in mask.polygons[-1].reshape(-1, 2)}
    assert points == {(20, 10), (50, 10), (50, 30), (20, 30)}


def test_hole_small_and_empty_masks() -> None:
    holed = GenericMask(ring(), H, W)
    assert holed.has_holes
    assert len(holed.polygons) == 2
    speck = np.zeros((H, W), dtype=bool)
    speck[3, 4] = True
    one = GenericMask(speck, H, W)
    assert one.bbox().tolist() == [4, 3, 5, 4]
    assert len(one.polygons) == 1
    none = GenericMask(np.zeros((H, W)), H, W)
    assert (none.polygons, none.has_holes, none.area()) == ([], False, 0)
    assert none.bbox().tolist() == [0, 0, 0, 0]


BAD_MASKS = {
    "other size": (np.zeros((5, 5)), r"\(5, 5\).*\(60, 80\)"),
    "three dimensions": (np.zeros((1, H, W)), "shape"),
    "RLE of another size": ({"size": [5, 5], "counts": [25]}, "shape"),
    "dict that is no RLE": ({"segments": []}, "'counts' and 'size'"),
    "odd polygon": ([[1.0, 2.0, 3.0]], "x and y"),
    "text": ("mask.png", "not a str"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_masks_that_are_none(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenericMask(bad, H, W)


# ---- canvas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3.0])
@pytest.mark.parametrize("size", [(1, 1), (29, 57), (60, 80), (333, 41)])
def test_picture_is_kept_to_the_pixel(size: tuple[int, int], scale: float) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    shown = Visualizer(picture, scale=scale).get_output().get_image()
    times = int(scale)
    assert shown.dtype == np.uint8
    assert (shown == picture.repeat(times, axis=0).repeat(times, axis=1)).all()


# 0.29 * 100 is 28.999... in binary, 1.1 * 10 is 11.000...
@pytest.mark.parametrize(
    ("before", "scale", "after"),
    [
        ((10, 17), 0.5, (5, 8)),
        ((10, 17), 1.1, (11, 18)),
        ((100, 50), 0.29, (29, 14)),
        # Upstream would make an empty picture.
        ((10, 17), 0.01, (1, 1)),
    ],
)
def test_size_is_rounded_down(before: tuple, scale: float, after: tuple) -> None:
    assert VisImage(np.zeros((*before, 3)), scale).get_image().shape == (*after, 3)


def test_saved_file_shows_the_same(tmp_path: Path) -> None:
    output = Visualizer(GREY, scale=1.3).draw_box([5, 5, 40, 40], edge_color="r")
    output.save(tmp_path / "drawn.png")
    stored = np.asarray(Image.open(tmp_path / "drawn.png").convert("RGB"))
    assert (stored == output.get_image()).all()


def test_reset_keeps_what_is_drawn() -> None:
    output = Visualizer(GREY).draw_binary_mask(square(), color="r", alpha=1)
    output.reset_image(np.zeros_like(GREY))
    assert len(output.ax.images) == 1
    picture = output.get_image()
    assert picture[20, 30].tolist() == [255, 0, 0]
    assert picture[50, 70].tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(H, W), (H, W, 4), (1, H, W, 3)])
def test_picture_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="RGB"):
        Visualizer(np.zeros(shape))


def test_values_beyond_a_byte_are_clipped() -> None:
    picture = np.zeros((4, 4, 3))
    picture[0], picture[1] = 300, -5
    shown = Visualizer(picture).get_output().get_image()
    assert shown[0].max() == shown[0].min() == 255
    assert shown[1].max() == 0


# ---- shapes --------------------------------------------------------------------------------------

# draw, points that must have changed, points that must not
SHAPES: dict[str, tuple[Callable[[Visualizer], VisImage], list, list]] = {
    "box": (
        lambda v: v.draw_box(torch.tensor([10.0, 10.0, 60.0, 50.0]), edge_color="r"),
        [(10, 30), (60, 30), (30, 10), (30, 50)],
        [(30, 30), (5, 30), (70, 30)],
    ),
    "line": (lambda v: v.draw_line([0, 80], [30, 30], "r"), [(40, 30)], [(40, 20), (40, 40)]),
    "disc": (lambda v: v.draw_circle((30, 20), "r", radius=5), [(30, 20), (33, 20)], [(38, 20)]),
    "polygon": (
        lambda v: v.draw_polygon(np.array([[10, 10], [50, 10], [10, 50]]), "r"),
        [(15, 15), (30, 20)],
        [(45, 45), (60, 10)],
    ),
    "text": (lambda v: v.draw_text("word", (40, 20)), [(40, 24)], [(40, 10), (5, 24)]),
    "text to the right": (
        lambda v: v.draw_text("word", (40, 20), horizontal_alignment="left"),
        [(44, 24)],
        [(34, 24)],
    ),
}


@pytest.mark.parametrize(("draw", "hit", "missed"), SHAPES.values(), ids=SHAPES)
def test_shapes_land_where_they_belong(draw: Callable, hit: list, missed: list) -> None:
    marks = changed(draw(Visualizer(GREY)))
    assert all(marks[y, x] for x, y in hit)
    assert not any(marks[y, x] for x, y in missed)


@pytest.mark.parametrize("color", ["navy", "black", (0.3, 0.0, 0.0), "white"])
def test_text_is_bright_enough_for_its_box(color: Any) -> None:
    drawn = Visualizer(np.zeros((H, W, 3))).draw_text("MMM", (40, 20), font_size=20, color=color)
    assert (drawn.get_image() @ (0.299, 0.587, 0.114)).max() > 0.45 * 255


@pytest.mark.parametrize("shape", [square, ring])
def test_mask_covers_its_pixels(shape: Callable[[], np.ndarray]) -> None:
    mask = shape()
    # A second part beside it, which is too small to be shown.
    mask[50:52, 5:8] = True
    output = Visualizer(GREY).draw_binary_mask(mask, color="blue", alpha=0.5)
    picture = output.get_image()
    np.testing.assert_allclose(picture[15, 25], [50, 50, 178], atol=2)
    expected = ring() if shape is ring else square()
    marks = changed(output)
    # The outline of a mask without holes adds about a pixel around it.
    inner = marks[12:28, 22:48]
    assert (inner == expected[12:28, 22:48]).all()
    assert not marks[40:].any()
    if shape is ring:
        assert (marks == expected).all()


@pytest.mark.parametrize("scale", [0.75, 1.5, 2.3])
def test_scaled_mask_keeps_its_share_of_the_picture(scale: float) -> None:
    mask = ring()
    mask[9, 21:35] = True
    output = Visualizer(np.zeros_like(GREY), scale=scale).draw_binary_mask(mask, "red", alpha=1.0)
    # Pixels on the edge are covered in part.
    covered = output.get_image()[..., 0].mean() / 255
    assert covered == pytest.approx(mask.mean(), rel=0.004)


def test_mask_with_holes_gets_an_outline_on_request() -> None:
    output = Visualizer(GREY).draw_binary_mask(ring(), color="blue", edge_color="white")
    picture = output.get_image()
    assert picture[10, 35].min() > 150
    assert picture[17, 35].min() > 150
    assert (picture[20, 35] == 100).all()


@pytest.mark.parametrize("method", ["draw_binary_mask", "draw_soft_mask"])
def test_mask_is_labelled_unless_empty(method: str) -> None:
    visualizer = Visualizer(GREY)
    getattr(visualizer, method)(square().astype(np.float32), text="here")
    getattr(visualizer, method)(np.zeros((H, W), dtype=np.float32), text="nowhere")
    assert words(visualizer) == ["here"]
    with pytest.raises(ValueError, match="shape"):
        getattr(visualizer, method)(square()[:5])


def test_soft_mask_is_as_opaque_as_it_is_strong() -> None:
    strength = np.zeros((H, W), dtype=np.float32)
    strength[:20], strength[20:40] = 1.0, 0.5
    picture = Visualizer(GREY).draw_soft_mask(strength, color="red", alpha=0.8).get_image()
    # 100 * (1 - a) + 255 * a for a = 0.8, 0.4, 0; the other channels fade.
    for row, alpha in ((5, 0.8), (30, 0.4), (50, 0.0)):
        expected = [100 + 155 * alpha, 100 - 100 * alpha, 100 - 100 * alpha]
        np.testing.assert_allclose(picture[row, 5], expected, atol=2)
