"""Outlines of masks against scipy's connected components, and the colour palette."""

import sys

import numpy as np
import pytest
from detectron2.utils._mask_outline import (
    fill_outlines,
    is_hole,
    part_anchors,
    trace_outlines,
    without_specks,
)
from detectron2.utils.colormap import colormap, random_color, random_colors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

TOUCHING_CORNERS = np.ones((3, 3), dtype=int)

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))


def signed_area(outline: np.ndarray) -> float:
    """Naive shoelace, positive for a clockwise turn on a y-down canvas."""
    total = 0.0
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], outline[0]]):
        total += (x0 * y1 - x1 * y0) / 2
    return total


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_outlines_enclose_exactly_the_mask(mask: np.ndarray) -> None:
    outlines = trace_outlines(mask)
    assert (fill_outlines(outlines, *mask.shape) == mask).all()
    assert sum(map(signed_area, outlines)) == mask.sum()
    for outline in outlines:
        assert is_hole(outline) == (signed_area(outline) < 0)
        # Only turning points are kept: x and y change in turns.
        steps = np.roll(outline, -1, axis=0) - outline
        assert ((steps != 0).sum(axis=1) == 1).all()
        assert ((steps[:, 0] != 0) != (np.roll(steps, 1, axis=0)[:, 0] != 0)).all()


@settings(max_examples=150, deadline=None)
@given(MASKS)
def test_one_outline_per_part_and_per_hole(mask: np.ndarray) -> None:
    holes = [is_hole(outline) for outline in trace_outlines(mask)]
    assert holes.count(False) == ndimage.label(mask, TOUCHING_CORNERS)[1]
    # The background around the mask is a component, too.
    assert holes.count(True) == ndimage.label(~np.pad(mask, 1))[1] - 1


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(0, 12))
def test_specks_are_whole_parts(mask: np.ndarray, smallest: int) -> None:
    parts, number = ndimage.label(mask, TOUCHING_CORNERS)
    expected = mask.copy()
    for part in range(1, number + 1):
        # What a part encloses includes its holes.
        if ndimage.binary_fill_holes(parts == part).sum() < smallest:
            expected[parts == part] = False
    kept = without_specks(mask, smallest)
    assert (kept & mask == kept).all()
    assert (kept == expected).all()


def test_anchor_lies_on_the_largest_part() -> None:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[2:5, 2:5] = 1
    # A ring, whose median is in its hole.
    mask[10:31, 20:41] = 1
    mask[14:27, 24:37] = 0
    ((x, y),) = part_anchors(mask)
    assert mask[int(y), int(x)]
    # The nearest pixels of the ring are 7 away from its middle.
    assert np.hypot(x - 30.5, y - 20.5) == 7


def test_very_large_parts_have_an_anchor_each() -> None:
    mask = np.ones((400, 801), dtype=bool)
    mask[:, 400] = False
    anchors = part_anchors(mask)
    assert sorted(x < 400 for x, _ in anchors) == [False, True]
    assert part_anchors(np.zeros((5, 5), dtype=bool)) == []


def test_palette_is_stable_and_its_colors_differ() -> None:
    colors = colormap(rgb=True, maximum=1)
    assert colors.dtype == np.float32
    assert colors.min() >= 0
    assert colors.max() <= 1
    distance = np.abs(colors[:, None] - colors[None]).sum(axis=-1) + np.eye(len(colors))
    assert distance.min() > 0.03
    # Entries that follow each other are far apart: classes 0, 1, 2, ... look different.
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 0.5
    np.testing.assert_allclose(colormap(), colors[:, ::-1] * 255, rtol=1e-6)
    colors[:] = 0
    assert colormap().any(), "the palette itself was handed out"


def test_random_colors_are_of_the_palette() -> None:
    palette = {tuple(color) for color in colormap(rgb=True)}
    np.random.seed(3)
    first = random_color(rgb=True)
    np.random.seed(3)
    assert (first == random_color(rgb=True)).all()
    assert tuple(first) in palette
    several = {tuple(color) for color in random_colors(len(palette), rgb=True)}
    assert several == palette
    assert random_colors(0) == []
    with pytest.raises(ValueError, match="different colours"):
        random_colors(len(palette) + 1)
    with pytest.raises(AssertionError, match="255 or 1"):
        colormap(maximum=100)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch) -> None:
    for name in ("visualizer", "_drawing"):
        monkeypatch.delitem(sys.modules, f"detectron2.utils.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        import detectron2.utils.visualizer  # noqa: F401
