"""Pictures of annotations and predictions; needs matplotlib, and no window system.

What is drawn stays the same from version to version; how it looks may change.

Legend: N objects, H x W image. Boxes are XYXY in pixels of the image, masks those of `GenericMask`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.catalog import Metadata
from ..structures import BitMasks, Boxes, Instances, PolygonMasks
from ._drawing import Shapes, VisImage, light, random_rgb
from ._generic_mask import GenericMask, to_numpy
from ._mask_outline import part_anchors
from ._object_lists import class_name, common_length, large_first, xyxy
from ._object_lists import create_text_labels as _create_text_labels
from .env import not_in_lite
from .file_io import PathManager

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

OFF_WHITE = (1.0, 1.0, 240 / 255)
# Objects below this many pixels at scale 1 get their label beside the box instead of on it.
SMALL_AREA = 1000
SMALL_HEIGHT = 40
# How far a channel of 0..1 moves; objects of a class are to differ, too.
JITTER = 0.25
DEFAULT_IGNORE_LABEL = 255


@unique
class ColorMode(Enum):
    """How `Visualizer` colours objects."""

    # Every object in a random colour.
    IMAGE = 0
    # Objects of a class in about the same colour, that of the metadata's `thing_colors`.
    SEGMENTATION = 1
    # As IMAGE, and the picture is grey outside the masks.
    IMAGE_BW = 2


def _stored(instances: Instances, field: str) -> Any:
    return instances.get(field) if instances.has(field) else None


class Visualizer(Shapes):
    """Draws data in Detectron2's formats on one image.

    Every method that draws returns `output`, whose `get_image` and `save` give the result.

    Args:
        img_rgb: (H, W, 3) in 0..255, channels as RGB.
        metadata: of the data set: `thing_classes`, `thing_colors`, `stuff_classes` and
            `stuff_colors` are used where they are there.
        scale: size of the result, relative to the image.
        instance_mode: how objects are coloured.
        font_size_scale: factor on the size of all labels.

    Raises:
        ValueError: the image has another shape.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        pixels = to_numpy(img_rgb)
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"Expected an (H, W, 3) RGB image, got the shape {pixels.shape}")
        self.img = np.clip(pixels, 0, 255).astype(np.uint8)
        self.metadata = Metadata(name="none given") if metadata is None else metadata
        self._instance_mode, self.cpu_device = instance_mode, torch.device("cpu")
        self.output = VisImage(self.img, scale)
        # Length of a side, were the image square.
        self._side = math.prod(self._size) ** 0.5
        self._default_font_size = max(self._side // 90, 10 // scale) * font_size_scale

    def get_output(self) -> VisImage:
        """The image with everything drawn so far."""
        return self.output

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw what a detector found.

        Args:
            predictions: with any of `pred_boxes`, `pred_masks`, `pred_classes`, `scores`; boxes
                are left out where there are masks only.
            jittering: in ColorMode.SEGMENTATION, vary the colours within a class.
        """
        if predictions.has("pred_keypoints"):
            not_in_lite("Visualizer.draw_instance_predictions with pred_keypoints")
        classes = _stored(predictions, "pred_classes")
        classes = None if classes is None else to_numpy(classes).tolist()
        names = self.metadata.get("thing_classes")
        labels = _create_text_labels(classes, _stored(predictions, "scores"), names)
        masks = _stored(predictions, "pred_masks")
        if masks is not None:
            masks = self._convert_masks(masks)
        alpha, colors = 0.5, None
        if self._instance_mode is ColorMode.SEGMENTATION and classes is not None:
            colors = self._class_colors(classes, jittering)
            alpha = 0.5 if colors is None else 0.8
        if self._instance_mode is ColorMode.IMAGE_BW:
            alpha, grey = 0.3, self._create_grayscale_image(masks)
            self.output.reset_image(grey)
        return self.overlay_instances(
            boxes=_stored(predictions, "pred_boxes"),
            labels=labels,
            masks=masks,
            assigned_colors=colors,
            alpha=alpha,
        )

    def draw_sem_seg(
        self,
        sem_seg: np.ndarray | Tensor,
        area_threshold: float | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Any = OFF_WHITE,
    ) -> VisImage:
        """Draw a label map, large classes first.

        Args:
            sem_seg: (H, W) integer labels; those beyond `stuff_classes` and the metadata's
                `ignore_label` (255 if unset) are left out.
            area_threshold: parts that enclose fewer pixels are left out; None keeps all.
            alpha: opacity.
            draw_text: write the name of each class.
            edge_color: of the outlines; None takes that of the class.
        """
        label_map = to_numpy(sem_seg)
        names = self.metadata.get("stuff_classes")
        palette = self.metadata.get("stuff_colors")
        labels, areas = np.unique(label_map, return_counts=True)
        limit = None if names is None else len(names)
        for label in labels[np.argsort(-areas, kind="stable")].tolist():
            hidden = label == self.metadata.get("ignore_label", DEFAULT_IGNORE_LABEL)
            if hidden or label < 0 or (limit is not None and label >= limit):
                continue
            known = palette is not None and label < len(palette)
            self.draw_binary_mask(
                label_map == label,
                color=[channel / 255 for channel in palette[label]] if known else None,
                edge_color=edge_color,
                text=class_name(label, names) if draw_text else None,
                alpha=alpha,
                area_threshold=area_threshold,
            )
        return self.output

    def draw_panoptic_seg(
        self,
        panoptic_seg: Tensor,
        segments_info: list[dict] | None,
        area_threshold: float | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Only with upstream Detectron2."""
        return not_in_lite("Visualizer.draw_panoptic_seg")

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """Draw the annotations of one record in Detectron2's standard dataset format.

        Args:
            dic: the record; `annotations` (`bbox` with `bbox_mode`, `segmentation`,
                `category_id`, `iscrowd`) and `sem_seg` or `sem_seg_file_name` are drawn.
        """
        annotations = dic.get("annotations")
        if dic.get("pan_seg_file_name") is not None:
            not_in_lite("Visualizer.draw_dataset_dict with pan_seg_file_name")
        if annotations:
            self._draw_annotations(annotations)
        label_map = dic.get("sem_seg")
        if label_map is None and dic.get("sem_seg_file_name") is not None:
            with PathManager.open(dic["sem_seg_file_name"], "rb") as file:
                label_map = np.asarray(Image.open(file))
        if label_map is not None:
            self.draw_sem_seg(label_map, alpha=0.5, area_threshold=0)
        return self.output

    def _draw_annotations(self, annotations: list[dict]) -> None:
        if any("keypoints" in annotation for annotation in annotations):
            not_in_lite("Visualizer.draw_dataset_dict with keypoints")
        boxes, masks, labels, colors = None, None, None, None
        if all("bbox" in annotation for annotation in annotations):
            boxes = np.array([xyxy(annotation) for annotation in annotations])
        if any("segmentation" in annotation for annotation in annotations):
            masks = [annotation.get("segmentation", []) for annotation in annotations]
        classes = [annotation.get("category_id") for annotation in annotations]
        if any(index is not None for index in classes):
            crowds = [annotation.get("iscrowd", 0) for annotation in annotations]
            names = self.metadata.get("thing_classes")
            labels = _create_text_labels(classes, None, names, crowds)
        if self._instance_mode is ColorMode.SEGMENTATION:
            colors = self._class_colors(classes, jittering=True)
        self.overlay_instances(boxes=boxes, labels=labels, masks=masks, assigned_colors=colors)

    def overlay_instances(
        self,
        *,
        boxes: Boxes | np.ndarray | Tensor | None = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw N objects, large ones first.

        Args:
            boxes: `Boxes` or (N, 4).
            labels: N texts.
            masks: `BitMasks`, `PolygonMasks`, (N, H, W), or N of what `GenericMask` takes.
            keypoints: only with upstream Detectron2.
            assigned_colors: N colours; None picks random ones.
            alpha: opacity of the masks.

        Raises:
            ValueError: the arguments are of different lengths.
        """
        if keypoints is not None:
            not_in_lite("Visualizer.overlay_instances with keypoints")
        corners = None if boxes is None else self._convert_boxes(boxes)
        shapes = None if masks is None else self._convert_masks(masks)
        number = common_length(
            boxes=corners, masks=shapes, labels=labels, assigned_colors=assigned_colors
        )
        colors = assigned_colors
        if colors is None:
            colors = [random_rgb() for _ in range(number)]
        for index in large_first(corners, shapes, number):
            box = None if corners is None else corners[index]
            shape = None if shapes is None else shapes[index]
            if box is not None:
                self.draw_box(box, edge_color=colors[index])
            if shape is not None:
                self._draw_generic_mask(shape, colors[index], alpha)
            if labels is not None:
                self._label_object(labels[index], box, shape, colors[index])
        return self.output

    def _draw_generic_mask(self, shape: GenericMask, color: Any, alpha: float) -> None:
        rings = [polygon.reshape(-1, 2) for polygon in shape.polygons if len(polygon) >= 2]
        edge = self._edge(color, None, alpha)
        # Without holes each polygon is its own surface, since annotators' polygons run either way
        # round; with holes the outlines' directions say what is inside.
        for surface in [rings] if shape.has_holes else [[ring] for ring in rings]:
            self._fill_outlines(surface, color, edge, alpha)

    def _label_object(
        self, text: str, box: np.ndarray | None, shape: GenericMask | None, color: Any
    ) -> None:
        if box is None:
            anchors = part_anchors(shape.mask)
            if not anchors:
                return
            position, alignment, box = anchors[0], "center", shape.bbox()
        else:
            position, alignment = self._label_corner(box), "left"
        _, top, _, bottom = box
        relative_height = (bottom - top) / self._side
        size = float(np.interp(relative_height, (0.035, 0.1), (0.6, 1.0))) * self._default_font_size
        written = self._add_text(text, position, size, light(color, 0.7), alignment)
        self._pull_inside(written)

    def _label_corner(self, box: np.ndarray) -> tuple[float, float]:
        """Upper left corner of a box's label: on a large box, below or right of a small one."""
        left, top, right, bottom = box
        scale = self.output.scale
        height = bottom - top
        if height * (right - left) >= SMALL_AREA * scale and height >= SMALL_HEIGHT * scale:
            return left, top
        return (left, bottom) if bottom < self.output.height - 5 else (right, top)

    def overlay_rotated_instances(
        self, boxes: Any = None, labels: Any = None, assigned_colors: Any = None
    ) -> VisImage:
        """Only with upstream Detectron2."""
        return not_in_lite("Visualizer.overlay_rotated_instances")

    def draw_and_connect_keypoints(self, keypoints: Any) -> VisImage:
        """Only with upstream Detectron2."""
        return not_in_lite("Visualizer.draw_and_connect_keypoints")

    def draw_rotated_box_with_label(
        self,
        rotated_box: Any,
        alpha: float = 0.5,
        edge_color: Any = "g",
        line_style: str = "-",
        label: str | None = None,
    ) -> VisImage:
        """Only with upstream Detectron2."""
        return not_in_lite("Visualizer.draw_rotated_box_with_label")

    def _convert_boxes(self, boxes: Boxes | np.ndarray | Tensor) -> np.ndarray:
        raw = to_numpy(boxes.tensor if isinstance(boxes, Boxes) else boxes)
        if raw.ndim == 2 and raw.shape[1] == 5:
            not_in_lite("Visualizer with rotated boxes")
        return raw.reshape(-1, 4)

    def _convert_masks(self, masks_or_polygons: Any) -> list[GenericMask]:
        several = masks_or_polygons
        if isinstance(several, PolygonMasks):
            several = several.polygons
        elif isinstance(several, BitMasks):
            several = several.tensor
        if isinstance(several, Tensor):
            several = to_numpy(several)
        return [
            one if isinstance(one, GenericMask) else GenericMask(one, *self._size)
            for one in several
        ]

    def _class_colors(
        self, classes: Sequence[int | None], jittering: bool
    ) -> list[Sequence[float]] | None:
        """One colour per object from the metadata; None where it does not cover the classes."""
        palette = self.metadata.get("thing_colors")
        if palette is None or not all(c is not None and 0 <= c < len(palette) for c in classes):
            return None
        colors = [[channel / 255 for channel in palette[index]] for index in classes]
        return [self._jitter(color) for color in colors] if jittering else colors

    def _jitter(self, color: Sequence[float]) -> tuple[float, ...]:
        """A colour nearby, drawn with numpy's global generator."""
        moved = np.asarray(color[:3]) + np.random.uniform(-JITTER, JITTER, size=3)
        return tuple(np.clip(moved, 0.0, 1.0).tolist())

    def _create_grayscale_image(self, masks: Sequence[GenericMask] | None = None) -> np.ndarray:
        """(H, W, 3) uint8: the image in grey, but for what the masks cover."""
        grey = np.repeat(self.img.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
        for shape in masks or ():
            covered = shape.mask != 0
            grey[covered] = self.img[covered]
        return grey
