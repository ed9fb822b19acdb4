"""What `Visualizer` has to know of N objects before it draws them: labels, boxes, order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..structures import BoxMode
from ._generic_mask import GenericMask
from .env import not_in_lite

__all__ = ["class_name", "common_length", "create_text_labels", "large_first", "xyxy"]


def create_text_labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | Tensor | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[int] | None = None,
) -> list[str] | None:
    """Labels such as "cat 97%" or "cat|crowd"; None without classes and scores."""
    columns: list[list[str]] = []
    if classes is not None:
        columns.append([class_name(index, class_names) for index in classes])
    if scores is not None:
        columns.append([f"{float(score * 100):.0f}%" for score in scores])
    if not columns:
        return None
    labels = [" ".join(filter(None, words)) for words in zip(*columns)]
    if is_crowd is not None:
        labels = [label + "|crowd" * bool(crowd) for label, crowd in zip(labels, is_crowd)]
    return labels


def class_name(index: int | None, names: Sequence[str] | None) -> str:
    """The class's name, or its number where there is no name; empty for None."""
    if index is None:
        return ""
    return names[index] if names is not None and 0 <= index < len(names) else str(int(index))


def xyxy(annotation: dict) -> Sequence[float]:
    """The box of an annotation in the standard dataset format, as XYXY."""
    if len(annotation["bbox"]) == 5:
        not_in_lite("Visualizer with rotated boxes")
    mode = annotation.get("bbox_mode", BoxMode.XYXY_ABS)
    return BoxMode.convert(annotation["bbox"], mode, BoxMode.XYXY_ABS)


def common_length(**parts: Sequence | None) -> int:
    """N, which all given lists must have; raises ValueError naming those that differ."""
    lengths = {name: len(part) for name, part in parts.items() if part is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Things to draw differ in number: {lengths}")
    number = next(iter(lengths.values()), 0)
    if number and "boxes" not in lengths and "masks" not in lengths:
        raise ValueError("Objects need boxes or masks to be drawn")
    return number


def large_first(
    corners: np.ndarray | None, shapes: list[GenericMask] | None, number: int
) -> list[int]:
    """Indices of N objects by falling area of their boxes, or else of their masks."""
    areas = np.zeros(number)
    if corners is not None and number:
        areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    elif shapes is not None and number:
        areas = np.array([shape.area() for shape in shapes])
    return np.argsort(-areas, kind="stable").tolist()
