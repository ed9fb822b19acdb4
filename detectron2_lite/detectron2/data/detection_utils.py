"""Pieces of a dataset mapper: reading images, transforming annotations, building instances.

Images are (H, W, C) uint8 arrays; annotations are dicts in Detectron2's dataset format.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.structures import (
    BitMasks,
    Boxes,
    BoxMode,
    Instances,
    PolygonMasks,
    polygons_to_bitmask,
)
from detectron2.utils.env import not_in_lite, upstream_only
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from . import transforms as T
from .catalog import MetadataCatalog

__all__ = [
    "SizeMismatchError",
    "annotations_to_instances",
    "build_augmentation",
    "build_transform_gen",
    "check_image_size",
    "check_metadata_consistency",
    "convert_PIL_to_numpy",
    "convert_image_to_rgb",
    "filter_empty_instances",
    "gen_crop_transform_with_instance",
    "get_fed_loss_cls_weights",
    "read_image",
    "transform_instance_annotations",
]

logger = logging.getLogger(__name__)

__getattr__ = upstream_only(
    __name__,
    (
        "annotations_to_instances_rotated",
        "create_keypoint_hflip_indices",
        "transform_proposals",
    ),
)


class SizeMismatchError(ValueError):
    """An image has another size than its dataset dict says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:  # noqa: N802
    """PIL image to array.

    Args:
        format: a PIL mode ("RGB", "L", ...), "BGR", or None for the image's own mode.

    Returns:
        (H, W, C), for "L" with C = 1.
    """
    if format == "YUV-BT.601":
        not_in_lite("the image format YUV-BT.601")
    if format is not None:
        image = image.convert("RGB" if format == "BGR" else format)
    array = np.asarray(image)
    if format == "L":
        return array[:, :, None]
    return array[:, :, ::-1] if format == "BGR" else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """(H, W, C) array or tensor in ``format`` to an (H, W, 3) uint8 RGB array."""
    pixels = image.numpy(force=True) if torch.is_tensor(image) else image
    if format == "YUV-BT.601":
        not_in_lite("the image format YUV-BT.601")
    if format == "BGR":
        return np.flip(pixels, axis=2)
    plane = pixels[:, :, 0] if format == "L" else pixels
    return np.asarray(Image.fromarray(plane.astype(np.uint8)).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image upright, i.e. rotated and flipped as its EXIF data says.

    Returns:
        (H, W, C) uint8, see :func:`convert_PIL_to_numpy`.

    Raises:
        OSError: naming the file, when it cannot be decoded.
    """
    with PathManager.open(file_name, "rb") as stream:
        try:
            image = Image.open(stream)
            image.load()
        except (OSError, SyntaxError) as error:
            raise OSError(f"{file_name}: not a readable image: {error}") from error
        try:
            image = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, TypeError) as error:
            logger.warning("%s: damaged EXIF data, orientation ignored: %s", file_name, error)
        return convert_PIL_to_numpy(image, format)


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare with the dict's "width" and "height", or fill them in where missing.

    Raises:
        SizeMismatchError: naming the file and both sizes.
    """
    height, width = image.shape[:2]
    expected = dataset_dict.get("width", width), dataset_dict.get("height", height)
    if (width, height) != expected:
        raise SizeMismatchError(
            f"{dataset_dict.get('file_name', 'image')} is {width} x {height} (width x height), but "
            f"its dataset record says {expected[0]} x {expected[1]}. Correct the record; if only "
            "EXIF rotation differs, it must state the rotated size."
        )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)


def _corners(annotation: dict[str, Any]) -> Any:
    """The XYXY_ABS box of an annotation, as a sequence of the type that it is stored in."""
    mode = annotation["bbox_mode"]
    return BoxMode.convert(annotation["bbox"], mode, BoxMode.XYXY_ABS)


def _transform_segmentation(
    segmentation: Any, transforms: T.Transform, image_size: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    if isinstance(segmentation, list):
        rings = [np.array(polygon, dtype=np.float64) for polygon in segmentation]
        moved = transforms.apply_polygons([ring.reshape(-1, 2) for ring in rings])
        return [ring.ravel() for ring in moved]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        if tuple(mask.shape[:2]) != tuple(image_size):
            raise ValueError(
                f"a transformed RLE mask is {mask.shape[:2]}, but the image {tuple(image_size)}: "
                "the RLE has another size than its image"
            )
        return mask
    raise ValueError(
        f"cannot transform a segmentation of type {type(segmentation).__name__}; supported are "
        "a list of polygons and a COCO RLE dict"
    )


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: np.ndarray | None = None,
) -> dict[str, Any]:
    """Apply transforms to one annotation, in place.

    Args:
        image_size: (H, W) of the transformed image.

    Returns:
        the annotation, with "bbox" as float XYXY_ABS clipped to the image, and "segmentation" as
        polygons (list of flat arrays), or for an RLE as an (H, W) uint8 mask.

    Raises:
        ValueError: for a segmentation of another kind, or an RLE that does not fit.
    """
    if isinstance(transforms, Sequence):
        transforms = T.TransformList(list(transforms))
    (after,) = transforms.apply_box(np.array([_corners(annotation)]))
    limits = np.tile(image_size[::-1], 2)
    annotation.update(bbox=after.clip(0, limits), bbox_mode=BoxMode.XYXY_ABS)
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(
            annotation["segmentation"], transforms, image_size
        )
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def transform_keypoint_annotations(
    keypoints: Any,
    transforms: T.Transform | T.TransformList,
    image_size: tuple[int, int],
    keypoint_hflip_indices: np.ndarray | None = None,
) -> np.ndarray:
    """Apply transforms to the keypoints of one instance.

    Args:
        keypoints: (K, 3) or 3 K numbers: x, y in pixels and visibility (0 is "not labelled").
        image_size: (H, W) of the transformed image.
        keypoint_hflip_indices: (K,) the keypoint that each becomes in a mirrored image.

    Returns:
        (K, 3) float64; a keypoint that is not labelled, or falls outside, is all zeros.

    Raises:
        ValueError: the image is mirrored, and the indices are missing or not K.
    """
    points = np.array(keypoints, np.float64).reshape(-1, 3)
    moved = transforms.apply_coords(points[:, :2].copy())
    height, width = image_size
    seen = ((moved >= 0) & (moved <= (width, height))).all(axis=1) & (points[:, 2] > 0)
    points = np.where(seen[:, None], np.column_stack([moved, points[:, 2]]), 0.0)
    steps = getattr(transforms, "transforms", [transforms])
    if sum(isinstance(step, T.HFlipTransform) for step in steps) % 2 == 0:
        return points
    if keypoint_hflip_indices is None or len(keypoint_hflip_indices) != len(points):
        raise ValueError(
            f"mirroring {len(points)} keypoints needs as many keypoint_hflip_indices, "
            f"got {keypoint_hflip_indices}"
        )
    return points[np.asarray(keypoint_hflip_indices)]


def _to_bitmap(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    if isinstance(segmentation, np.ndarray):
        if segmentation.ndim != 2:
            raise ValueError(f"a mask must be (H, W), got shape {segmentation.shape}")
        return segmentation
    raise ValueError(
        f"cannot make a bitmask from {type(segmentation).__name__}; supported are polygons, a "
        "COCO RLE dict and an (H, W) array"
    )


def annotations_to_instances(
    annos: Sequence[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Transformed annotations of one image as the model's ``instances``.

    Args:
        image_size: (H, W). mask_format: "polygon" or "bitmask".

    Returns:
        Instances with gt_boxes, gt_classes (int64), and gt_masks if the first annotation has a
        segmentation.

    Raises:
        ValueError: for segmentations that the mask format cannot hold.
    """
    boxes = np.array([_corners(annotation) for annotation in annos]).reshape(-1, 4)
    classes = [int(annotation["category_id"]) for annotation in annos]
    fields = {"gt_boxes": Boxes(boxes), "gt_classes": torch.tensor(classes, dtype=torch.int64)}
    if annos and "segmentation" in annos[0]:
        shapes = [annotation["segmentation"] for annotation in annos]
        fields["gt_masks"] = _to_masks(shapes, image_size, mask_format)
    return Instances(image_size, **fields)


def _to_masks(
    shapes: list[Any], image_size: tuple[int, int], mask_format: str
) -> PolygonMasks | BitMasks:
    if mask_format == "polygon":
        try:
            return PolygonMasks(shapes)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "not all segmentations are polygons, which INPUT.MASK_FORMAT polygon needs; set "
                f"it to bitmask for RLE and array masks ({error})"
            ) from error
    if mask_format == "bitmask":
        return BitMasks(np.stack([_to_bitmap(shape, image_size) for shape in shapes]))
    raise ValueError(f'mask_format must be "polygon" or "bitmask", got {mask_format!r}')


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Keep instances whose box is wider and higher than a threshold and whose mask is not empty.

    Args:
        return_mask: also return the (N,) bool tensor of what was kept.
    """
    if not (by_box or by_mask):
        raise ValueError("choose at least one of by_box and by_mask")
    keep = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        keep &= instances.gt_boxes.nonempty(threshold=box_threshold).cpu()
    if by_mask and instances.has("gt_masks"):
        keep &= instances.gt_masks.nonempty().cpu()
    return (instances[keep], keep) if return_mask else instances[keep]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict[str, Any]
) -> T.CropTransform:
    """A random crop that contains the centre of an instance's box.

    Args:
        crop_size, image_size: (h, w). instance: an annotation.

    Raises:
        AssertionError: when the box is centred outside the image, or the crop does not fit.
    """
    crop, image = np.array([crop_size, image_size], dtype=int)
    x0, y0, x1, y1 = _corners(instance)
    centre = np.array([(y0 + y1) * 0.5, (x0 + x1) * 0.5])
    assert (image >= centre).all(), f"the box {instance['bbox']} is centred outside the image"
    assert (image >= crop).all(), f"a crop of {crop_size} does not fit {image_size}"
    low = np.clip(np.floor(centre).astype(int) - crop, 0, image - crop)
    high = np.clip(np.ceil(centre).astype(int), 0, image - crop)
    top, left = (int(np.random.randint(a, b + 1)) for a, b in zip(low, high))
    return T.CropTransform(left, top, int(crop[1]), int(crop[0]))


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """All datasets must have the same metadata under a key.

    Raises:
        AttributeError: when one has none. ValueError: when two differ.
    """
    if not dataset_names:
        return
    first, *others = dataset_names
    expected = getattr(MetadataCatalog.get(first), key)
    for name in others:
        found = getattr(MetadataCatalog.get(name), key)
        if found != expected:
            raise ValueError(
                f"'{key}' differs between joined datasets: {first} has {expected}, {name} {found}"
            )


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Resize by the INPUT keys, and for training a flip by INPUT.RANDOM_FLIP."""
    keys = cfg.INPUT
    if not is_train:
        return [T.ResizeShortestEdge(keys.MIN_SIZE_TEST, keys.MAX_SIZE_TEST, "choice")]
    resize = T.ResizeShortestEdge(
        keys.MIN_SIZE_TRAIN, keys.MAX_SIZE_TRAIN, keys.MIN_SIZE_TRAIN_SAMPLING
    )
    if keys.RANDOM_FLIP == "none":
        return [resize]
    flips = {way: way == keys.RANDOM_FLIP for way in ("horizontal", "vertical")}
    return [resize, T.RandomFlip(**flips)]


build_transform_gen = build_augmentation


def get_fed_loss_cls_weights(
    dataset_names: str | Sequence[str], freq_weight_power: float = 1.0
) -> torch.Tensor:
    """Chance of each class to be sampled, unnormalised: its images to the power.

    Args:
        dataset_names: data sets, all with the same metadata "class_image_count": a list with
            ``{"id": ..., "image_count": ...}`` for every class.
        freq_weight_power: 0 makes all classes equal, 1 takes the counts themselves.

    Returns:
        (K,) float, in the order of the ids.

    Raises:
        AttributeError: for a data set without the counts. Upstream knows those of LVIS by heart;
            here they come with the data.
    """
    names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    if not names:
        raise ValueError(
            "The federated loss needs the class frequencies of the data: name it in DATASETS.TRAIN"
        )
    for name in names:
        if getattr(MetadataCatalog.get(name), "class_image_count", None) is None:
            raise AttributeError(
                f"Data set '{name}' has no metadata 'class_image_count', which the federated loss "
                f"needs: set MetadataCatalog.get('{name}').class_image_count to a list of "
                '{"id": category id, "image_count": number of images with it}, as an LVIS JSON '
                "has them in its categories"
            )
    check_metadata_consistency("class_image_count", names)
    rows = sorted(MetadataCatalog.get(names[0]).class_image_count, key=lambda row: row["id"])
    counts = torch.tensor([row["image_count"] for row in rows], dtype=torch.float32)
    return counts**freq_weight_power
