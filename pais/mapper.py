"""Dataset dicts to what teacher and student take; all that is random comes from numpy's generator.

A labelled image becomes one view with instances, an unlabelled one a weak and a strong view and the
map between them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, transforms

from pais.mapping import between_views
from pais.views import Views, build_views
from pseudolabel.files import check_image_size, read_image
from pseudolabel.mapper import CheckedMapper


class LabelledMapper:
    """Image and instances of a labelled record in one view, as Detectron2's `DatasetMapper`.

    Args:
        views: augmentations of the view.
        image_format: channel order of the view, "RGB" or "BGR".
        use_masks: whether the instances have masks.
        mask_format: "bitmask", or "polygon".
    """

    @configurable
    def __init__(self, *, views: Views, image_format: str, use_masks: bool, mask_format: str):
        stock = DatasetMapper(
            is_train=True,
            augmentations=[*views.crop, *views.labelled],
            image_format=image_format,
            use_instance_mask=use_masks,
            instance_mask_format=mask_format,
            # A crop cuts objects; their boxes follow the masks then.
            recompute_boxes=bool(views.crop) and use_masks,
        )
        self._mapper = CheckedMapper(stock)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "views": build_views(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "use_masks": cfg.MODEL.MASK_ON,
            "mask_format": cfg.INPUT.MASK_FORMAT,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record with `image` (uint8 tensor, 3 x h x w, channels as INPUT.FORMAT), `instances`
        (gt_boxes, gt_classes, gt_masks, none empty; no crowds) and `labelled`, which is True.

        Raises:
            DataError: the image is missing, unreadable, or not as large as stated.
        """
        return {**self._mapper(record), "labelled": True}


@dataclass(frozen=True)
class TwoViews:
    """Two views of one image and how they were made of it.

    Attributes:
        weak, strong: uint8 (h, w, 3), each of its own size.
        to_weak, to_strong: transforms of the whole image.
        shown: (height, width) of the part of the image that both show.
    """

    weak: np.ndarray
    strong: np.ndarray
    to_weak: transforms.TransformList
    to_strong: transforms.TransformList
    shown: tuple[int, int]


class UnlabelledMapper:
    """The weak and the strong view of an unlabelled record.

    Args:
        views: augmentations of the views.
        image_format: channel order of the views, "RGB" or "BGR".
    """

    @configurable
    def __init__(self, *, views: Views, image_format: str):
        self.views, self.image_format = views, image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"views": build_views(cfg), "image_format": cfg.INPUT.FORMAT}

    def look(self, record: dict[str, Any]) -> TwoViews:
        """Reads the image and draws its views.

        Args:
            record: file_name, image_id, height and width; annotations are not looked at.

        Raises:
            DataError: the image is missing, unreadable, or not as large as stated.
        """
        pixels = read_image(record["file_name"])
        where = f"image {record['image_id']}"
        check_image_size(pixels, record["file_name"], record["height"], record["width"], where)
        if self.image_format == "BGR":
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        pixels, crop = transforms.apply_augmentations(self.views.crop, pixels)
        # Neither view may write into what the other one starts from.
        weak, to_weak = transforms.apply_augmentations(self.views.weak, pixels.copy())
        strong, to_strong = transforms.apply_augmentations(self.views.strong, pixels.copy())
        return TwoViews(weak, strong, crop + to_weak, crop + to_strong, pixels.shape[:2])

    def sample(self, record: dict[str, Any], views: TwoViews) -> dict[str, Any]:
        """What `__call__` returns, from views that are drawn already."""
        height, width = views.shown
        weak_to_strong = between_views(views.to_weak, views.to_strong)
        return {
            **{key: record[key] for key in ("file_name", "image_id", "height", "width")},
            "weak": {"image": _as_tensor(views.weak), "height": height, "width": width},
            "strong": {"image": _as_tensor(views.strong)},
            "weak_to_strong": torch.from_numpy(weak_to_strong),
            "labelled": False,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Both views of the image and the map between them.

        Args:
            record: as of `look`.

        Returns:
            `weak`, a sample that a model of Detectron2 takes: `image` (uint8 tensor, 3 x h x w),
            `height` and `width` of what the view is made of, the image or its crop; `strong`:
            `image`; `weak_to_strong`: float64 tensor (3, 3), see `pais.mapping`; the record's four
            keys; and `labelled`, which is False.

        Raises:
            DataError: as of `look`.
        """
        return self.sample(record, self.look(record))


def _as_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) to a tensor of its own (3, H, W)."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
