"""Pictures of what teacher and student see: views of images with pseudo-labels and their weights.

Shape legend: H, W rows and columns of a view; N pseudo-labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pseudolabel.report.drawing import BLACK, WHITE, Panel, color_of

# Share of its colour in the fill of a mask of full weight.
_FULL_TINT = 0.6
# Of what is no label for the student's heads.
_UNUSED = (150, 150, 150)
# Pixels: height of a line of text, space between panels, and the smallest box that gets numbers.
_LINE, _GAP, _SMALLEST = 15, 6, 26
_FONT_SIZE = 11


@dataclass(frozen=True)
class View:
    """One view and the labels on it.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        boxes: float (N, 4), XYXY.
        masks: bool (N, H, W).
    """

    image: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Example:
    """An unlabelled image as both networks see it; instance k is the same in both views.

    Attributes:
        name: of the image.
        weak, strong: the views.
        scores, quality, weights: float (N,) of the teacher's pseudo-labels, the weights being those
            of their masks; None where the labels are not a teacher's.
        used: bool (N,), which are labels of the heads; None: all.
    """

    name: str
    weak: View
    strong: View
    scores: np.ndarray | None = None
    quality: np.ndarray | None = None
    weights: np.ndarray | None = None
    used: np.ndarray | None = None


def draw_grid(examples: Sequence[Example], side: int = 420, full_weight: float = 2.5) -> np.ndarray:
    """A row per example: weak view, weak view with labels, strong view, strong view with labels.

    Args:
        examples: at least one.
        side: longer side of a panel, pixels.
        full_weight: weight whose mask is filled most; a mask of weight 0 has an outline alone.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    rows = [_draw_row(example, side, full_weight) for example in examples]
    return np.concatenate(rows)


def captions(example: Example) -> list[str]:
    """What stands below the four panels of a row."""
    number = len(example.weak.masks)
    left = number - int(example.strong.masks.any(axis=(1, 2)).sum())
    weak = f"{number} labels of the JSON"
    if example.scores is not None:
        weak = f"{number} pseudo-labels, score s {_mean(example.scores)}"
    if example.quality is not None:
        weak += f", quality u {_mean(example.quality)}"
    strong = f"{left} left the view" if left else "all in view"
    if example.weights is not None:
        weights = example.weights[_used(example)]
        strong += f", weight w {_mean(weights)}"
        if len(weights):
            strong += f" ({weights.min():.2f} to {weights.max():.2f})"
        if len(weights) < number:
            strong += f"; {number - len(weights)} grey: not above ROI_SCORE_FLOOR"
    sizes = [f"{view.image.shape[1]}x{view.image.shape[0]}" for view in _views(example)]
    return [
        f"weak view {sizes[0]}, {example.name}",
        weak,
        f"strong view {sizes[1]}",
        strong,
    ]


def _used(example: Example) -> np.ndarray:
    """bool (N,)."""
    return np.ones(len(example.weak.masks), bool) if example.used is None else example.used


def _views(example: Example) -> tuple[View, View]:
    return example.weak, example.strong


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" if len(values) else "–"


def _draw_row(example: Example, side: int, full_weight: float) -> np.ndarray:
    weights = example.weights
    tints = None if weights is None else _FULL_TINT * np.clip(weights / full_weight, 0, 1)
    numbers = _numbers({"s": example.scores, "u": example.quality})
    panels = [
        Panel(example.weak.image, side).pixels,
        _labelled(example.weak, side, numbers),
        Panel(example.strong.image, side).pixels,
        _labelled(example.strong, side, _numbers({"w": weights}), tints, _used(example)),
    ]
    texts = captions(example)
    return np.concatenate([_framed(*pair, side) for pair in zip(panels, texts)], axis=1)


def _numbers(columns: dict[str, np.ndarray | None]) -> list[str]:
    known = {name: values for name, values in columns.items() if values is not None}
    return [
        " ".join(f"{name} {value:.2f}" for name, value in zip(known, row))
        for row in zip(*known.values())
    ]


def _labelled(
    view: View,
    side: int,
    numbers: list[str],
    tints: np.ndarray | None = None,
    used: np.ndarray | None = None,
) -> np.ndarray:
    """A panel with masks, boxes and what is known of each; of unused ones a grey outline."""
    used = np.ones(len(view.masks), bool) if used is None else used
    panel = Panel(view.image, side)
    if tints is None:
        panel.masks(enumerate(view.masks))
    else:
        # The grey ones first, so that they hide none of the others.
        for index in np.argsort(used, kind="stable").tolist():
            color = color_of(index) if used[index] else _UNUSED
            panel.outline(view.masks[index], color, float(tints[index]) if used[index] else 0.0)
    shown = [index for index, mask in enumerate(view.masks) if used[index] and mask.any()]
    xywh = np.concatenate([view.boxes[:, :2], view.boxes[:, 2:] - view.boxes[:, :2]], axis=1)
    panel.boxes((index, xywh[index].tolist()) for index in shown)
    canvas = Image.fromarray(panel.pixels)
    draw = ImageDraw.Draw(canvas)
    for index in shown if numbers else []:
        x0, y0, x1, y1 = view.boxes[index] * panel.scale
        if min(x1 - x0, y1 - y0) >= _SMALLEST:
            # A dark rim keeps the numbers readable on any ground.
            style = {"font": _font(), "stroke_width": 1, "stroke_fill": BLACK}
            draw.text((x0 + 2, y0 + 1), numbers[index], fill=color_of(index), **style)
    return np.array(canvas)


def _framed(pixels: np.ndarray, text: str, side: int) -> np.ndarray:
    """A panel of any shape on a square of white, with a line of text below it."""
    canvas = Image.new("RGB", (side + _GAP, side + _LINE + _GAP), WHITE)
    canvas.paste(Image.fromarray(pixels), (0, 0))
    place = (2, pixels.shape[0] + 1)
    ImageDraw.Draw(canvas).text(place, text, fill=BLACK, font=_font())
    return np.array(canvas)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_FONT_SIZE)
