"""Boxes, masks, image batches, and the container that holds what is known of an image."""

from ..utils.env import upstream_only
from .boxes import (
    Boxes,
    BoxMode,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
)
from .image_list import ImageList
from .instances import Instances
from .masks import BitMasks, PolygonMasks, ROIMasks, polygons_to_bitmask

__all__ = [
    "BitMasks",
    "BoxMode",
    "Boxes",
    "ImageList",
    "Instances",
    "PolygonMasks",
    "ROIMasks",
    "matched_pairwise_iou",
    "pairwise_intersection",
    "pairwise_ioa",
    "pairwise_iou",
    "polygons_to_bitmask",
]

__getattr__ = upstream_only(
    __name__,
    [
        "Keypoints",
        "RotatedBoxes",
        "heatmaps_to_keypoints",
        "pairwise_iou_rotated",
        "pairwise_point_box_distance",
        "rasterize_polygons_within_box",
    ],
)
