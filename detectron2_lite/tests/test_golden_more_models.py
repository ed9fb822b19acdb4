"""Cascade, semantic and C4 models against numbers that upstream Detectron2 computed.

Run as a script where upstream is installed, this file writes those numbers:
``python test_golden_more_models.py golden/more_models.json``.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

STAGES = ["res2", "res3", "res4", "res5"]
# Small, and everything is kept, so that nothing depends on random numbers.
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.PIXEL_STD": [58.0, 57.0, 57.0],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 30,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 6,
}
PYRAMID = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.OUT_FEATURES": STAGES,
    "MODEL.FPN.IN_FEATURES": STAGES,
    "MODEL.FPN.OUT_CHANNELS": 32,
}
CASCADE = PYRAMID | {
    "MODEL.MASK_ON": True,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}
SEMANTIC = PYRAMID | {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5,
}
C4 = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 500,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}
CASES = {
    "cascade": CASCADE,
    # other numbers of stages, thresholds and losses; no mask branch
    "cascade_two_stages": CASCADE
    | {
        "MODEL.MASK_ON": False,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.4],
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.4, 0.55),
        "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": ((10.0,) * 4, (15.0, 15.0, 5.0, 5.0)),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou",
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
    },
    "c4": C4 | {"MODEL.MASK_ON": True},
    "semantic": SEMANTIC,
    # without normalisation, fewer levels out of order, a larger stride of the sum
    "semantic_plain": SEMANTIC
    | {
        "MODEL.SEM_SEG_HEAD.NORM": "",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p4", "p3"],
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8,
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 4,
    },
}
SIZES = ((96, 128), (90, 101))
TARGETS = (
    ([[10, 12, 70, 60], [40, 50, 120, 90], [5, 70, 30, 95]], [0, 2, 1]),
    ([], []),  # an image of background
)


# So that boxes move by pixels, not by images, and every stage has foreground.
SCALES = {"bbox_pred": 0.003, "anchor_deltas": 0.02, "cls_score": 0.1, "mask_head.predictor": 0.1}


def make_cfg(overrides: dict) -> CfgNode:
    cfg = get_cfg()
    for items in (TINY, overrides):
        cfg.merge_from_list([x for item in items.items() for x in item])
    return cfg


def fill(model: nn.Module) -> None:
    """Weights as a function of name and shape, so that two builds need not exchange a file."""
    new = {}
    for name, old in model.state_dict().items():
        random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
        z = torch.as_tensor(random.standard_normal(tuple(old.shape)).astype(np.float32))
        if name.endswith("running_var") or name.endswith("norm.weight"):
            new[name] = 1 + 0.1 * z.abs()
        elif old.dim() < 2:
            new[name] = 0.02 * z
        else:
            small = next((v for part, v in SCALES.items() if part in name), 1.0)
            new[name] = small * z * (1.5 / old[0].numel()) ** 0.5
    model.load_state_dict(new)


def make_inputs() -> list[dict]:
    batch = []
    for i, ((h, w), (boxes, classes)) in enumerate(zip(SIZES, TARGETS)):
        random = np.random.RandomState(100 + i)
        image = torch.as_tensor(random.randint(0, 256, (3, h, w)).astype(np.float32))
        masks = torch.zeros(len(boxes), h, w, dtype=torch.bool)
        for mask, (a, b, c, d) in zip(masks, boxes):
            mask[b:d, a:c] = True
        truth = Instances(
            (h, w),
            gt_boxes=Boxes(torch.tensor(boxes).float().view(-1, 4)),
            gt_classes=torch.tensor(classes, dtype=torch.int64),
            gt_masks=BitMasks(masks),
        )
        classes_of_pixels = torch.as_tensor(random.randint(0, 5, (h, w)))
        classes_of_pixels[: h // 3] = 255 if i == 0 else 4
        item = {"image": image, "instances": truth, "sem_seg": classes_of_pixels}
        batch.append(item | {"height": 2 * h, "width": w // 2})
    return batch


def rounded(values: torch.Tensor) -> list:
    """To six digits: enough, and a small file."""
    return [float(f"{v:.6g}") for v in values.flatten().tolist()]


def compute(overrides: dict) -> dict:
    """Everything that is compared: one training and one inference pass of a case."""
    cfg = make_cfg(overrides)
    batch = make_inputs()
    for item in batch if cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE != 255 else []:
        item["sem_seg"][item["sem_seg"] == 255] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    model = build_model(cfg)
    fill(model)
    model.train()
    with EventStorage() as storage:
        losses = model(batch)
        sum(losses.values()).backward()
        scalars = {k: float(f"{v[0]:.6g}") for k, v in storage.latest().items()}
    result = {
        "parameters": {
            name: list(value.shape)
            for name, value in model.state_dict().items()
            if not name.startswith("backbone")  # elsewhere: test_golden_mask_rcnn
        },
        "losses": {name: rounded(value.detach())[0] for name, value in losses.items()},
        "scalars": scalars,
        "gradients": {
            name: rounded(p.grad.abs().mean())[0]
            for name, p in model.named_parameters()
            if p.grad is not None and ("backbone" not in name or "output" in name)
        },
    }
    model.eval()
    with torch.no_grad():
        outputs = model(batch)
    result["outputs"] = [summary(output) for output in outputs]
    return result


def summary(output: dict) -> dict:
    if "sem_seg" in output:
        logits = output["sem_seg"]
        return {"shape": list(logits.shape), "corner": rounded(logits[:, 3:90:40, 2:40:20])}
    found = output["instances"]
    entry = {
        "boxes": rounded(found.pred_boxes.tensor),
        "scores": rounded(found.scores),
        "classes": found.pred_classes.tolist(),
    }
    if found.has("pred_masks"):
        entry["areas"] = found.pred_masks.flatten(1).sum(1).tolist()
    return entry


@pytest.mark.parametrize("case", CASES)
def test_equal_to_upstream(case, golden_dir):
    want = json.loads((golden_dir / "more_models.json").read_text(encoding="utf-8"))[case]
    got = compute(CASES[case])
    assert got["parameters"] == want["parameters"]
    assert got["losses"] == pytest.approx(want["losses"], rel=1e-3, abs=1e-6)
    assert got["scalars"] == pytest.approx(want["scalars"], rel=1e-3, abs=1e-6)
    assert got["gradients"] == pytest.approx(want["gradients"], rel=1e-3, abs=1e-7)
    for mine, theirs in zip(got["outputs"], want["outputs"], strict=True):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            # boxes in pixels; areas move by a pixel with the number of threads
            slack = {"boxes": 0.02, "areas": 1}.get(name, 1e-4)
            assert mine[name] == pytest.approx(values, rel=1e-3, abs=slack), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    numbers = {name: compute(overrides) for name, overrides in CASES.items()}
    text = json.dumps(numbers, separators=(",", ":")).replace('"cascade', '\n"cascade')
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
