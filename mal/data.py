"""MAL's data: a training sample is one box, a test sample is one image with all its boxes."""

import logging
from functools import lru_cache

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.structures import BoxMode
from torch.utils.data import DataLoader, Dataset

from mal.crops import box_mask, resize_image, resize_mask, train_window, wrap_crop
from mal.views import student_view
from pseudolabel.errors import DataError
from pseudolabel.files import read_image
from pseudolabel.loader import TrainLoader
from pseudolabel.mask_iou import MaskIoUEvaluator
from pseudolabel.masks import clip_box
from pseudolabel.pipeline import PIPELINES, build_train_loader

logger = logging.getLogger(__name__)

# Above this share of boxes left out by a filter, the user hears of it.
EXCLUDED_WARNING = 0.05


def box_records(
    dataset_dicts: list[dict], min_area: float = 0.0, max_area: float = 1e10
) -> list[dict]:
    """One record per box that MAL trains on.

    Crowds are left out, as are boxes without extent and boxes outside (min_area, max_area) square
    pixels; the counts are logged, with a warning when more than 5 % of the boxes are left out.

    Returns:
        Dicts with file_name, image_id, height, width, annotation_id and box (XYXY, absolute).
    """
    kept, crowds, degenerate, filtered = [], 0, 0, 0
    for image in dataset_dicts:
        for annotation in image["annotations"]:
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            width, height = box[2] - box[0], box[3] - box[1]
            if annotation.get("iscrowd", 0):
                crowds += 1
            elif not (width > 0 and height > 0):
                degenerate += 1
            elif not min_area < width * height < max_area:
                filtered += 1
            else:
                record = {k: image[k] for k in ("file_name", "image_id", "height", "width")}
                kept.append({**record, "annotation_id": annotation.get("id"), "box": tuple(box)})
    total = len(kept) + degenerate + filtered
    level = logging.WARNING if total - len(kept) > EXCLUDED_WARNING * total else logging.INFO
    logger.log(
        level,
        "MAL trains on %d of %d boxes; left out: %d outside the area limits (%g, %g), "
        "%d without extent; %d crowds stand apart",
        *(len(kept), total, filtered, min_area, max_area, degenerate, crowds),
    )
    return kept


class BoxCropMapper:
    """Turns a box record into the two views and the box mask of one crop.

    S is the crop size. The result holds student_view and teacher_view (uint8, 3 x S x S, RGB),
    box_mask (uint8, S x S), box_area (float, square pixels of the original image) and the ids.
    """

    @configurable
    def __init__(
        self, *, crop_size: int, margin: float, gated: bool, inclusive: bool = True, cache: int = 0
    ):
        self.crop_size, self.margin, self.gated = crop_size, margin, gated
        self.inclusive = inclusive
        self._read = lru_cache(maxsize=cache)(read_image)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        mal = cfg.MODEL.MAL
        return {
            "crop_size": mal.CROP_SIZE,
            "margin": mal.MARGIN,
            "gated": mal.MARGIN_GATED,
            "inclusive": mal.BOX_INCLUSIVE,
            "cache": mal.IMAGE_CACHE,
        }

    def __call__(self, record: dict) -> dict:
        image = self._read(record["file_name"])
        height, width = check_size(image, record)
        # The loader seeds numpy's global generator for this sample.
        rng = np.random.default_rng(np.random.randint(2**31))
        box = clip_box(record["box"], height, width)
        window = train_window(box, rng, self.margin, self.gated)
        crop = resize_image(wrap_crop(image, window), self.crop_size)
        inside = wrap_crop(box_mask(box, height, width, self.inclusive), window)
        inside = resize_mask(inside, self.crop_size)
        if rng.random() < 0.5:
            crop, inside = crop[:, ::-1], inside[:, ::-1]
        crop = np.ascontiguousarray(crop)
        x0, y0, x1, y1 = record["box"]
        return {
            **{key: record[key] for key in ("file_name", "image_id", "annotation_id")},
            "student_view": to_tensor(student_view(crop, rng)),
            "teacher_view": to_tensor(crop),
            "box_mask": torch.from_numpy(np.ascontiguousarray(inside)),
            "box_area": float((x1 - x0) * (y1 - y0)),
        }


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) to a contiguous uint8 tensor (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def check_size(image: np.ndarray, record: dict) -> tuple[int, int]:
    """Height and width of the image; they must be those that the JSON states."""
    height, width = image.shape[:2]
    if (height, width) != (record["height"], record["width"]):
        raise DataError(
            record["file_name"],
            f"is {width}x{height}, the JSON says {record['width']}x{record['height']}",
            "correct the JSON or the image; boxes refer to the JSON's size",
            record=f"image {record['image_id']}",
        )
    return height, width


class ImageBoxes(Dataset):
    """Test samples: image (uint8, H x W x 3, RGB), boxes (N x 4 float64, XYXY), annotation_ids."""

    def __init__(self, dataset_dicts: list[dict]):
        self.records = dataset_dicts

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        record = self.records[index]
        image = read_image(record["file_name"])
        check_size(image, record)
        annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        return {
            **{k: record[k] for k in ("file_name", "image_id", "height", "width")},
            "image": image,
            "boxes": np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
            "annotation_ids": [a.get("id") for a in annotations],
        }


@PIPELINES.register()
class BoxCropPipeline:
    """Training on crops of single boxes; evaluation of mask IoU from the true boxes."""

    def train_loader(self, cfg: CfgNode) -> TrainLoader:
        dicts = [d for name in cfg.DATASETS.TRAIN for d in DatasetCatalog.get(name)]
        records = box_records(dicts, cfg.MODEL.MAL.MIN_AREA, cfg.MODEL.MAL.MAX_AREA)
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
