"""COCO under its usual names, below the folder DETECTRON2_DATASETS (default ``./datasets``)."""

from __future__ import annotations

import os

from detectron2.data.catalog import DatasetCatalog

from .register_coco import register_coco_instances

__all__ = ["register_all_coco"]

# dataset name -> (annotation file without ".json", image folder)
_SPLITS = {
    "coco_2014_train": ("instances_train2014", "train2014"),
    "coco_2014_val": ("instances_val2014", "val2014"),
    "coco_2014_minival": ("instances_minival2014", "val2014"),
    "coco_2014_valminusminival": ("instances_valminusminival2014", "val2014"),
    "coco_2017_train": ("instances_train2017", "train2017"),
    "coco_2017_val": ("instances_val2017", "val2017"),
    "coco_2017_val_100": ("instances_val2017_100", "val2017"),
}


def register_all_coco(root: str) -> None:
    """Register COCO's splits; nothing is read until a dataset is used.

    Unlike upstream, class names are known only once the annotation file has been read.
    """
    base = os.path.join(root, "coco")
    for name, (stem, folder) in _SPLITS.items():
        if name not in DatasetCatalog:
            annotations = os.path.join(base, "annotations", f"{stem}.json")
            register_coco_instances(name, {}, annotations, os.path.join(base, folder))


_ROOT = os.environ.get("DETECTRON2_DATASETS", "datasets")
register_all_coco(os.path.expanduser(_ROOT))
