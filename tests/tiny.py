"""Tiny real inputs for tests: a COCO folder of drawn images, and configs that train on it."""

import json
import uuid
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from mal.config import add_mal_config
from pseudolabel.config import add_masksmith_config
from pseudolabel.masks import encode_rle
from pseudolabel.registration import register_datasets

SIDE = 64
CONFIGS = Path(__file__).parent.parent / "configs"


def write_coco(folder: Path, images: int = 4, masks: bool = True) -> Path:
    """Bright discs on dark noise, two per image, in two classes; returns the JSON's path."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    data = {"images": [], "annotations": [], "categories": []}
    data["categories"] = [{"id": 3, "name": "left"}, {"id": 8, "name": "right"}]
    for image in range(1, images + 1):
        pixels = rng.integers(0, 90, (SIDE, SIDE, 3))
        for part, category in enumerate((3, 8)):
            radius = int(rng.integers(7, 12))
            y, x = int(rng.integers(14, 50)), 16 + 32 * part
            disc = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            pixels[disc] += 120
            where = np.argwhere(disc)
            (y0, x0), (y1, x1) = where.min(0), where.max(0) + 1
            annotation = {
                "id": 10 * image + part,
                "image_id": image,
                "category_id": category,
                "bbox": [int(x0), int(y0), int(x1 - x0), int(y1 - y0)],
                "area": int(disc.sum()),
                "iscrowd": 0,
            }
            if masks:
                annotation["segmentation"] = encode_rle(disc)
            data["annotations"].append(annotation)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.png")
        entry = {"id": image, "file_name": f"{image}.png", "width": SIDE, "height": SIDE}
        data["images"].append(entry)
    path = folder / "instances.json"
    path.write_text(json.dumps(data))
    return path


def tiny_config(method: str, json_file: Path, output: Path, opts: list | None = None) -> CfgNode:
    """A config of `configs/` ("mal/sample", "mask_rcnn/sample") shrunk to a few seconds."""
    cfg = get_cfg()
    add_masksmith_config(cfg)
    add_mal_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{method}.yaml"))
    name = f"tiny_{uuid.uuid4().hex}"
    cfg.DATASETS.REGISTER = [
        {"name": name, "json": str(json_file), "image_root": str(json_file.parent)}
    ]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.OUTPUT_DIR = str(output)
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 20
    cfg.SOLVER.WARMUP_ITERS = 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 10
    mal = cfg.MODEL.MAL
    mal.CROP_SIZE, mal.MAP_SIZE, mal.CRF.ITERATIONS = 32, 16, 10
    mal.ENCODER.STEM, mal.ENCODER.PATCH_SIZE, mal.ENCODER.WEIGHTS = "conv", 8, ""
    mal.ENCODER.EMBED_DIM, mal.ENCODER.DEPTH, mal.ENCODER.NUM_HEADS = 16, 1, 2
    mal.DECODER.HIDDEN_DIM = mal.DECODER.OUT_DIM = 8
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.merge_from_list(opts or [])
    register_datasets(cfg)
    return cfg
