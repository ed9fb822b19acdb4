"""Dataset dicts to model input: boxes stay as given, and no instance is lost without being counted.

Boxes move with the image and are cut at its border. Detectron2's own mapper draws new boxes around
cropped masks and drops what has become empty. Here a mask of one pixel survives being scaled down,
and only what lies outside of a crop is left out.
"""

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils, transforms
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from pseudolabel.errors import DataError
from pseudolabel.masks import decode_segmentation

FLIPS = ("none", "horizontal", "vertical")


class InstanceMapper:
    """Image and instances of a training record, augmented together.

    Args:
        augmentations: of Detectron2.
        image_format: channel order of the model's input, "BGR" or "RGB".
    """

    def __init__(self, augmentations: list, image_format: str):
        self.augmentations = transforms.AugmentationList(augmentations)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "InstanceMapper":
        """With the augmentations of `INPUT`."""
        return cls(build_augmentations(cfg), cfg.INPUT.FORMAT)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record without `annotations` but with what the model takes.

        Args:
            record: Detectron2 dataset dict; annotations have a segmentation, and perhaps `weight`.

        Returns:
            The record's other keys, `image` (uint8 tensor, 3, h, w), `instances` with gt_boxes,
            gt_classes, gt_masks (`BitMasks`) and gt_weights, and three counts of what is left out:
            `lost_instances` that lie outside of the crop, `empty_instances` whose mask has no pixel
            in the file either, and `crowds`, which are not trained on.
        """
        record = copy.copy(record)
        pixels = detection_utils.read_image(record["file_name"], format=self.image_format)
        detection_utils.check_image_size(record, pixels)
        source_size = pixels.shape[:2]
        augmented = transforms.AugInput(pixels)
        change = self.augmentations(augmented)
        pixels = augmented.image
        record["image"] = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        listed = record.pop("annotations")
        annotations = [a for a in listed if not a.get("iscrowd", 0)]
        masks = [decode_segmentation(a["segmentation"], *source_size) for a in annotations]
        drawn = [(a, moved_mask(m, change)) for a, m in zip(annotations, masks) if m.any()]
        kept = [(a, mask) for a, mask in drawn if mask.any()]
        record["instances"] = _instances(kept, change, pixels.shape[:2])
        record["lost_instances"] = len(drawn) - len(kept)
        record["empty_instances"] = len(annotations) - len(drawn)
        record["crowds"] = len(listed) - len(annotations)
        return record


def build_augmentations(cfg: CfgNode) -> list:
    """Large-scale jitter where `INPUT.LSJ.SIZE` asks for it, else Detectron2's of training.

    Raises:
        DataError: a key that cannot be obeyed.
    """
    _check_augmentations(cfg)
    jitter = cfg.INPUT.LSJ
    if jitter.SIZE == 0:
        usual = detection_utils.build_augmentation(cfg, True)
        if not cfg.INPUT.CROP.ENABLED:
            return usual
        return [transforms.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE), *usual]
    flips = []
    if cfg.INPUT.RANDOM_FLIP != "none":
        upright = cfg.INPUT.RANDOM_FLIP == "vertical"
        flips = [transforms.RandomFlip(horizontal=not upright, vertical=upright)]
    side = jitter.SIZE
    return [
        *flips,
        transforms.ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, side, side),
        transforms.FixedSizeCrop((side, side)),
    ]


def _check_augmentations(cfg: CfgNode) -> None:
    jitter = cfg.INPUT.LSJ
    if cfg.INPUT.RANDOM_FLIP not in FLIPS:
        flip = cfg.INPUT.RANDOM_FLIP
        raise DataError("INPUT.RANDOM_FLIP", f"{flip!r} is no way to flip", f"use one of {FLIPS}")
    if jitter.SIZE < 0:
        raise DataError("INPUT.LSJ.SIZE", f"{jitter.SIZE} is no size", "use 0 or more pixels")
    if jitter.SIZE == 0:
        return
    if cfg.INPUT.CROP.ENABLED:
        problem = "is True, but large-scale jitter cuts out a square of its own"
        raise DataError("INPUT.CROP.ENABLED", problem, "set it to False, or INPUT.LSJ.SIZE to 0")
    if not 0 < jitter.MIN_SCALE <= jitter.MAX_SCALE:
        problem = f"{jitter.MIN_SCALE} is not between 0 and MAX_SCALE {jitter.MAX_SCALE}"
        raise DataError("INPUT.LSJ.MIN_SCALE", problem, "correct one of the two")


def moved_mask(mask: np.ndarray, change: transforms.Transform) -> np.ndarray:
    """A mask as the augmentation leaves it; empty only where none of it is in the crop.

    Args:
        mask: bool (H, W) of the original image.
        change: what was done to the image.

    Returns:
        bool (h, w). A mask that falls between the pixels of a smaller image keeps the one that its
        middle pixel falls in.
    """
    moved = change.apply_segmentation(mask.astype(np.uint8)) == 1  # padding is 255
    rows, columns = np.nonzero(mask)
    if moved.any() or not len(rows):
        return moved
    # Of its own pixels the one next to the centre of mass, which may lie outside of the mask.
    distance = (rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2
    middle = int(distance.argmin())
    at = change.apply_coords(np.array([[columns[middle] + 0.5, rows[middle] + 0.5]]))[0]
    x, y = (int(np.floor(value)) for value in at)
    if 0 <= y < moved.shape[0] and 0 <= x < moved.shape[1]:
        moved = moved.copy()
        moved[y, x] = True
    return moved


def _instances(kept: list, change: transforms.Transform, size: tuple[int, int]) -> Instances:
    """Kept (annotation, moved mask) pairs on an image of (h, w)."""
    instances = Instances(tuple(size))
    boxes = np.zeros((len(kept), 4))
    for row, (annotation, _) in zip(boxes, kept):
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        row[:] = change.apply_box(np.array([box]))[0]
    instances.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32))
    instances.gt_boxes.clip(size)
    labels = [annotation["category_id"] for annotation, _ in kept]
    instances.gt_classes = torch.tensor(labels, dtype=torch.long)
    weights = [float(annotation.get("weight", 1.0)) for annotation, _ in kept]
    instances.gt_weights = torch.tensor(weights, dtype=torch.float32)
    masks = np.stack([mask for _, mask in kept]) if kept else np.zeros((0, *size), dtype=bool)
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    return instances
