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
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        mode = "training" if is_train else "inference"
        logger.info("Augmentations for %s: %s", mode, augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from the INPUT keys; a crop comes before everything else."""
        augmentations = utils.build_augmentation(cfg, is_train)
        crop = cfg.INPUT.CROP.ENABLED and is_train
        if crop:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        if cfg.MODEL.LOAD_PROPOSALS:
            not_in_lite("MODEL.LOAD_PROPOSALS")
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": crop and cfg.MODEL.MASK_ON,
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
        instances = utils.annotations_to_instances(
            annotations, image_shape, mask_format=self.instance_mask_format
        )
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, which is not changed.

        Raises:
            SizeMismatchError: when the image is not as large as the dict says.
            ValueError: naming the image, for annotations that cannot be used.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        sem_seg = None
        if "sem_seg_file_name" in dataset_dict:
            sem_seg = utils.read_image(dataset_dict.pop("sem_seg_file_name"), "L").squeeze(2)
        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        image, sem_seg = aug_input.image, aug_input.sem_seg
        # Copied into one block: loader workers pass tensors by shared memory.
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.is_train:
            dataset_dict.pop("annotations", None)
            return dataset_dict
        if sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(sem_seg.astype("long"))
        if "annotations" in dataset_dict:
            try:
                self._transform_annotations(dataset_dict, transforms, image.shape[:2])
            except ValueError as error:
                raise ValueError(f"{dataset_dict['file_name']}: {error}") from error
        return dataset_dict
