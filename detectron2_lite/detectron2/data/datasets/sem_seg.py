"""Semantic segmentation as a folder of images beside a folder of label maps."""

from __future__ import annotations

import logging
import os
from typing import Any

from detectron2.utils.file_io import PathManager

__all__ = ["load_sem_seg"]

logger = logging.getLogger(__name__)


def load_sem_seg(
    gt_root: str, image_root: str, gt_ext: str = "png", image_ext: str = "jpg"
) -> list[dict[str, str]]:
    """Pair the label maps of one folder with the images of another (subfolders are not read).

    With as many maps as images, both are paired in the order of their names, so that names such as
    "x_labels.png" and "x.jpg" are fine. Otherwise only files whose names are equal up to the ending
    are used, and a warning gives the numbers.

    Args:
        gt_ext, image_ext: endings of the file names.

    Returns:
        dicts with "file_name" and "sem_seg_file_name", in the order of the names.

    Raises:
        AssertionError: when there is no label map.
    """
    maps, images = _stems(gt_root, gt_ext), _stems(image_root, image_ext)
    assert maps, f"{gt_root} has no label map whose name ends in {gt_ext}"
    if len(maps) == len(images):
        pairs = list(zip(sorted(images), sorted(maps)))
    else:
        pairs = [(stem, stem) for stem in sorted(images.keys() & maps.keys())]
        logger.warning(
            "%d images in %s, %d label maps in %s: the %d that have the same name are used",
            *(len(images), image_root, len(maps), gt_root, len(pairs)),
        )
    logger.info("%d images with label maps in %s", len(pairs), image_root)
    return [
        {"file_name": images[image], "sem_seg_file_name": maps[label]} for image, label in pairs
    ]


def _stems(folder: str, ending: str) -> dict[str, Any]:
    """Name without its last suffix -> path."""
    names = [name for name in PathManager.ls(folder) if name.endswith(ending)]
    return {os.path.splitext(name)[0]: os.path.join(folder, name) for name in names}
