"""The stock Mask R-CNN against numbers that upstream Detectron2 computed (golden/README.md)."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

CASES = ("stock_polygon", "stock_bitmask_giou_agnostic", "stock_smoothl1_beta")

# The keys in which the stock R50-FPN config differs from the defaults, as far as the model goes.
# Kept here as well as in configs/_base_, since this distribution is tested on its own too.
STOCK = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
# Every anchor and proposal is kept, so that nothing depends on the order of random numbers.
UNSAMPLED = {
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 8,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 60,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
}
TARGETS = (
    ([[10, 12, 70, 60], [40, 50, 120, 110], [5, 70, 30, 118]], [0, 2, 1]),
    ([[20, 20, 100, 90], [60, 5, 110, 40]], [1, 0]),
)


def make_cfg(*overrides: dict) -> CfgNode:
    cfg = get_cfg()
    for items in (STOCK, *overrides):
        cfg.merge_from_list([x for item in items.items() for x in item])
    return cfg


def fill(model: nn.Module, scales: dict[str, float]) -> None:
    """Weights as a function of (name, shape): the "rule" of the golden file."""

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
        z = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            return 1 + 0.1 * np.abs(z)
        if name.endswith("running_mean"):
            return 0.05 * z
        if name.endswith("norm.weight"):
            return (0.25 if ".conv3." in name else 1.0) * (1 + 0.1 * z)
        if name.endswith("bias"):
            return 0.02 * z
        scale = next((v for part, v in scales.items() if part in name), 1.0)
        return z * np.float32(scale * np.sqrt(2.0 / np.prod(shape[1:])))

    new = {k: torch.as_tensor(value(k, tuple(v.shape))) for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.to(torch.float32) for k, v in new.items()})


def make_masks(boxes: list[list[int]], size: tuple[int, int], kind: str):
    if kind == "polygon":
        return PolygonMasks([[np.array([a, b, c, b, c, d, a, d], float)] for a, b, c, d in boxes])
    full = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (a, b, c, d) in zip(full, boxes):
        mask[b:d, a:c] = True
    return BitMasks(full)


def make_inputs(sizes: list[tuple[int, int]], kind: str | None = None) -> list[dict]:
    """Images of noise; with ``kind`` also targets whose masks are the filled boxes."""
    batch = []
    for i, (h, w) in enumerate(sizes):
        noise = np.random.RandomState(100 + i).randint(0, 256, (3, h, w)).astype(np.float32)
        item = {"image": torch.as_tensor(noise), "height": 2 * h, "width": 2 * w}
        if kind is not None:
            boxes, classes = TARGETS[i]
            item["instances"] = Instances(
                (h, w),
                gt_boxes=Boxes(boxes),
                gt_classes=torch.tensor(classes),
                gt_masks=make_masks(boxes, (h, w), kind),
            )
        batch.append(item)
    return batch


@pytest.fixture(scope="module", params=CASES)
def run(request, golden_dir) -> dict:
    """One training and one inference pass of a case; the tests below compare its pieces."""
    golden = json.loads((golden_dir / "mask_rcnn_r50_fpn.json").read_text(encoding="utf-8"))
    want = golden[request.param]
    sizes = [tuple(size) for size in want["sizes"]]
    model = build_model(make_cfg(UNSAMPLED, want["overrides"]))
    fill(model, golden["scales"])
    model.train()
    with EventStorage() as storage:
        losses = model(make_inputs(sizes, want["mask_format"]))
        sum(losses.values()).backward()
        scalars = {name: entry[0] for name, entry in storage.latest().items()}
    got = {"losses": {k: float(v.detach()) for k, v in losses.items()}, "event_scalars": scalars}
    got["grads"] = {
        n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None
    }
    got["frozen"] = [n for n, p in model.named_parameters() if not p.requires_grad]
    model.eval()
    with torch.no_grad():
        batch = make_inputs(sizes)
        got["images"] = model.preprocess_image(batch)
        got["features"] = model.backbone(got["images"].tensor)
        got["proposals"], _ = model.proposal_generator(got["images"], got["features"], None)
        got["detections"] = [x["instances"] for x in model(batch)]
    return {"want": want, "got": got}


def test_losses(run):
    assert run["got"]["losses"] == pytest.approx(run["want"]["losses"], rel=1e-3, abs=2e-6)


def test_event_scalars(run):
    got, want = run["got"]["event_scalars"], run["want"]["event_scalars"]
    assert got == pytest.approx(want, rel=1e-3, abs=1e-5)


def test_gradients(run):
    grads = run["got"]["grads"]
    assert len(grads) == run["want"]["n_params_with_grad"]
    means = {name: float(grads[name].abs().mean()) for name in run["want"]["grad_abs_mean"]}
    assert means == pytest.approx(run["want"]["grad_abs_mean"], rel=1e-3)


def test_frozen_names(run):
    assert set(run["got"]["frozen"]) == set(run["want"]["frozen_params"])


def test_padding_and_features(run):
    got, want = run["got"], run["want"]
    assert list(got["images"].tensor.shape) == want["padded"]
    assert [list(size) for size in got["images"].image_sizes] == want["image_sizes"]
    assert list(got["features"]) == list(want["features"])
    for name, expected in want["features"].items():
        feature = got["features"][name]
        assert list(feature.shape) == expected["shape"], name
        first = feature[0, 0, 0, :4].tolist()
        assert first == pytest.approx(expected["first"], rel=1e-3, abs=1e-4), name
        stats = [float(feature.mean()), float(feature.std())]
        assert stats == pytest.approx([expected["mean"], expected["std"]], rel=1e-3, abs=1e-4), name


def test_proposals(run):
    for got, want in zip(run["got"]["proposals"], run["want"]["proposals"], strict=True):
        assert len(got) == want["n"]
        boxes = torch.tensor(want["boxes"])
        torch.testing.assert_close(got.proposal_boxes.tensor[:5], boxes, rtol=1e-3, atol=0.02)
        logits = torch.tensor(want["logits"])
        torch.testing.assert_close(got.objectness_logits[:5], logits, rtol=1e-3, atol=1e-4)


def test_detections(run):
    for got, want in zip(run["got"]["detections"], run["want"]["detections"], strict=True):
        assert list(got.image_size) == want["size"]
        boxes, scores = torch.tensor(want["boxes"]), torch.tensor(want["scores"])
        torch.testing.assert_close(got.pred_boxes.tensor, boxes, rtol=1e-3, atol=0.02)
        torch.testing.assert_close(got.scores, scores, rtol=1e-3, atol=1e-5)
        assert got.pred_classes.tolist() == want["classes"]
        assert list(got.pred_masks.shape) == want["mask_shape"]
        assert str(got.pred_masks.dtype) == want["mask_dtype"]
        areas = got.pred_masks.flatten(1).sum(1).tolist()
        # Upstream's own areas move by a pixel with the number of threads.
        assert areas == pytest.approx(want["mask_area"], rel=1e-3, abs=1)


def test_parameter_names_and_shapes(golden_dir):
    text = (golden_dir / "state_dict_mask_rcnn_R50_FPN.txt").read_text(encoding="utf-8")
    want = dict(line.split(" ", 1) for line in text.splitlines() if line.strip())
    with torch.device("meta"):  # names and shapes need no memory
        model = build_model(make_cfg({"MODEL.DEVICE": "meta"}))
    got = {name: str(list(value.shape)) for name, value in model.state_dict().items()}
    assert len(got) == 307
    assert got == want


def test_base_config_is_the_stock_model():
    """The project's base file and the settings above describe one and the same model."""
    path = Path(__file__).parents[2] / "configs" / "_base_" / "mask_rcnn_R_50_FPN.yaml"
    if not path.exists():
        pytest.skip("this distribution is checked out alone")
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    assert cfg.MODEL == make_cfg().MODEL
