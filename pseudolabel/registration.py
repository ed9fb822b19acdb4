"""`DATASETS.REGISTER`: any COCO JSON becomes a Detectron2 data set, without code."""

from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, guarded_join, read_json

REQUIRED_KEYS = ("name", "json", "image_root")
# Kept in the dataset dicts beside Detectron2's own keys; stock mappers ignore them.
EXTRA_ANNOTATION_KEYS = ["id", "score", "quality", "mask_source"]


def register_datasets(cfg: CfgNode) -> list[str]:
    """Registers every entry of `DATASETS.REGISTER` and settles the number of classes.

    An entry is a mapping with `name`, `json` (path), `image_root` (path) and optionally `format`
    ("coco"). Registering the same entry twice is harmless; the same name for other files is an
    error. `MODEL.ROI_HEADS.NUM_CLASSES` 0 becomes the class count of the training set.

    Returns:
        The names, in the order of the config.

    Raises:
        DataError: a key is missing, a file does not exist, or a name is taken.
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
    for image in read_json(json_file).get("images", []):
        guarded_join(image_root, image["file_name"], source=json_file)
    return load_coco_json(json_file, image_root, name, EXTRA_ANNOTATION_KEYS)


def _settle_num_classes(cfg: CfgNode) -> None:
    """Counts the classes where the config leaves them open; refuses a number that is wrong."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    counts = {
        name: len(classes)
        for name in names
        if (classes := MetadataCatalog.get(name).get("thing_classes"))
    }
    if not counts:
        return
    name, count = next(iter(counts.items()))
    if len(set(counts.values())) > 1:
        raise DataError("DATASETS", f"class counts differ: {counts}", "use one class list")
    frozen = cfg.is_frozen()
    cfg.defrost()
    stated = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if stated == 0:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = count
    elif stated != count:
        raise DataError(
            "MODEL.ROI_HEADS.NUM_CLASSES",
            f"is {stated}, but {name} has {count} classes",
            "set it to 0 to read it from the data set",
        )
    if frozen:
        cfg.freeze()
