"""Configs of Mask2Former shrunk to a fraction of a second a step, and small batches for it."""

import uuid
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from masksmith import new_config, register_methods
from pseudolabel.registration import register_datasets

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "projects" / "mask2former" / "configs"
PREFIX = "MODEL.MASK_FORMER."
BACKBONES = {
    "swin": [],
    "resnet": [
        *(PREFIX + "BACKBONE", "resnet", PREFIX + "RESNET.STEM_DIM", 8),
        *(PREFIX + "RESNET.WIDTHS", (16, 16, 32, 32), PREFIX + "RESNET.DEPTHS", (1, 1, 1, 1)),
        *(PREFIX + "RESNET.BLOCK", "basic", PREFIX + "FREEZE_NORM", False),
    ],
    "detectron2": [
        *(PREFIX + "BACKBONE", "detectron2", "MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        *(
            "MODEL.BACKBONE.FREEZE_AT",
            0,
            "MODEL.RESNETS.DEPTH",
            18,
            "MODEL.RESNETS.NORM",
            "FrozenBN",
        ),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    ],
}


def read_config(path: Path) -> CfgNode:
    register_methods()
    cfg = new_config()
    cfg.merge_from_file(str(path), allow_unsafe=False)
    return cfg


def tiny_cfg(opts=(), backbone="swin", classes=3) -> CfgNode:
    """The sample config for 64 px images; nothing registered."""
    cfg = read_config(CONFIGS / "sample.yaml")
    cfg.DATASETS.REGISTER, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [], (), ()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    model = cfg.MODEL.MASK_FORMER
    model.SWIN.EMBED_DIM, model.SWIN.DEPTHS, model.SWIN.NUM_HEADS = 8, (1, 1, 1, 1), (1, 1, 2, 2)
    model.CONVS_DIM = model.MASK_DIM = model.HIDDEN_DIM = 32
    model.ENC_DIM_FEEDFORWARD = model.DIM_FEEDFORWARD = 32
    model.TRANSFORMER_ENC_LAYERS, model.DEC_LAYERS, model.NHEADS = 1, 3, 2
    model.NUM_OBJECT_QUERIES, model.TRAIN_NUM_POINTS = 6, 48
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = 2, 20, 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 10
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.merge_from_list([*BACKBONES[backbone], *opts])
    return cfg


def tiny_run(json_file: Path, output: Path, opts=(), file_format="coco") -> CfgNode:
    """As `tiny_cfg`, on a data set of `tests.tiny.write_coco`."""
    cfg = tiny_cfg(classes=0)
    name = f"tiny_{uuid.uuid4().hex}"
    cfg.DATASETS.REGISTER = [
        {
            "name": name,
            "json": str(json_file),
            "image_root": str(json_file.parent),
            "format": file_format,
        }
    ]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.OUTPUT_DIR = str(output)
    cfg.merge_from_list(list(opts))
    register_datasets(cfg)
    return cfg


def tiny_model(opts=(), backbone="swin", seed=0):
    torch.manual_seed(seed)
    return build_model(tiny_cfg(opts, backbone))


def sample(height=48, width=60, boxes=((4, 6, 30, 40), (20, 10, 50, 30)), seed=0, **extra) -> dict:
    """An image of noise whose instances are filled boxes, of classes 0, 1, 2, 0, ..."""
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 255
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 3
    instances.gt_masks = BitMasks(masks)
    return {"image": image, "instances": instances, "image_id": seed, **extra}
