"""MAL's data: a training sample is one box, a test sample is one image with all its boxes."""

import logging
from collections import Counter

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import BoxMode
from torch.utils.data import DataLoader, Dataset

from mal.config_check import check_mal_config
from mal.crops import box_mask, resize_image, resize_mask, train_window, wrap_crop
from mal.views import student_view
from pseudolabel.errors import DataError
from pseudolabel.evaluation import MaskIoUEvaluator
from pseudolabel.evaluators import check_test_images
from pseudolabel.files import check_image_size, read_image
from pseudolabel.image_cache import ImageCache
from pseudolabel.loader import TrainLoader
from pseudolabel.mask_iou import TrueMasks
from pseudolabel.masks import clip_box, decode_segmentation
from pseudolabel.pipeline import PIPELINES, build_train_loader
from pseudolabel.rejected import without_rejected
from pseudolabel.store import box_problem

logger = logging.getLogger(__name__)

# Above this share of boxes left out by a filter, the user hears of it.
EXCLUDED_WARNING = 0.05
# Left-out boxes that a warning names; it counts the rest.
NAMED = 10


def usable_box(annotation: dict, height: int, width: int) -> tuple[np.ndarray | None, str]:
    """The box of a Detectron2 annotation in XYXY (4,), or None and the reason against it."""
    bbox, mode = annotation["bbox"], BoxMode(annotation["bbox_mode"])
    # A malformed box is in the files' own mode, which is not converted here.
    if mode != BoxMode.XYWH_ABS:
        bbox = BoxMode.convert(bbox, mode, BoxMode.XYWH_ABS)
    bbox = np.asarray(bbox).tolist() if isinstance(bbox, tuple | np.ndarray) else bbox
    problem = box_problem({"bbox": bbox}, height, width)
    if problem:
        return None, problem
    return np.asarray(BoxMode.convert(bbox, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS), np.float64), ""


def box_records(
    dataset_dicts: list[dict],
    min_area: float = 0.0,
    max_area: float = 1e10,
    *,
    masks: bool = False,
) -> list[dict]:
    """One record per box that MAL trains on, clipped to its image.

    Crowds are left out, as are boxes that cannot be labelled (`box_problem`) and boxes whose part
    inside the image is not in (min_area, max_area) square pixels; the counts are logged by reason,
    with a warning when more than 5 % of the boxes are left out.

    Args:
        masks: keep the human masks, which every box must have then.

    Returns:
        Dicts with file_name, image_id, height, width, annotation_id, category (contiguous), box
        (XYXY, absolute) and, where asked for, segmentation.

    Raises:
        DataError: a mask is asked for and missing.
    """
    kept, left_out, crowds = [], Counter(), 0
    for image in dataset_dicts:
        size = image["height"], image["width"]
        for annotation in image["annotations"]:
            if annotation.get("iscrowd", 0):
                crowds += 1
                continue
            box, problem = usable_box(annotation, *size)
            if box is None:
                left_out[problem] += 1
                continue
            x0, y0, x1, y1 = box = clip_box(box, *size).tolist()
            if not min_area < (x1 - x0) * (y1 - y0) < max_area:
                left_out[f"outside the area limits ({min_area:g}, {max_area:g})"] += 1
                continue
            record = {k: image[k] for k in ("file_name", "image_id", "height", "width")}
            record["annotation_id"] = annotation.get("id")
            record["category"] = annotation["category_id"]
            record["box"] = tuple(box)
            if masks:
                record["segmentation"] = _human_mask(annotation, image["file_name"])
            kept.append(record)
    total = len(kept) + left_out.total()
    level = logging.WARNING if left_out.total() > EXCLUDED_WARNING * total else logging.INFO
    logger.log(
        level,
        "MAL trains on %d of %d boxes; left out: %s; %d crowds stand apart",
        *(len(kept), total, _listed(left_out), crowds),
    )
    return kept


def _human_mask(annotation: dict, file_name: str) -> list | dict:
    if not annotation.get("segmentation"):
        raise DataError(
            file_name,
            "a box has no human mask, which MODEL.MAL.SUPERVISION 'mask' trains on",
            "give DATASETS.TRAIN a JSON with masks, or set MODEL.MAL.SUPERVISION to 'box'",
            f"annotation {annotation.get('id')}",
        )
    return annotation["segmentation"]


def _listed(counts: Counter) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common()) or "none"


class BoxCropMapper:
    """Turns a box record into the two views and the box mask of one crop.

    S is the crop size. The result holds student_view and teacher_view (uint8, 3 x S x S, RGB),
    box_mask (uint8, S x S), box_area (float, square pixels of the original image), category
    (int64 scalar, contiguous) and the ids; true_mask (uint8, S x S) for a record with a
    segmentation.

    Args:
        crop_size: S.
        margin, gated: of `train_window`.
        inclusive: of `box_mask`.
        border: of `wrap_crop`.
        cache: decoded images to keep.
    """

    @configurable
    def __init__(
        self,
        *,
        crop_size: int,
        margin: float,
        gated: bool,
        inclusive: bool = True,
        border: str = "wrap",
        cache: int = 0,
    ):
        self.crop = {"size": crop_size, "margin": margin, "gated": gated, "border": border}
        self.inclusive = inclusive
        self._read = ImageCache(cache)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        mal = cfg.MODEL.MAL
        return {
            "crop_size": mal.CROP_SIZE,
            "margin": mal.MARGIN,
            "gated": mal.MARGIN_GATED,
            "inclusive": mal.BOX_INCLUSIVE,
            "border": mal.BORDER,
            # Crops of one image follow each other, so that one decoded image serves them all.
            "cache": max(mal.IMAGE_CACHE, int(mal.CROPS_PER_IMAGE > 1)),
        }

    def __call__(self, record: dict) -> dict:
        image = self._read(record["file_name"])
        height, width = record["height"], record["width"]
        check_image_size(image, record["file_name"], height, width, f"image {record['image_id']}")
        # The loader seeds numpy's global generator for this sample.
        rng = np.random.default_rng(np.random.randint(2**31))
        masks = {"box_mask": box_mask(record["box"], height, width, self.inclusive)}
        if "segmentation" in record:
            masks["true_mask"] = _decoded(record)
        stack = np.stack(list(masks.values()), axis=-1)
        box = np.asarray(record["box"])
        crop, inside = training_crop(rng, image, stack, box, **self.crop)
        x0, y0, x1, y1 = record["box"]
        return {
            **{key: record[key] for key in ("file_name", "image_id", "annotation_id")},
            "student_view": to_tensor(student_view(crop, rng)),
            "teacher_view": to_tensor(crop),
            **dict(zip(masks, to_tensor(inside), strict=True)),
            "box_area": float((x1 - x0) * (y1 - y0)),
            "category": torch.tensor(record["category"]),
        }


def _decoded(record: dict) -> np.ndarray:
    try:
        mask = decode_segmentation(record["segmentation"], record["height"], record["width"])
    except ValueError as error:
        where = f"annotation {record['annotation_id']}"
        raise DataError(record["file_name"], str(error), "correct the mask", where) from error
    return mask.astype(np.uint8)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, C) to a contiguous uint8 tensor (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def training_crop(
    rng: np.random.Generator,
    image: np.ndarray,
    mask: np.ndarray,
    box: np.ndarray,
    *,
    size: int,
    margin: float,
    gated: bool,
    border: str = "wrap",
) -> tuple[np.ndarray, np.ndarray]:
    """A random window around a box, resized to a square and flipped half of the time.

    Args:
        rng: the only source of randomness.
        image: uint8 (H, W, 3).
        mask: uint8 (H, W) or (H, W, K), cut out alike.
        box: XYXY (4,), inside the image.
        size: S.
        margin, gated: of `train_window`.
        border: of `wrap_crop`.

    Returns:
        uint8 (S, S, 3) and uint8 (S, S[, K]), contiguous.
    """
    window = train_window(box, rng, margin, gated)
    crop = resize_image(wrap_crop(image, window, border), size)
    inside = resize_mask(wrap_crop(mask, window, border), size)
    if rng.random() < 0.5:
        crop, inside = crop[:, ::-1], inside[:, ::-1]
    return np.ascontiguousarray(crop), np.ascontiguousarray(inside)


class ImageBoxes(Dataset):
    """Test samples: image (uint8, H x W x 3, RGB), boxes (N x 4 float64, XYXY), classes
    (N int64, contiguous) and annotation_ids.

    Crowds are left out, and so are boxes that cannot be labelled (`box_problem`), with a warning
    that names them.
    """

    def __init__(self, dataset_dicts: list[dict]):
        self.records, unusable = [], []
        for image in dataset_dicts:
            keys, boxes, classes = [], [], []
            for annotation in image["annotations"]:
                if annotation.get("iscrowd", 0):
                    continue
                key = annotation.get("id")
                box, problem = usable_box(annotation, image["height"], image["width"])
                if box is None:
                    unusable.append(f"annotation {key} of {image['file_name']}: {problem}")
                else:
                    keys.append(key)
                    boxes.append(box)
                    classes.append(annotation["category_id"])
            record = {k: image[k] for k in ("file_name", "image_id", "height", "width")}
            record["classes"] = np.asarray(classes, dtype=np.int64)
            boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
            self.records.append({**record, "boxes": boxes, "annotation_ids": keys})
        if unusable:
            more = f"; and {len(unusable) - NAMED} more" if len(unusable) > NAMED else ""
            logger.warning(
                "%d boxes are left out of the evaluation; correct them in the JSON: %s%s",
                *(len(unusable), "; ".join(unusable[:NAMED]), more),
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        image = read_image(record["file_name"])
        where = f"image {record['image_id']}"
        check_image_size(image, record["file_name"], record["height"], record["width"], where)
        return {**record, "image": image}


@PIPELINES.register()
class BoxCropPipeline:
    """Training on crops of single boxes; evaluation of mask IoU from the true boxes."""

    sample_name = "crops"

    def check_evaluation(self, cfg: CfgNode) -> None:
        """Refuses test sets without human masks or images, before a run that needs them."""
        for name in cfg.DATASETS.TEST:
            truth = TrueMasks(MetadataCatalog.get(name).json_file)
            truth.require_masks()
            readable, _ = without_rejected({"images": truth.images})
            check_test_images(name, readable["images"])

    def samples_per_image(self, cfg: CfgNode) -> int:
        """Crops that each of `SOLVER.IMS_PER_BATCH` stands for.

        Raises:
            DataError: of `check_mal_config`.
        """
        check_mal_config(cfg)
        return cfg.MODEL.MAL.CROPS_PER_IMAGE

    def train_loader(self, cfg: CfgNode) -> TrainLoader:
        """Endless batches of IMS_PER_BATCH x CROPS_PER_IMAGE crops (`BoxCropMapper`).

        n = CROPS_PER_IMAGE > 1 puts n boxes of one image side by side, which is decoded once for
        them; the boxes that an image has beyond a multiple of n share crops with those of other
        images. So each box is seen once in an epoch with any n (up to n - 1 of them twice, where n
        does not divide their number), but the boxes of a batch are correlated: it holds up to n
        times fewer images than crops.

        Raises:
            DataError: a mask is missing that would be trained on; when iterated, at an image that
                cannot be used.
        """
        mal = cfg.MODEL.MAL
        dicts = [d for name in cfg.DATASETS.TRAIN for d in DatasetCatalog.get(name)]
        records = box_records(dicts, mal.MIN_AREA, mal.MAX_AREA, masks=mal.SUPERVISION == "mask")
        return build_train_loader(cfg, records, BoxCropMapper(cfg), group_by_aspect=False)

    def test_loader(self, cfg: CfgNode, dataset_name: str) -> DataLoader:
        dataset = ImageBoxes(DatasetCatalog.get(dataset_name))
        return DataLoader(
            dataset,
            sampler=InferenceSampler(len(dataset)),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
        )

    def evaluator(self, cfg: CfgNode, dataset_name: str, output_dir: str) -> MaskIoUEvaluator:
        return MaskIoUEvaluator(MetadataCatalog.get(dataset_name).json_file, output_dir)
