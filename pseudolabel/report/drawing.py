"""Masks and boxes drawn over images, as data URIs for a self-contained page.

Shape legend: H, W image rows and columns; h, w those of the panel shown.
"""

import base64
import colorsys
import io
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

# Share of the colour in the fill; low, so that the image stays readable below it.
TINT = 0.28
# Consecutive hues far apart (golden ratio), so that neighbours differ.
_HUE_STEP = 0.618034
_JPEG_QUALITY = 88
_LUMA = np.array([0.299, 0.587, 0.114])
_MIN_LUMA = 0.55
Color = tuple[int, int, int]
# Of Okabe and Ito's palette, which people tell apart with any kind of colour vision.
ORANGE, SKY_BLUE = (230, 159, 0), (86, 180, 233)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
_DASH = 6


def color_of(index: int) -> Color:
    """A strong colour for an instance; the same index has the same colour in every panel."""
    rgb = np.array(colorsys.hsv_to_rgb(index * _HUE_STEP % 1.0, 0.9, 1.0))
    luma = rgb @ _LUMA
    # Pure blue and violet drown in dark images and in stained tissue: lighten them.
    white = max(0.0, (_MIN_LUMA - luma) / (1 - luma))
    return tuple(round(255 * part) for part in rgb + white * (1 - rgb))


class Panel:
    """A part of an image at display size, to draw on.

    Args:
        image: uint8 (H, W, 3), RGB.
        side: longer side of the panel in pixels.
        window: (x0, y0, x1, y1) whole image pixels to show; None shows everything.
    """

    def __init__(
        self, image: np.ndarray, side: int, window: tuple[int, int, int, int] | None = None
    ):
        self.window = window or (0, 0, image.shape[1], image.shape[0])
        x0, y0, x1, y1 = self.window
        self.scale = side / max(x1 - x0, y1 - y0)
        self.size = max(1, round((x1 - x0) * self.scale)), max(1, round((y1 - y0) * self.scale))
        shown = Image.fromarray(image[y0:y1, x0:x1]).resize(self.size, Image.Resampling.BICUBIC)
        self.pixels = np.array(shown)

    def masks(self, masks: Iterable[tuple[int, np.ndarray]]) -> "Panel":
        """Tints and outlines (colour index, bool (H, W)) masks; returns the panel."""
        x0, y0, x1, y1 = self.window
        for index, mask in masks:
            part = Image.fromarray(mask[y0:y1, x0:x1].astype(np.uint8))
            self._paint(np.array(part.resize(self.size, Image.Resampling.NEAREST)) > 0, index)
        return self

    def _paint(self, inside: np.ndarray, index: int) -> None:
        """Paints one mask (h, w); only its bounding rectangle is touched."""
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if not len(rows):
            return
        area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        inside, color = inside[area], np.array(color_of(index), dtype=np.float32)
        pixels = self.pixels[area]
        pixels[inside] = (1 - TINT) * pixels[inside] + TINT * color
        pixels[inside & ~_eroded(inside)] = color

    def outline(self, mask: np.ndarray, color: Color, tint: float = 0.0) -> "Panel":
        """Draws a mask, bool (H, W), as a line two pixels wide in a dark border, so that it shows
        on any ground; `tint` is the share of the colour within. Returns the panel."""
        x0, y0, x1, y1 = self.window
        part = Image.fromarray(mask[y0:y1, x0:x1].astype(np.uint8))
        inside = np.array(part.resize(self.size, Image.Resampling.NEAREST)) > 0
        paint = np.array(color, dtype=np.float32)
        self.pixels[inside] = (1 - tint) * self.pixels[inside] + tint * paint
        core = _eroded(_eroded(inside))
        outer = np.pad(inside, 1, mode="edge")
        border = ~inside & ~_eroded(~outer)[1:-1, 1:-1]
        self.pixels[border] = self.pixels[border] // 2
        self.pixels[inside & ~core] = color
        return self

    def frame(self, box: list[float]) -> "Panel":
        """Draws one XYWH box in image pixels as a frame of black and white dashes, which no mask
        colour resembles; returns the panel."""
        x, y, width, height = box
        left, top = (x - self.window[0]) * self.scale, (y - self.window[1]) * self.scale
        right, bottom = left + width * self.scale - 1, top + height * self.scale - 1
        rows = np.clip([round(top), round(bottom)], 0, self.size[1] - 1)
        columns = np.clip([round(left), round(right)], 0, self.size[0] - 1)
        for row in rows:
            span = np.arange(columns[0], columns[1] + 1)
            self.pixels[row, span] = _dashes(span)
        for column in columns:
            span = np.arange(rows[0], rows[1] + 1)
            self.pixels[span, column] = _dashes(span)
        return self

    def boxes(self, boxes: Iterable[tuple[int, list[float]]]) -> "Panel":
        """Draws (colour index, XYWH box in image pixels) as thin frames; returns the panel."""
        canvas = Image.fromarray(self.pixels)
        draw = ImageDraw.Draw(canvas)
        for index, (x, y, width, height) in boxes:
            left, top = (x - self.window[0]) * self.scale, (y - self.window[1]) * self.scale
            right, bottom = left + width * self.scale - 1, top + height * self.scale - 1
            corners = (left, top, max(left, right), max(top, bottom))
            draw.rectangle(corners, outline=color_of(index))
        self.pixels = np.array(canvas)
        return self

    def uri(self, quality: int = _JPEG_QUALITY) -> str:
        """The panel as a `data:` URI, JPEG without colour subsampling (thin lines stay sharp)."""
        stream = io.BytesIO()
        Image.fromarray(self.pixels).save(stream, format="JPEG", quality=quality, subsampling=0)
        return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _eroded(inside: np.ndarray) -> np.ndarray:
    """Pixels (h, w) whose four neighbours are inside too; what lies off the panel is outside."""
    frame = np.pad(inside, 1)
    near = frame[:-2, 1:-1] & frame[2:, 1:-1] & frame[1:-1, :-2] & frame[1:-1, 2:]
    return inside & near


def _dashes(places: np.ndarray) -> np.ndarray:
    """Colours (n, 3) of the dashes at the given places along a line."""
    return np.where((places // _DASH % 2 == 0)[:, None], np.array(WHITE), np.array(BLACK))


def window_around(box: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    """A window with some surroundings for one XYWH box; whole pixels within the image."""
    x, y, box_width, box_height = box
    margin = 0.3 * max(box_width, box_height) + 4
    x0, y0 = max(0, int(x - margin)), max(0, int(y - margin))
    x1, y1 = int(x + box_width + margin) + 1, int(y + box_height + margin) + 1
    # A box that hangs over the border keeps at least one pixel to show.
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x0 + 1, min(x1, width)), max(y0 + 1, min(y1, height))
