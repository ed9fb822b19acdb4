"""From a dataset dict to the model's input."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.env import not_in_lite

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Reads the image, augments it with its annotations, makes tensors.

    The result is the (copied) dict with "image", (C, H, W) uint8, and in training "instances", or
    "sem_seg", (H, W) int64, where the dataset has them. In testing annotations are dropped.

    Args:
        augmentations: applied in order. image_format: as :func:`read_image` understands it.
        use_instance_mask: keep masks. instance_mask_format: "polygon" or "bitmask" (needed
            for RLE annotations).
        recompute_boxes: take boxes from the transformed masks, which are tighter after crops.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes needs use_instance_mask")
        if use_keypoint:
            not_in_lite("DatasetMapper with keypoints")
        if precomputed_proposal_topk is not None:
            not_in_lite("DatasetMapper with precomputed proposals")
        self.image_format = image_format
        self.augmentations = T.AugmentationList(augmentations)
        self.recompute_boxes = recompute_boxes
        self.instance_mask_format = instance_mask_format
        self.use_instance_mask = use_instance_mask
        self.is_train = is_train
        # Not used in this build; subclasses may ask for them.
        self.use_keypoint, self.proposal_topk = use_keypoint, precomputed_proposal_topk
        self.keypoint_hflip_indices = keypoint_hflip_indices
        logger.info(
            "Augmentations for %s: %s", "training" if is_train else "inference", augmentations
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from the INPUT keys; a crop comes before everything else."""
        keys, model = cfg.INPUT, cfg.MODEL
        if model.LOAD_PROPOSALS:
            not_in_lite("MODEL.LOAD_PROPOSALS")
        cropped = is_train and keys.CROP.ENABLED
        first = [T.RandomCrop(keys.CROP.TYPE, keys.CROP.SIZE)] if cropped else []
        return {
            "is_train": is_train,
            "image_format": keys.FORMAT,
            "augmentations": first + utils.build_augmentation(cfg, is_train),
            "instance_mask_format": keys.MASK_FORMAT,
            "use_instance_mask": model.MASK_ON,
            "recompute_boxes": cropped and model.MASK_ON,
            "use_keypoint": model.KEYPOINT_ON,
        }

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        """Replace "annotations" by "instances". Crowd regions and empty instances are left out."""
        annotations = []
        for annotation in dataset_dict.pop("annotations"):
            if annotation.get("iscrowd", 0) != 0:
                continue
            annotation.pop("keypoints", None)
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            annotations.append(
                utils.transform_instance_annotations(annotation, transforms, image_shape)
            )
        objects = utils.annotations_to_instances(
            annotations, image_shape, self.instance_mask_format
        )
        if self.recompute_boxes and objects.has("gt_masks"):
            objects.gt_boxes = objects.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(objects)

    def _read(self, record: dict[str, Any]) -> T.AugInput:
        """The image of a record, of the size that the record says, and its label map if any."""
        image = utils.read_image(record["file_name"], self.image_format)
        utils.check_image_size(record, image)
        if "sem_seg_file_name" not in record:
            return T.AugInput(image)
        label_map = utils.read_image(record.pop("sem_seg_file_name"), "L")
        return T.AugInput(image, sem_seg=label_map[:, :, 0])

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, which is not changed.

        Raises:
            SizeMismatchError: when the image is not as large as the dict says.
            ValueError: naming the image, for annotations that cannot be used.
        """
        record = copy.deepcopy(dataset_dict)
        augmented = self._read(record)
        transforms = self.augmentations(augmented)
        # Copied into one block: loader workers pass tensors by shared memory.
        channels_first = np.ascontiguousarray(np.moveaxis(augmented.image, 2, 0))
        record["image"] = torch.from_numpy(channels_first)
        if not self.is_train:
            record.pop("annotations", None)
            return record
        if augmented.sem_seg is not None:
            record["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
        if "annotations" in record:
            try:
                self._transform_annotations(record, transforms, augmented.image.shape[:2])
            except ValueError as error:
                raise ValueError(f"{record['file_name']}: {error}") from error
        return record
