"""`DATASETS.REGISTER`: any COCO or LVIS JSON becomes a Detectron2 data set, without code."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pseudolabel.errors import DataError
from pseudolabel.files import expand_path, read_json
from pseudolabel.instances import class_image_counts, load_instances, states_counts
from pseudolabel.pipeline import PIPELINES
from pseudolabel.rejected import without_rejected
from pseudolabel.splits import command_for
from pseudolabel.validation import (
    LEFT_OUT_LATER,
    Defect,
    iterate_defects,
    refuse_first,
    settle,
)
from pseudolabel.validation_records import Known, check_categories

logger = logging.getLogger(__name__)

REQUIRED_KEYS = ("name", "json", "image_root")
OPTIONAL_KEYS = ("format", "allow_links")
FORMATS = ("coco", "lvis")
# Kept in the dataset dicts beside Detectron2's own keys; stock mappers ignore them.
EXTRA_ANNOTATION_KEYS = ["id", "score", "quality", "mask_source", "weight"]
EXTRA_IMAGE_KEYS = ["weight", "hardness"]


def register_datasets(cfg: CfgNode) -> list[str]:
    """Registers every entry of `DATASETS.REGISTER` and settles the number of classes.

    An entry is a mapping with `name`, `json` (path), `image_root` (path) and optionally `format`
    ("coco" or "lvis", which also chooses the evaluation) and `allow_links` (True: links in
    `image_root` may lead out of it). Registering the same entry twice is harmless; the same name
    for other files is an error. A JSON of images alone, without categories and annotations, has no
    class list; it is for training on unlabelled images. With a pipeline whose models have class
    heads, all data sets must have the same list of classes, and `MODEL.ROI_HEADS.NUM_CLASSES` 0
    becomes its length.

    Returns:
        The names, in the order of the config.

    Raises:
        DataError: a key is missing or unknown, a file does not exist, a name is taken, class lists
            differ, or the categories (with LVIS, what has to be counted as well) are not sound.
    """
    names = [_register(entry) for entry in cfg.DATASETS.REGISTER]
    _settle_num_classes(cfg)
    return names


def _register(entry: Mapping) -> str:
    file_format, allow_links = _options(entry)
    name = entry["name"]
    json_file, image_root = expand_path(entry["json"]), expand_path(entry["image_root"])
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name)
        keys = ("json_file", "image_root", "evaluator_type", "allow_links")
        stated = tuple(map(known.get, keys))
        if stated == (json_file, image_root, file_format, allow_links):
            return name
        raise DataError(
            "DATASETS.REGISTER",
            f"the name {name!r} is taken by {stated[0]} with format {stated[2]!r}, "
            f"image_root {stated[1]} and allow_links {stated[3]}",
            "choose another name",
        )
    if not Path(image_root).is_dir():
        raise DataError("DATASETS.REGISTER", f"no image folder {image_root}", "correct image_root")
    if not Path(json_file).exists() and (command := command_for(json_file)):
        raise DataError(json_file, "this split does not exist", f"make it: {command}")
    data = read_json(json_file)
    # Of unlabelled images, files and sizes may be all that there is.
    is_image_list = "images" in data and not {"annotations", "categories"} & data.keys()
    categories = [] if is_image_list else sorted_categories(data, json_file)
    counts = _image_counts(data, json_file, categories) if file_format == "lvis" else None
    # Nothing is registered before everything is known to be sound.
    DatasetCatalog.register(name, lambda: _load(json_file, image_root, name))
    if counts is not None:
        MetadataCatalog.get(name).set(class_image_count=counts)
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type=file_format,
        allow_links=allow_links,
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
    )
    return name


def _options(entry: Mapping) -> tuple[str, bool]:
    """Format and `allow_links` of an entry, whose keys are checked."""
    source = "DATASETS.REGISTER"
    if not isinstance(entry, Mapping):
        raise DataError(source, f"the entry {entry!r} is no mapping", "write name, json, ...")
    missing = [k for k in REQUIRED_KEYS if not (isinstance(entry.get(k), str) and entry[k])]
    if missing:
        raise DataError(source, f"an entry has no {', '.join(missing)}: {dict(entry)}", "add it")
    unknown = sorted(set(entry) - {*REQUIRED_KEYS, *OPTIONAL_KEYS})
    if unknown:
        known = ", ".join((*REQUIRED_KEYS, *OPTIONAL_KEYS))
        problem = f"an entry has the unknown key {unknown[0]!r}: {dict(entry)}"
        raise DataError(source, problem, f"remove it; there are {known}")
    file_format, allow_links = entry.get("format", "coco"), entry.get("allow_links", False)
    if file_format not in FORMATS:
        raise DataError(source, f"unknown format {file_format!r}", f"use one of {FORMATS}")
    if not isinstance(allow_links, bool):
        problem = f"allow_links of {entry['name']!r} is {allow_links!r}"
        raise DataError(source, problem, "write True or False")
    return file_format, allow_links


def sorted_categories(data: Mapping[str, Any], json_file: str | Path) -> list[dict]:
    """The `categories` of a COCO or LVIS JSON by id; the class list of the data set.

    Raises:
        DataError: there are none, or one has no integer id of its own or no name.
    """
    categories = data.get("categories")
    if not categories or not isinstance(categories, list):
        raise DataError(json_file, "has no categories", "add the list of classes")
    refuse_first(json_file, check_categories(categories, Known()))
    return sorted(categories, key=lambda category: category["id"])


def _image_counts(data: dict[str, Any], json_file: str, categories: list[dict]) -> list[dict]:
    """`class_image_counts` of a file whose annotations are checked before they are counted."""
    if states_counts(categories):
        return class_image_counts(categories, ())
    kept, _ = without_rejected(data)
    defects = iterate_defects(kept, masks=False, plausibility=False)
    refuse_first(json_file, defects, LEFT_OUT_LATER)
    return class_image_counts(categories, kept["annotations"])


def _load(json_file: str, image_root: str, name: str) -> list[dict]:
    """Dataset dicts of a JSON; images of status "rejected" are left out, with their count logged.

    Raises:
        DataError: the first error that `pseudolabel.validation` finds in what is left.
    """
    data, rejected = without_rejected(read_json(json_file))
    if rejected:
        logger.warning(
            "%s: left out %d of %d images, whose status is 'rejected'; the reasons stand in the "
            "rejects file of the label job",
            *(json_file, rejected, rejected + len(data["images"])),
        )
    left_out = Counter()

    def counted() -> Iterator[Defect]:
        for defect in iterate_defects(data, plausibility=False):
            left_out[defect.kind] += defect.kind in LEFT_OUT_LATER
            yield defect

    refuse_first(json_file, counted(), LEFT_OUT_LATER)
    settle(data["annotations"])
    if left_out.total():
        logger.warning(
            "%s: %d boxes have no area in their image, and will not be used; see tools/validate.py",
            *(json_file, left_out.total()),
        )
    metadata = MetadataCatalog.get(name)
    return load_instances(
        data,
        json_file,
        image_root,
        metadata.thing_dataset_id_to_contiguous_id,
        EXTRA_ANNOTATION_KEYS,
        EXTRA_IMAGE_KEYS,
        federated=metadata.evaluator_type == "lvis",
        allow_links=metadata.allow_links,
    )


def _settle_num_classes(cfg: CfgNode) -> None:
    """Counts the classes where the config leaves them open; refuses class lists that differ.

    Predictions of a model with class heads are numbers: the same number must be the same class in
    every data set. A class-agnostic model may mix class lists.
    """
    if not getattr(PIPELINES.get(cfg.INPUT.PIPELINE), "has_class_heads", False):
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
