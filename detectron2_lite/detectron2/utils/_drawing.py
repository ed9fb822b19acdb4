"""The canvas that `Visualizer` draws on, and the shapes that it knows how to draw.

Positions are image pixels: (0, 0) is the outer corner of the first pixel, x goes right, y down.
Colours are whatever matplotlib takes: a name, a hex string, or RGB(A) in [0, 1].
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ._generic_mask import GenericMask, to_numpy
from ._mask_outline import is_hole, part_anchors, trace_outlines, without_specks
from .colormap import random_color

try:
    import matplotlib.colors as mpl_colors
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, PathPatch, Polygon, Rectangle
    from matplotlib.path import Path
except ImportError as error:
    raise ImportError(
        "detectron2.utils.visualizer draws with matplotlib, which is not installed: "
        "pip install matplotlib"
    ) from error

__all__ = ["Shapes", "VisImage", "light", "random_rgb"]

Color = Any

# Weights of R, G, B in perceived brightness (ITU-R BT.601), and the least that text has.
LUMA = (0.299, 0.587, 0.114)
MIN_TEXT_LUMA = 0.6


class VisImage:
    """An image with drawings on it.

    Args:
        img: (H, W, 3) RGB, 0..255.
        scale: size of the result, relative to the image.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.height, self.width = img.shape[:2]
        self.scale, self.img = scale, img
        # The small addends keep products such as 0.29 * 100 from falling below their whole number.
        columns = max(int(self.width * scale + 1e-6), 1)
        rows = max(int(self.height * scale + 1e-6), 1)
        # Some versions of matplotlib cut inches * dpi down to whole pixels: a quarter of a pixel
        # keeps rounding errors from costing one. The axes then span the whole pixels only.
        spare = 0.25
        size = np.array([columns + spare, rows + spare])
        self.fig = Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        self.fig.set_size_inches(size / self.dpi)
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, columns / size[0], rows / size[1]))
        self.ax.axis("off")
        self.ax.set(xlim=(0, self.width), ylim=(self.height, 0), autoscale_on=False)
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Put another (H, W, 3) picture of the same size behind the drawings."""
        for old in self.ax.images:
            if old.get_gid() == "background":
                old.remove()
        shown = self._show(np.clip(img, 0, 255).astype(np.uint8))
        shown.set(gid="background", zorder=-1)

    def _show(self, pixels: np.ndarray) -> Any:
        """Add an (H, W, 3 or 4) picture that covers the canvas."""
        return self.ax.imshow(
            pixels,
            extent=(0, self.width, self.height, 0),
            aspect="auto",
            # Pixels stay sharp when enlarged; when shrunk, they are averaged.
            interpolation="nearest" if self.scale >= 1 else "antialiased",
        )

    def save(self, filepath: str | os.PathLike) -> None:
        """Write a file in the format that its suffix names: png, jpg, pdf, svg, ..."""
        self.fig.savefig(os.fspath(filepath), dpi=self.dpi)

    def get_image(self) -> np.ndarray:
        """(scale * H, scale * W, 3) uint8 RGB, both sides rounded down."""
        self.canvas.draw()
        return np.array(self.canvas.buffer_rgba())[:, :, :3]


def light(color: Color, amount: float) -> tuple[float, float, float]:
    """Move a colour towards white (amount in 0..1) or black (-1..0) by a share of its lightness."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*mpl_colors.to_rgb(color))
    return colorsys.hls_to_rgb(hue, min(max(lightness * (1 + amount), 0.0), 1.0), saturation)


def _readable_on_black(color: Color) -> np.ndarray:
    rgb = np.asarray(mpl_colors.to_rgb(color))
    luma = float(rgb @ LUMA)
    # Pure blue or a dark red on the dark box could not be read: mix in as much white as it takes.
    white = max(MIN_TEXT_LUMA - luma, 0.0) / (1.0 - luma) if luma < 1 else 0.0
    return rgb + (1.0 - rgb) * white


def random_rgb() -> np.ndarray:
    """A colour of the palette as matplotlib takes it: (3,) in [0, 1]."""
    return random_color(rgb=True, maximum=1)


class Shapes:
    """Single shapes; each method adds one to `output`, and returns `output`."""

    output: VisImage
    _default_font_size: float

    @property
    def _size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.output.img.shape[:2]

    def _stroke(self, share: float) -> float:
        """Width of a line: 1 / share of the text's size, at least a point, times the scale."""
        return max(1, self._default_font_size / share) * self.output.scale

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write on a dark box.

        Args:
            text: what to write.
            position: x, y of the upper edge.
            font_size: in points at scale 1; None takes the one that suits the image.
            color: dark ones are lightened.
            horizontal_alignment: which part of the text is at x: "left", "center" or "right".
            rotation: degrees, against the clock.
        """
        self._add_text(text, position, font_size, color, horizontal_alignment, rotation)
        return self.output

    def _add_text(
        self,
        text: str,
        position: Sequence[float],
        font_size: float | None,
        color: Color,
        horizontal_alignment: str,
        rotation: float = 0,
    ) -> Any:
        size = self._default_font_size if font_size is None else font_size
        return self.output.ax.text(
            float(position[0]),
            float(position[1]),
            text,
            size=size * self.output.scale,
            color=_readable_on_black(color),
            ha=horizontal_alignment,
            va="top",
            rotation=rotation,
            family="sans-serif",
            bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.8, "pad": 0.7},
            # Above every shape, whatever is drawn later.
            zorder=10,
        )

    def draw_box(
        self,
        box_coord: Sequence[float] | np.ndarray | Tensor,
        alpha: float = 0.5,
        edge_color: Color = "g",
        line_style: str = "-",
    ) -> VisImage:
        """Draw the outline of an XYXY box."""
        left, top, right, bottom = (float(value) for value in box_coord)
        outline = Rectangle((left, top), right - left, bottom - top, fill=False)
        outline.set(linestyle=line_style, edgecolor=edge_color, linewidth=self._stroke(4))
        outline.set_alpha(alpha)
        self.output.ax.add_patch(outline)
        return self.output

    def draw_circle(
        self, circle_coord: Sequence[float], color: Color, radius: float = 3
    ) -> VisImage:
        """Draw a filled disc around x, y; the radius is in pixels of the image."""
        center = (float(circle_coord[0]), float(circle_coord[1]))
        self.output.ax.add_patch(Circle(center, radius=float(radius), fill=True, color=color))
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Color,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through points.

        Args:
            x_data: x of the points.
            y_data: y of the points, as many.
            color: of the line.
            linestyle: matplotlib's, such as "-" or "--".
            linewidth: in points at scale 1; None takes one that suits the image.
        """
        width = self._stroke(3) if linewidth is None else linewidth * self.output.scale
        line = Line2D(x_data, y_data, color=color, linestyle=linestyle, linewidth=width)
        self.output.ax.add_line(line)
        return self.output

    def draw_polygon(
        self,
        segment: np.ndarray | Tensor,
        color: Color,
        edge_color: Color | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Fill an (n, 2) polygon of x, y, and draw its edge in `edge_color` or the same colour."""
        patch = Polygon(to_numpy(segment).astype(np.float64).reshape(-1, 2), closed=True)
        self._add_filled(patch, color, self._edge(color, edge_color, alpha), alpha)
        return self.output

    def _edge(self, color: Color, edge_color: Color | None, alpha: float) -> Color:
        if edge_color is not None:
            return mpl_colors.to_rgb(edge_color)
        # An edge in the colour of a nearly opaque surface would not be seen.
        return light(color, -0.7) if alpha > 0.8 else mpl_colors.to_rgb(color)

    def _add_filled(self, patch: Any, color: Color, edge: Color | None, alpha: float) -> None:
        patch.set(
            facecolor=mpl_colors.to_rgba(color, alpha),
            edgecolor="none" if edge is None else edge,
            linewidth=0 if edge is None else self._stroke(15),
            # Snapping to the canvas' pixels would move the edges of a scaled mask.
            snap=False,
        )
        # `add_patch` would walk the whole outline to find data limits, which are fixed here.
        self.output.ax.add_artist(patch)

    def _fill_outlines(
        self, outlines: Sequence[np.ndarray], color: Color, edge: Color | None, alpha: float
    ) -> None:
        """Fill (K, 2) outlines as one surface; those that run the other way round are holes."""
        if len(outlines):
            rings = [Path(np.concatenate([ring, ring[:1]]), closed=True) for ring in outlines]
            patch = PathPatch(Path.make_compound_path(*rings))
            self._add_filled(patch, color, edge, alpha)

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray | Tensor,
        color: Color | None = None,
        *,
        edge_color: Color | None = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float | None = 10,
    ) -> VisImage:
        """Lay a colour over a mask.

        Args:
            binary_mask: (H, W), non-zero is the object.
            color: None picks one at random.
            edge_color: of the outline. Without it the outline gets the mask's colour, unless
                the mask has holes: then it has no outline.
            text: written on the mask's largest part.
            alpha: opacity of the surface.
            area_threshold: parts that enclose fewer pixels are left out.

        Raises:
            ValueError: the mask has another size than the image.
        """
        color = mpl_colors.to_rgb(random_rgb() if color is None else color)
        mask = GenericMask(binary_mask, *self._size).mask != 0
        kept = without_specks(mask, area_threshold or 0)
        outlines = trace_outlines(kept)
        edge = self._edge(color, edge_color, alpha)
        if edge_color is None and any(map(is_hole, outlines)):
            edge = None
        self._fill_outlines(outlines, color, edge, alpha)
        if text is not None:
            self._draw_text_in_mask(kept, text, light(color, 0.7))
        return self.output

    def draw_soft_mask(
        self,
        soft_mask: np.ndarray | Tensor,
        color: Color | None = None,
        *,
        text: str | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Lay a colour over the image, as opaque at each pixel as the mask is strong.

        Args:
            soft_mask: (H, W) in [0, 1].
            color: None picks one at random.
            text: written where the mask is at least 0.5.
            alpha: opacity where the mask is 1.
        """
        color = mpl_colors.to_rgb(random_rgb() if color is None else color)
        strength = to_numpy(soft_mask).astype(np.float32)
        if strength.shape != self._size:
            raise ValueError(f"The mask has the shape {strength.shape}, the image {self._size}")
        overlay = np.empty((*strength.shape, 4), dtype=np.float32)
        overlay[..., :3] = color
        overlay[..., 3] = np.clip(strength * alpha, 0, 1)
        # Where a surface would be: over those drawn before it, under lines and text.
        self.output._show(overlay).set_zorder(1)
        if text is not None:
            self._draw_text_in_mask(strength >= 0.5, text, light(color, 0.7))
        return self.output

    def _draw_text_in_mask(self, binary_mask: np.ndarray, text: str, color: Color) -> None:
        for anchor in part_anchors(binary_mask):
            self._pull_inside(self._add_text(text, anchor, None, color, "center"))

    def _pull_inside(self, written: Any) -> None:
        """Move a text that would be cut off at the image's border."""
        extent = written.get_window_extent(self.output.canvas.get_renderer())
        (left, bottom), (right, top) = self.output.ax.transData.inverted().transform(extent)
        x, y = written.get_position()
        x += max(0 - left, 0) or min(self.output.width - right, 0)
        y += max(0 - top, 0) or min(self.output.height - bottom, 0)
        written.set_position((x, y))
