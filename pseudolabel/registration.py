"""`DATASETS.REGISTER`: any COCO JSON becomes a Detectron2 data set, without code."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, guarded_join, read_json

logger = logging.getLogger(__name__)

REQUIRED_KEYS = ("name", "json", "image_root")
IMAGE_KEYS = ("id", "file_name", "height", "width")
ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox")
# Kept in the dataset dicts beside Detectron2's own keys; stock mappers ignore them.
EXTRA_ANNOTATION_KEYS = ["id", "score", "quality", "mask_source"]


def register_datasets(cfg: CfgNode) -> list[str]:
    """Registers every entry of `DATASETS.REGISTER` and settles the number of classes.

    An entry is a mapping with `name`, `json` (path), `image_root` (path) and optionally `format`
    ("coco"). Registering the same entry twice is harmless; the same name for other files is an
    error. With the stock pipeline, whose models have class heads, all data sets must have the same
    list of classes, and `MODEL.ROI_HEADS.NUM_CLASSES` 0 becomes its length.

    Returns:
        The names, in the order of the config.

    Raises:
        DataError: a key is missing, a file does not exist, a name is taken, or class lists differ.
    """
    names = [_register(entry) for entry in cfg.DATASETS.REGISTER]
    _settle_num_classes(cfg)
    return names


def _register(entry: Mapping) -> str:
    missing = [key for key in REQUIRED_KEYS if not entry.get(key)]
    if missing:
        raise DataError(
            "DATASETS.REGISTER", f"an entry has no {', '.join(missing)}: {dict(entry)}", "add it"
        )
    file_format = entry.get("format", "coco")
    if file_format != "coco":
        raise DataError("DATASETS.REGISTER", f"unknown format {file_format!r}", "use 'coco'")
    name = entry["name"]
    json_file, image_root = expand_path(entry["json"]), expand_path(entry["image_root"])
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name)
        if (known.get("json_file"), known.get("image_root")) == (json_file, image_root):
            return name
        raise DataError(
            "DATASETS.REGISTER",
            f"the name {name!r} is taken by {known.get('json_file')}",
            "choose another name",
        )
    if not Path(image_root).is_dir():
        raise DataError("DATASETS.REGISTER", f"no image folder {image_root}", "correct image_root")
    categories = read_categories(json_file)
    DatasetCatalog.register(name, lambda: _load(json_file, image_root, name))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
    )
    return name


def read_categories(json_file: str | Path) -> list[dict]:
    """The `categories` of a COCO JSON sorted by id; the class list of the data set."""
    categories = read_json(json_file).get("categories")
    if not categories:
        raise DataError(json_file, "has no categories", "add the list of classes")
    bad = [c for c in categories if not isinstance(c.get("id"), int) or not c.get("name")]
    if bad:
        raise DataError(json_file, f"category {bad[0]} lacks an integer id or a name", "add it")
    return sorted(categories, key=lambda category: category["id"])


def _load(json_file: str, image_root: str, name: str) -> list[dict]:
    """Dataset dicts of a JSON; images of status "rejected" are left out, with their count logged.

    Raises:
        DataError: an image or annotation lacks a key that every loader needs, or a `file_name`
            leaves the image folder.
    """
    data = read_json(json_file)
    rejected = set()
    for index, image in enumerate(data.get("images", [])):
        _require_keys(json_file, "image", index, image, IMAGE_KEYS)
        if image.get("status") == "rejected":
            rejected.add(image["id"])
        else:
            guarded_join(image_root, image["file_name"], source=json_file)
    for index, annotation in enumerate(data.get("annotations", [])):
        _require_keys(json_file, "annotation", index, annotation, ANNOTATION_KEYS)
    records = load_coco_json(json_file, image_root, name, EXTRA_ANNOTATION_KEYS)
    if not rejected:
        return records
    kept = [record for record in records if record["image_id"] not in rejected]
    logger.warning(
        "%s: left out %d of %d images, whose status is 'rejected'; the reasons stand in the "
        "rejects file of the label job",
        *(json_file, len(records) - len(kept), len(records)),
    )
    return kept


def _require_keys(json_file: str, kind: str, index: int, entry: dict, keys: Sequence[str]) -> None:
    missing = [key for key in keys if entry.get(key) in (None, "", [])]
    if missing:
        record = f"{kind} at position {index}" if "id" in missing else f"{kind} {entry['id']}"
        raise DataError(
            json_file, f"has no {', '.join(missing)}", "add it, or drop the record", record
        )


def _settle_num_classes(cfg: CfgNode) -> None:
    """Counts the classes where the config leaves them open; refuses class lists that differ.

    Predictions of a model with class heads are numbers: the same number must be the same class in
    every data set. A class-agnostic model (any pipeline but the stock one) may mix class lists.
    """
    if cfg.INPUT.PIPELINE != "StockPipeline":
        return
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    lists = {
        name: list(classes)
        for name in names
        if (classes := MetadataCatalog.get(name).get("thing_classes"))
    }
    if not lists:
        return
    first, classes = next(iter(lists.items()))
    for name, others in lists.items():
        if others != classes:
            raise DataError(
                "DATASETS",
                f"the class lists of {first} and {name} differ: {_difference(classes, others)}",
                "give both the same categories, with the same ids",
            )
    frozen = cfg.is_frozen()
    cfg.defrost()
    stated = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if stated == 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(classes)
    elif stated != len(classes):
        raise DataError(
            "MODEL.ROI_HEADS.NUM_CLASSES",
            f"is {stated}, but {first} has {len(classes)} classes",
            "set it to 0 to read it from the data set",
        )
    if frozen:
        cfg.freeze()


def _difference(one: list[str], other: list[str]) -> str:
    """What tells two class lists apart, in a few words (LVIS has 1203 classes)."""
    for index, (left, right) in enumerate(zip(one, other)):
        if left != right:
            return f"class {index} is {left!r} and {right!r}"
    return f"{len(one)} and {len(other)} classes"
