"""The operations of the strong view, each with what it does to pixels, points and masks.

Coordinates are continuous: pixel (row y, column x) covers [x, x + 1) x [y, y + 1) and has its
centre at +0.5. A magnitude m is a whole number from 1 to 9. Numbers are those of the PAIS
configuration. Legend: H, W image rows and columns.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from detectron2.data import transforms
from PIL import Image, ImageEnhance, ImageOps

MAGNITUDES = range(1, 10)


def solarize_threshold(magnitude: int) -> float:
    """Levels from this one on are inverted."""
    return 25.6 * magnitude


def enhance_factor(magnitude: int) -> float:
    """Share of the image in its blend with the degenerate one; 1 leaves it as it is."""
    return 0.1 + 0.18 * magnitude


def posterize_bits(magnitude: int) -> int:
    """Bits that each channel keeps: 4 - floor(0.4 m)."""
    return 4 - 2 * magnitude // 5


def _autocontrast(image: Image.Image, magnitude: int) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, magnitude: int) -> Image.Image:
    return ImageOps.equalize(image)


def _solarize(image: Image.Image, magnitude: int) -> Image.Image:
    return ImageOps.solarize(image, solarize_threshold(magnitude))


def _posterize(image: Image.Image, magnitude: int) -> Image.Image:
    return ImageOps.posterize(image, posterize_bits(magnitude))


def _enhance(image: Image.Image, magnitude: int, enhancer: type) -> Image.Image:
    return enhancer(image).enhance(enhance_factor(magnitude))


_COLOUR_FUNCTIONS = {
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "solarize": _solarize,
    "colour": partial(_enhance, enhancer=ImageEnhance.Color),
    "contrast": partial(_enhance, enhancer=ImageEnhance.Contrast),
    "brightness": partial(_enhance, enhancer=ImageEnhance.Brightness),
    "sharpness": partial(_enhance, enhancer=ImageEnhance.Sharpness),
    "posterize": _posterize,
}
COLOUR_OPS = ("identity", *_COLOUR_FUNCTIONS)


def colour_transform(name: str, magnitude: int, image_format: str = "RGB") -> transforms.Transform:
    """One colour operation; it moves nothing.

    Args:
        name: of `COLOUR_OPS`.
        magnitude: of `MAGNITUDES`; "identity", "autocontrast" and "equalize" do not depend on it.
        image_format: order of the channels, "RGB" or "BGR"; grey is a weighted sum of them.

    Returns:
        a transform of uint8 images (H, W, 3).

    Raises:
        ValueError: the magnitude or the format is not one of these.
        KeyError: no operation has this name.
    """
    if magnitude not in MAGNITUDES or image_format not in ("RGB", "BGR"):
        raise ValueError(f"no colour operation of magnitude {magnitude} on {image_format} images")
    if name == "identity":
        return transforms.NoOpTransform()
    function = partial(_COLOUR_FUNCTIONS[name], magnitude=magnitude)
    if image_format == "RGB":
        return transforms.PILColorTransform(function)
    return transforms.ColorTransform(partial(_on_reversed_channels, function=function))


def _on_reversed_channels(
    image: np.ndarray, function: Callable[[Image.Image], Image.Image]
) -> np.ndarray:
    changed = function(Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])))
    return np.asarray(changed)[:, :, ::-1]


def translation(x: float, y: float) -> np.ndarray:
    """Moves points by (x, y) pixels; float64 (3, 3)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def rotation(degrees: float) -> np.ndarray:
    """Turns the x axis towards the y axis about the origin, which is clockwise on the screen."""
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def shear(degrees_x: float, degrees_y: float) -> np.ndarray:
    """Shears along x, then along y, each by the factor tanh of its angle in radians."""
    along_x, along_y = np.eye(3), np.eye(3)
    along_x[0, 1], along_y[1, 0] = np.tanh(np.deg2rad([degrees_x, degrees_y]))
    return along_y @ along_x


def about(matrix: np.ndarray, x: float, y: float) -> np.ndarray:
    """The same map with (x, y) as its fixed point in place of the origin."""
    return translation(x, y) @ matrix @ translation(-x, -y)


class AffineTransform(transforms.Transform):
    """Moves the content of an image over a canvas of the same size.

    Images are sampled bilinearly. What comes from outside of the image has a fixed grey level, and
    is 0 in a segmentation.

    Args:
        matrix: float (3, 3), source point -> target point; invertible, last row (0, 0, 1).
        fill: 0..255.
    """

    def __init__(self, matrix: np.ndarray, fill: int = 0):
        super().__init__()
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.fill = fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """The moved uint8 image (H, W) or (H, W, 3).

        Raises:
            ValueError: it is no uint8 image.
        """
        if img.dtype != np.uint8:
            raise ValueError(f"expected a uint8 image, got {img.dtype} of shape {img.shape}")
        fill = self.fill if img.ndim == 2 else (self.fill,) * img.shape[2]
        return self._warp(img, Image.Resampling.BILINEAR, fill)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Points (N, 2) as x, y."""
        return coords @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Labels (H, W) of the nearest pixels."""
        return self._warp(segmentation, Image.Resampling.NEAREST, 0)

    def inverse(self) -> "AffineTransform":
        """The map back; what has left the canvas stays lost."""
        return AffineTransform(np.linalg.inv(self.matrix), self.fill)

    def _warp(
        self, pixels: np.ndarray, resampling: Image.Resampling, fill: int | tuple[int, ...]
    ) -> np.ndarray:
        # Pillow asks for the way back, and samples at the centres of pixels.
        back = np.linalg.inv(self.matrix)[:2].ravel().tolist()
        image = Image.fromarray(np.ascontiguousarray(pixels))
        moved = image.transform(
            image.size, Image.Transform.AFFINE, back, resample=resampling, fillcolor=fill
        )
        return np.array(moved)


class EraseTransform(transforms.Transform):
    """Paints rectangles of an image grey. Boxes and masks stay: the student is to guess them.

    Args:
        patches: whole numbers (N, 4), x0, y0, x1, y1 in pixels, the last two excluded.
        fill: 0..255.
    """

    def __init__(self, patches: np.ndarray, fill: int):
        super().__init__()
        self.patches = np.asarray(patches, dtype=np.int64).reshape(-1, 4)
        self.fill = fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """A copy with the patches in it."""
        erased = img.copy()
        for x0, y0, x1, y1 in self.patches:
            erased[y0:y1, x0:x1] = self.fill
        return erased

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Unchanged."""
        return segmentation

    def inverse(self) -> transforms.Transform:
        """What is painted over is lost; geometrically there is nothing to undo."""
        return transforms.NoOpTransform()
