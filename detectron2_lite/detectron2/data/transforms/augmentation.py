"""Augmentations: random policies that, given the data, decide on a deterministic transform."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


def _check_image(image: Any) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image must be a numpy array, got {type(image).__name__}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"an image must be uint8 or float, got {image.dtype}")
    if image.ndim not in (2, 3):
        raise ValueError(f"an image must be (H, W) or (H, W, C), got shape {image.shape}")


class Augmentation:
    """Base class; subclasses define ``get_transform``.

    The names of ``get_transform``'s parameters select what is passed: attributes of the
    :class:`AugInput`, such as ``image``, ``boxes``, ``sem_seg``. A single parameter, whatever its
    name, is the image. Random numbers come from numpy's global generator.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Keep constructor arguments (``locals()``) as attributes."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Decide on a transform for the data given."""
        raise NotImplementedError

    def _wanted(self) -> tuple[str, ...]:
        if self.input_args is None:
            parameters = inspect.signature(self.get_transform).parameters
            if len(parameters) == 1:
                self.input_args = ("image",)
            else:
                if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
                    raise TypeError(
                        f"{type(self).__name__}.get_transform must name its arguments, or the "
                        "class override __call__"
                    )
                self.input_args = tuple(parameters)
        return self.input_args

    def __call__(self, aug_input: AugInput) -> Transform:
        """Choose a transform, apply it to the input in place, and return it.

        Raises:
            AttributeError: when the input lacks something that ``get_transform`` asks for.
        """
        values = []
        for name in self._wanted():
            if not hasattr(aug_input, name):
                raise AttributeError(
                    f"{type(self).__name__}.get_transform needs '{name}', which the input "
                    f"({type(aug_input).__name__}) does not have"
                )
            values.append(getattr(aug_input, name))
        transform = self.get_transform(*values)
        if not isinstance(transform, (Transform, TransformList)):
            raise TypeError(f"{type(self).__name__}.get_transform returned {transform!r}")
        aug_input.transform(transform)
        return transform

    def _rand_range(
        self, low: float = 1.0, high: float | None = None, size: int | None = None
    ) -> Any:
        """Uniform in [low, high), or in [0, low) if only that is given."""
        bounds = (0, low) if high is None else (low, high)
        return np.random.uniform(*bounds, size=[] if size is None else size)

    def __repr__(self) -> str:
        """The class with those constructor arguments that were given."""
        parts = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if name == "self":
                continue
            if not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            # Not `==`: what the caller stated is shown, even where it equals the default.
            if value is parameter.default:
                continue
            parts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    __str__ = __repr__


class _Fixed(Augmentation):
    """A transform dressed as an augmentation."""

    input_args = ()

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Augmentation | Transform) -> Augmentation:
    """Wrap transforms; augmentations come back as they are."""
    if isinstance(tfm_or_aug, Augmentation):
        return tfm_or_aug
    if isinstance(tfm_or_aug, (Transform, TransformList)):
        return _Fixed(tfm_or_aug)
    raise TypeError(f"neither an Augmentation nor a Transform: {tfm_or_aug!r}")


class AugmentationList(Augmentation):
    """Several augmentations or transforms, one after the other on the changed input."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: AugInput) -> TransformList:
        """Apply all, and return what was applied."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """What is transformed together with an image.

    Args:
        image: (H, W) or (H, W, C), uint8 (0..255) or float.
        boxes: (N, 4) float XYXY in pixels. sem_seg: (H, W) integer labels.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        sem_seg: np.ndarray | None = None,
    ) -> None:
        _check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to everything that is there."""
        parts = {
            "image": tfm.apply_image,
            "boxes": tfm.apply_box,
            "sem_seg": tfm.apply_segmentation,
        }
        for name, apply in parts.items():
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, apply(value))

    def apply_augmentations(
        self, augmentations: Sequence[Augmentation | Transform]
    ) -> TransformList:
        """Same as ``AugmentationList(augmentations)(self)``."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: np.ndarray | AugInput
) -> tuple[np.ndarray | AugInput, TransformList]:
    """Augment an image, or an :class:`AugInput`.

    Returns:
        the augmented image (or the same input object), and what was applied.
    """
    if isinstance(inputs, np.ndarray):
        holder = AugInput(inputs)
        transforms = holder.apply_augmentations(augmentations)
        return holder.image, transforms
    return inputs, inputs.apply_augmentations(augmentations)


# Names from before version 0.3, still in use.
apply_transform_gens = apply_augmentations
StandardAugInput = AugInput
TransformGen = Augmentation
