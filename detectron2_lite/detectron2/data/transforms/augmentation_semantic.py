"""Cropping that looks at the labels of pixels."""

from __future__ import annotations

import numpy as np
from fvcore.transforms.transform import Transform

from .augmentation import Augmentation
from .augmentation_impl import RandomCrop

__all__ = ["RandomCrop_CategoryAreaConstraint"]


class RandomCrop_CategoryAreaConstraint(Augmentation):  # noqa: N801 (upstream's name)
    """A random crop that no single class fills (DeepLab and semantic training).

    Ten crops are tried; if none will do, the last is taken.

    Args:
        crop_type, crop_size: see :class:`RandomCrop`.
        single_category_max_area: the largest class must hold less than this share of the labelled
            pixels, and there must be a second one; 1 takes the first crop as it comes.
        ignored_category: label that does not count.
    """

    _TRIALS = 10

    def __init__(
        self,
        crop_type: str,
        crop_size: tuple,
        single_category_max_area: float = 1.0,
        ignored_category: int | None = None,
    ) -> None:
        self._init(locals())
        self.crop_aug = RandomCrop(crop_type, crop_size)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        """A crop for an image (H, W, C) and its labels (H, W)."""
        crop = self.crop_aug.get_transform(image)
        if self.single_category_max_area >= 1.0:
            return crop
        for _ in range(self._TRIALS - 1):
            if self._is_varied(crop.apply_segmentation(sem_seg)):
                break
            crop = self.crop_aug.get_transform(image)
        return crop

    def _is_varied(self, labels: np.ndarray) -> bool:
        classes, pixels = np.unique(labels, return_counts=True)
        pixels = pixels[classes != self.ignored_category]
        return len(pixels) > 1 and pixels.max() < self.single_category_max_area * pixels.sum()
