"""What teacher and student see: a weak view, and a strong one of the same image.

Weak: resize and flip. Labelled: the same, then one of nine colour operations. Strong: resize and
flip, drawn anew; one colour and one geometric operation in random order; erased patches at last.
All random numbers come from numpy's global generator, as in Detectron2's own augmentations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils, transforms

from pais import view_ops
from pseudolabel.errors import DataError

GEOMETRIC_OPS = ("shift_x", "shift_y", "rotate", "shear")


class RandomColour(transforms.Augmentation):
    """One of the colour operations, each as likely, of random magnitude.

    Args:
        image_format: "RGB" or "BGR".
        names: to choose from.
    """

    def __init__(self, image_format: str, names: Sequence[str] = view_ops.COLOUR_OPS):
        super().__init__()
        self.image_format, self.names = image_format, tuple(names)

    def get_transform(self, image: np.ndarray) -> transforms.Transform:
        """The operation on a uint8 image (H, W, 3)."""
        name = self.names[np.random.randint(len(self.names))]
        low, high = view_ops.MAGNITUDES[0], view_ops.MAGNITUDES[-1]
        magnitude = np.random.randint(low, high + 1)
        return view_ops.colour_transform(name, magnitude, self.image_format)


class RandomGeometry(transforms.Augmentation):
    """A shift along x or y, a rotation or a shear, each as likely.

    Args:
        shift: largest shift, as a share of the width or the height.
        rotate: largest angle of a rotation about the centre, degrees.
        shear: largest angle along each axis, degrees (`view_ops.shear`).
        shear_about: what stays in place, the first "corner" or the "centre".
        fill: grey level of what comes from outside.
        names: to choose from.

    Raises:
        ValueError: `shear_about` is something else.
    """

    def __init__(
        self,
        shift: float = 0.1,
        rotate: float = 30.0,
        shear: float = 30.0,
        shear_about: str = "corner",
        fill: int = 125,
        names: Sequence[str] = GEOMETRIC_OPS,
    ):
        super().__init__()
        if shear_about not in ("corner", "centre"):
            raise ValueError(f"a shear is about the 'corner' or the 'centre', not {shear_about!r}")
        self.shift, self.rotate, self.shear = shift, rotate, shear
        self.shear_about, self.fill, self.names = shear_about, fill, tuple(names)

    def get_transform(self, image: np.ndarray) -> transforms.Transform:
        """The operation on an image (H, W, ...)."""
        height, width = image.shape[:2]
        name = self.names[np.random.randint(len(self.names))]
        # Two numbers whatever the operation, so that another choice of them moves no later draw.
        first, second = np.random.uniform(-1.0, 1.0, size=2)
        centre = width / 2, height / 2
        if name == "shift_x":
            matrix = view_ops.translation(first * self.shift * width, 0.0)
        elif name == "shift_y":
            matrix = view_ops.translation(0.0, first * self.shift * height)
        elif name == "rotate":
            matrix = view_ops.about(view_ops.rotation(first * self.rotate), *centre)
        else:
            fixed = centre if self.shear_about == "centre" else (0.0, 0.0)
            matrix = view_ops.about(view_ops.shear(first * self.shear, second * self.shear), *fixed)
        return view_ops.AffineTransform(matrix, self.fill)


class RandomErase(transforms.Augmentation):
    """Some grey patches anywhere in the image, each of the image's shape.

    Args:
        patches: smallest and largest number of them.
        side: largest side of a patch, as a share of the image's.
        fill: grey level.

    Raises:
        ValueError: the numbers make no patches.
    """

    def __init__(self, patches: tuple[int, int] = (1, 4), side: float = 0.2, fill: int = 125):
        super().__init__()
        if not (0 <= patches[0] <= patches[1] and 0 <= side <= 1):
            raise ValueError(f"cannot erase {patches} patches of up to {side} of the image's side")
        self.patches, self.side, self.fill = tuple(patches), side, fill

    def get_transform(self, image: np.ndarray) -> transforms.Transform:
        """The patches for an image (H, W, ...)."""
        height, width = image.shape[:2]
        drawn = []
        for _ in range(np.random.randint(self.patches[0], self.patches[1] + 1)):
            share = np.random.uniform(0.0, self.side)
            rows, columns = int(share * height), int(share * width)
            y0 = np.random.randint(height - rows + 1)
            x0 = np.random.randint(width - columns + 1)
            drawn.append((x0, y0, x0 + columns, y0 + rows))
        return view_ops.EraseTransform(np.array(drawn, dtype=np.int64), self.fill)


class InRandomOrder(transforms.Augmentation):
    """Several augmentations, one after the other, in an order that is drawn for each image.

    Args:
        augmentations: of Detectron2.
    """

    def __init__(self, augmentations: Sequence[transforms.Augmentation]):
        super().__init__()
        self.augmentations = list(augmentations)

    def __call__(self, aug_input: transforms.AugInput) -> transforms.TransformList:
        """Applies them to the input and returns what was applied."""
        order = np.random.permutation(len(self.augmentations))
        return transforms.TransformList([self.augmentations[k](aug_input) for k in order])


@dataclass(frozen=True)
class Views:
    """Augmentations of Detectron2, to be applied in order.

    Attributes:
        crop: of any image, before its views are made of it; both views show the same part.
        labelled, weak, strong: of the views.
    """

    crop: list[transforms.Augmentation]
    labelled: list[transforms.Augmentation]
    weak: list[transforms.Augmentation]
    strong: list[transforms.Augmentation]


def build_views(cfg: CfgNode) -> Views:
    """The views that `MODEL.PAIS.VIEWS` and Detectron2's keys of `INPUT` describe.

    Raises:
        DataError: `INPUT.FORMAT` is neither RGB nor BGR, or a key of VIEWS makes no sense.
    """
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise DataError("INPUT.FORMAT", f"is {cfg.INPUT.FORMAT!r}", "use 'RGB' or 'BGR'")
    keys = cfg.MODEL.PAIS.VIEWS
    if not 0 <= keys.FILL <= 255:
        raise DataError("MODEL.PAIS.VIEWS.FILL", f"is {keys.FILL}", "use a grey level, 0 to 255")
    try:
        erase = RandomErase(tuple(keys.ERASE_PATCHES), keys.ERASE_SIDE, keys.FILL)
    except ValueError as error:
        raise DataError(
            "MODEL.PAIS.VIEWS", str(error), "correct ERASE_PATCHES or ERASE_SIDE"
        ) from error
    geometry = RandomGeometry(keys.SHIFT, keys.ROTATE, keys.SHEAR, fill=keys.FILL)
    colours = [RandomColour(cfg.INPUT.FORMAT)] if keys.COLOUR else []
    shuffled = InRandomOrder([*colours, *([geometry] if keys.GEOMETRIC else [])])
    crop = cfg.INPUT.CROP

    def resize_and_flip() -> list[transforms.Augmentation]:
        return detection_utils.build_augmentation(cfg, True)

    return Views(
        crop=[transforms.RandomCrop(crop.TYPE, crop.SIZE)] if crop.ENABLED else [],
        labelled=[*resize_and_flip(), *colours],
        weak=resize_and_flip(),
        strong=[*resize_and_flip(), shuffled, *([erase] if keys.ERASE else [])],
    )
