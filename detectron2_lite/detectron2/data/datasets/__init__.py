"""Dataset formats."""

from detectron2.utils.env import upstream_only

from . import builtin as _builtin
from .coco import convert_to_coco_dict, convert_to_coco_json, load_coco_json, load_sem_seg
from .lvis import get_lvis_instances_meta, load_lvis_json, register_lvis_instances
from .register_coco import register_coco_instances

__all__ = [
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "get_lvis_instances_meta",
    "load_coco_json",
    "load_lvis_json",
    "load_sem_seg",
    "register_coco_instances",
    "register_lvis_instances",
]

__getattr__ = upstream_only(
    __name__,
    (
        "load_voc_instances",
        "register_coco_panoptic",
        "register_coco_panoptic_separated",
        "register_pascal_voc",
    ),
)
