"""Registration of datasets in COCO's instance format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog

from .coco import load_coco_json

__all__ = ["register_coco_instances"]


def register_coco_instances(
    name: str, metadata: Mapping[str, Any], json_file: str, image_root: str
) -> None:
    """Make a COCO JSON file known under a name; it is read when the dataset is first used.

    Args:
        metadata: further metadata, may be empty. image_root: folder of the ``file_name``s.

    Raises:
        AssertionError: when the name is taken, or an argument has the wrong type.
    """
    assert isinstance(name, str), f"the dataset name must be a string, got {name!r}"
    for path in (json_file, image_root):
        assert isinstance(path, (str, os.PathLike)), f"not a path: {path!r}"
    files = {"json_file": json_file, "image_root": image_root}
    # Read when the data set is used, not now.
    DatasetCatalog.register(name, lambda: load_coco_json(**files, dataset_name=name))
    MetadataCatalog.get(name).set(**files, **metadata, evaluator_type="coco")
