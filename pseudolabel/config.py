"""Config keys that every Masksmith method shares, and what a run's config is compared with."""

import os
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from pseudolabel.config_diff import ABSENT, flat_keys


def add_masksmith_config(cfg: CfgNode) -> None:
    """Adds the shared keys to a Detectron2 config, in place.

    Three of Detectron2's own defaults change with it: `SEED` is fixed, `MODEL.DEVICE` is what the
    machine has, and `MODEL.ROI_HEADS.NUM_CLASSES` 0 means "count the classes of DATASETS.TRAIN".
    """
    # Data sets in any COCO JSON: a list of {name, json, image_root[, format]}.
    cfg.DATASETS.REGISTER = []
    # Name of the data pipeline in `pseudolabel.pipeline.PIPELINES`: what a batch is.
    cfg.INPUT.PIPELINE = "StockPipeline"
    # "SGD" (Detectron2's) or "AdamW", to which weights, biases and norms are all alike.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # AdamW only: beta 1, beta 2 and epsilon.
    cfg.SOLVER.BETAS = (0.9, 0.999)
    cfg.SOLVER.EPS = 1e-8
    # > 0: the learning rate is this x samples (MAL: crops) of one optimizer step, in place of
    # BASE_LR; the log prints the product.
    cfg.SOLVER.LR_PER_SAMPLE = 0.0
    # Batches whose gradients are averaged before one optimizer step; MAX_ITER counts steps.
    cfg.SOLVER.ACCUMULATE = 1
    # AdamW only: factor of the learning rate per layer below the last one (1: none).
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Factor of the learning rate of the backbone's parameters (1: none), on top of LAYER_DECAY.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Detectron2's "value" and "norm", each parameter by itself, or "full_model": the norm over all.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"

    # One seed for data order, augmentation, initialisation and sampling inside the model.
    cfg.SEED = 0
    # "cuda", or "cpu" where there is none.
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    # 0: the number of classes in the JSON of DATASETS.TRAIN.
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
    # Pseudo-labels are RLE, which Detectron2's polygon format refuses.
    cfg.INPUT.MASK_FORMAT = "bitmask"

    cfg.TEST.EVALUATOR = CfgNode()
    # "faster_coco_eval", "hotcoco", or "reference": pycocotools for COCO, lvis for LVIS.
    cfg.TEST.EVALUATOR.BACKEND = "faster_coco_eval"
    # Detections that count per image (COCO: and class); 0 is the format's own, 100 or LVIS 300.
    # The model's own cut, TEST.DETECTIONS_PER_IMAGE, comes before.
    cfg.TEST.EVALUATOR.MAX_DETS = 0
    # Add AP-<class> for every class.
    cfg.TEST.EVALUATOR.PER_CLASS = True


def draw_seed(cfg: CfgNode, resume: bool) -> int:
    """A seed that all ranks share: of the run that is resumed, else a random one.

    It belongs into `cfg.SEED`, so that the run's config.yaml repeats the run.
    """
    saved = Path(cfg.OUTPUT_DIR, "config.yaml")
    seed = int.from_bytes(os.urandom(4), "big") >> 1
    if resume and saved.is_file():
        before = CfgNode.load_cfg(saved.read_text(encoding="utf-8")).get("SEED", -1)
        seed = before if before >= 0 else seed
    return comm.all_gather(seed)[0]


def changes_since_last_run(cfg: CfgNode) -> list[str]:
    """How the config differs from the one that the run in OUTPUT_DIR was begun with."""
    saved = Path(cfg.OUTPUT_DIR, "config.yaml")
    if not (comm.is_main_process() and saved.is_file()):
        return []
    return config_changes(saved.read_text(encoding="utf-8"), cfg.dump())


def config_changes(old: str, new: str) -> list[str]:
    """The keys in which two dumped configs (YAML) differ, as "DOTTED.NAME: old -> new" lines.

    A key that only one of them has counts as "(absent)" in the other.
    """
    before, after = (flat_keys(CfgNode.load_cfg(text)) for text in (old, new))
    return [
        f"{key}: {before.get(key, ABSENT)} -> {after.get(key, ABSENT)}"
        for key in sorted(before.keys() | after.keys())
        if key not in before or key not in after or before[key] != after[key]
    ]
