"""The data of PAIS: batches of labelled and unlabelled images; evaluation as for any detector."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.utils import comm

from pais.evaluation import NetworkEvaluator, network_evaluator
from pais.loader import SemiSupervisedLoader, Source
from pais.mapper import LabelledMapper, UnlabelledMapper
from pseudolabel.errors import DataError
from pseudolabel.files import read_json
from pseudolabel.instances import load_instances
from pseudolabel.pipeline import PIPELINES, StockPipeline, require_masks
from pseudolabel.rejected import without_rejected
from pseudolabel.validation import iterate_defects, refuse_first

logger = logging.getLogger(__name__)

RECORD_KEYS = ("file_name", "height", "width", "image_id")
NAMED = 5


@PIPELINES.register()
class SemiSupervisedPipeline(StockPipeline):
    """Labelled images of `DATASETS.TRAIN` with unlabelled ones of `DATASETS.UNLABELLED`.

    `SOLVER.IMS_PER_BATCH` counts the images of both kinds over all processes. With
    `MODEL.PAIS.ENABLED` False the batches are the labelled part of what they would be otherwise,
    image by image, and the unlabelled data sets are not looked at; the files that
    `DATASETS.REGISTER` names must be there all the same.
    """

    def train_loader(self, cfg: CfgNode) -> SemiSupervisedLoader:
        """Endless batches, labelled samples first.

        Raises:
            DataError: a data set is empty or cannot be read, class lists differ, an image file or a
                mask is missing, or the sampler is not supported; when iterated, at an image that
                cannot be used.
        """
        world_size = comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH % world_size:
            raise DataError(
                "SOLVER.IMS_PER_BATCH",
                f"{cfg.SOLVER.IMS_PER_BATCH} is no multiple of {world_size} processes",
                "change one of them",
            )
        labelled = labelled_records(cfg)
        unlabelled = unlabelled_records(cfg) if cfg.MODEL.PAIS.ENABLED else None
        _log_sizes(labelled, unlabelled)
        return SemiSupervisedLoader(
            Source(labelled, LabelledMapper(cfg)),
            None if unlabelled is None else Source(unlabelled, UnlabelledMapper(cfg)),
            batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
            ratio=cfg.MODEL.PAIS.LOADER.RATIO,
            mode=cfg.MODEL.PAIS.LOADER.MODE,
            seed=cfg.SEED,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            group_by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            batches_per_iteration=cfg.SOLVER.ACCUMULATE,
            rank=comm.get_rank(),
            world_size=world_size,
        )

    def evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> NetworkEvaluator:
        """AP of teacher and student by the rules of the data set."""
        return network_evaluator(cfg, dataset_name, output_dir)


def labelled_records(cfg: CfgNode) -> list[dict]:
    """Dataset dicts of `DATASETS.TRAIN`, filtered as stock training filters them.

    Raises:
        DataError: no instance is left to learn from, a mask or an image file is missing, or the
            sampler is one that repeats images.
    """
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler != "TrainingSampler":
        raise DataError(
            "DATALOADER.SAMPLER_TRAIN",
            f"{sampler!r} is not supported by {cfg.INPUT.PIPELINE}",
            "use 'TrainingSampler'",
        )
    names = ", ".join(cfg.DATASETS.TRAIN)
    remedy = "label more images, or make another split with datasets/prepare_splits.py"
    try:
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    except AssertionError as error:
        # What Detectron2 says where it finds no image, or none with an annotation.
        problem = f"no labelled image is left of {names or 'no data set'} ({error})"
        raise DataError("DATASETS.TRAIN", problem, remedy) from error
    if not any(map(_can_be_learnt, chain.from_iterable(r.get("annotations", ()) for r in records))):
        problem = f"the {len(records)} labelled images of {names} have no instance with an area"
        raise DataError("DATASETS.TRAIN", problem, remedy)
    if cfg.MODEL.MASK_ON:
        require_masks(records)
    _require_files(records, names)
    return records


def _can_be_learnt(annotation: dict) -> bool:
    return not annotation.get("iscrowd", 0) and min(annotation["bbox"][2:]) > 0


def unlabelled_records(cfg: CfgNode) -> list[dict]:
    """Files and sizes of the images of `DATASETS.UNLABELLED`; annotations are not read.

    Returns:
        Dicts with file_name, height, width and image_id.

    Raises:
        DataError: none is named, one is not registered, unsound or empty, its class list (where it
            has one) differs from that of `DATASETS.TRAIN`, or an image file is missing.
    """
    names = cfg.DATASETS.UNLABELLED
    if not names:
        raise DataError(
            "DATASETS.UNLABELLED",
            "names no data set of unlabelled images",
            "name one of DATASETS.REGISTER, or set MODEL.PAIS.ENABLED False",
        )
    records = []
    for name in names:
        if name not in DatasetCatalog.list():
            problem = f"the data set {name!r} is not registered"
            raise DataError("DATASETS.UNLABELLED", problem, "add it to DATASETS.REGISTER")
        _check_classes(cfg.DATASETS.TRAIN[0], name)
        found = read_images(name)
        if not found:
            raise DataError(name, "has no unlabelled image", "give a JSON with images")
        _require_files(found, name)
        records += found
    return records


def read_images(name: str) -> list[dict]:
    """Records of a registered data set without their annotations.

    Of a data set with a JSON, `images` alone is read, so that it needs nothing else.

    Raises:
        DataError: `images` is not sound.
    """
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if json_file is None or image_root is None:
        records = DatasetCatalog.get(name)
    else:
        data, _ = without_rejected(read_json(json_file))
        images = {**data, "annotations": [], "categories": data.get("categories") or []}
        refuse_first(json_file, iterate_defects(images))
        links = metadata.get("allow_links", False)
        records = load_instances(images, json_file, image_root, {}, allow_links=links)
    return [{key: record[key] for key in RECORD_KEYS} for record in records]


def _check_classes(labelled: str, unlabelled: str) -> None:
    """Refuses class lists that differ; an unlabelled data set need not have one."""
    ours = MetadataCatalog.get(labelled).get("thing_classes")
    theirs = MetadataCatalog.get(unlabelled).get("thing_classes")
    if not ours or not theirs or list(ours) == list(theirs):
        return
    lacking = [name for name in ours if name not in theirs]
    foreign = [name for name in theirs if name not in ours]
    differences = [
        f"{title} {', '.join(map(repr, found[:NAMED]))}{' and more' * (len(found) > NAMED)}"
        for title, found in ((f"{unlabelled} lacks", lacking), ("only it has", foreign))
        if found
    ]
    raise DataError(
        "DATASETS.UNLABELLED",
        f"the class lists of {labelled} and {unlabelled} differ: "
        f"{'; '.join(differences) or 'the order of their ids'}",
        f"give both JSONs the same categories, or remove them from that of {unlabelled}",
    )


def _require_files(records: Sequence[dict], name: str) -> None:
    """Refuses images that are not there, before a run that would meet them late.

    Raises:
        DataError: naming the first of them, with the number of the others.
    """
    missing = [record for record in records if not Path(record["file_name"]).is_file()]
    if missing:
        more = f", nor do {len(missing) - 1} more of {name}" if len(missing) > 1 else f" ({name})"
        raise DataError(
            missing[0]["file_name"],
            f"the image does not exist{more}",
            "check image_root in DATASETS.REGISTER, or drop the records",
            f"image {missing[0]['image_id']}",
        )


def _log_sizes(labelled: Sequence[dict], unlabelled: Sequence[dict] | None) -> None:
    if unlabelled is None:
        logger.info("%d labelled images; MODEL.PAIS.ENABLED is False", len(labelled))
        return
    logger.info("%d labelled and %d unlabelled images", len(labelled), len(unlabelled))
    both = {r["file_name"] for r in labelled} & {r["file_name"] for r in unlabelled}
    if both:
        logger.warning(
            "%d labelled images are among the unlabelled ones as well, such as %s",
            *(len(both), min(both)),
        )
