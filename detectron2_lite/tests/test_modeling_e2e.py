"""Whole models on random weights and tiny images: empty, half-empty, NaN and Inf included."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from detectron2.modeling.meta_arch import build_sem_seg_head
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

STAGES = ["res2", "res3", "res4", "res5"]
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


def make_cfg(**model):
    cfg = get_cfg()
    node = cfg.MODEL
    node.DEVICE, node.MASK_ON = "cpu", True
    node.BACKBONE.NAME = "build_resnet_fpn_backbone"
    node.RESNETS.DEPTH, node.RESNETS.RES2_OUT_CHANNELS = 18, 64
    node.RESNETS.OUT_FEATURES = node.FPN.IN_FEATURES = STAGES
    node.FPN.OUT_CHANNELS = 32
    node.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    node.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    node.RPN.POST_NMS_TOPK_TRAIN = node.RPN.POST_NMS_TOPK_TEST = 30
    node.ROI_HEADS.NAME = "StandardROIHeads"
    node.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    node.ROI_HEADS.NUM_CLASSES = 3
    node.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    node.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    node.ROI_BOX_HEAD.NUM_FC, node.ROI_BOX_HEAD.FC_DIM = 2, 32
    node.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    node.ROI_MASK_HEAD.NUM_CONV, node.ROI_MASK_HEAD.CONV_DIM = 2, 32
    node.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    for name, value in model.items():
        cfg.merge_from_list([f"MODEL.{name.replace('__', '.')}", value])
    return cfg


def make_model(**model):
    torch.manual_seed(0)
    return build_model(make_cfg(**model))


def make_input(boxes=None, size=(64, 80), seed=0):
    generator = torch.Generator().manual_seed(seed)
    item = {"image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)}
    if boxes is not None:
        masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (a, b, c, d) in zip(masks, boxes):
            mask[b:d, a:c] = True
        item["instances"] = Instances(
            size,
            gt_boxes=Boxes(torch.tensor(boxes).float().view(-1, 4)),
            gt_classes=torch.arange(len(boxes)) % 3,
            gt_masks=BitMasks(masks),
        )
    return item


FULL = [[5, 5, 40, 40], [30, 20, 70, 60]]


@pytest.mark.parametrize(
    "boxes", [(FULL, FULL), ([], FULL), ([], [])], ids=["full", "half", "none"]
)
@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_training(boxes, kind):
    """Images without objects give finite losses and a gradient for every trainable parameter."""
    model = make_model(ROI_BOX_HEAD__BBOX_REG_LOSS_TYPE=kind, RPN__BBOX_REG_LOSS_TYPE=kind)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(2):
        with EventStorage():
            losses = model([make_input(b, (64, 80 - i), i) for i, b in enumerate(boxes)])
        assert set(losses) == LOSSES
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not lacking
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
    if not any(boxes):
        assert losses["loss_box_reg"] == losses["loss_mask"] == losses["loss_rpn_loc"] == 0


def test_overfitting_one_image():
    """The losses pull the right way: a few steps on one image lower their sum clearly."""
    model = make_model(BACKBONE__FREEZE_AT=0, RESNETS__NORM="GN", FPN__NORM="GN").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(26):
        with EventStorage():
            total = sum(model([make_input(FULL)]).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert min(totals[-3:]) < 0.6 * totals[0]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_bad_images(bad):
    """Bad pixels stop the training at once; inference answers that it finds nothing."""
    model = make_model()
    item = make_input(FULL)
    item["image"] = torch.full((3, 64, 80), bad)
    with EventStorage(), pytest.raises(FloatingPointError, match="diverged"):
        model([item])
    model.eval()
    with torch.no_grad():
        (out,) = model([item])
    assert len(out["instances"]) == 0
    assert out["instances"].pred_masks.shape == (0, 64, 80)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_bad_features(bad):
    model = make_model().eval()
    images = ImageList(torch.full((1, 3, 64, 64), bad), [(60, 60)])
    features = {f"p{k}": torch.full((1, 32, 256 >> k, 256 >> k), bad) for k in range(2, 7)}
    given = Instances((60, 60), proposal_boxes=Boxes([[10.0, 10, 20, 20]]))
    given.objectness_logits = torch.ones(1)
    with torch.no_grad():
        proposals, _ = model.proposal_generator(images, features, None)
        found, _ = model.roi_heads(images, features, [given])
    assert len(proposals[0]) == 0
    assert len(found[0]) == 0


def test_inference():
    model = make_model().eval()
    item = make_input() | {"height": 128, "width": 40}
    with torch.no_grad():
        (out,) = model([item])
        (raw,) = model.inference([item], do_postprocess=False)
        given = [Instances((64, 80), pred_boxes=raw.pred_boxes, pred_classes=raw.pred_classes)]
        (again,) = model.inference([item], detected_instances=given, do_postprocess=False)
        (pasted,) = model.inference([item], detected_instances=given)
    found = out["instances"]
    assert found.image_size == (128, 40)
    assert found.pred_masks.shape[1:] == (128, 40)
    assert 0 < len(found) <= 5
    assert raw.image_size == (64, 80)
    assert raw.pred_masks.shape[1:] == (1, 28, 28)
    # Boxes that are given come back with the masks that the model would have found itself.
    torch.testing.assert_close(again.pred_masks, raw.pred_masks)
    assert not again.has("scores")
    assert torch.equal(pasted["instances"].pred_masks, found.pred_masks)
    with pytest.raises(AssertionError, match="eval"):
        model.train().inference([item])


def test_preprocessing_can_be_replaced():
    @META_ARCH_REGISTRY.register()
    class _DimForThisTest(GeneralizedRCNN):
        def preprocess_image(self, batched_inputs):
            images = super().preprocess_image(batched_inputs)
            self.seen = images
            return images

    model = make_model(META_ARCHITECTURE="_DimForThisTest", PIXEL_STD=[2.0, 4.0, 5.0]).eval()
    items = [make_input(size=(40, 70)), make_input(size=(64, 33), seed=1)]
    with torch.no_grad():
        model(items)
    assert model.seen.tensor.shape == (2, 3, 64, 96)  # multiples of 32
    assert [tuple(s) for s in model.seen.image_sizes] == [(40, 70), (64, 33)]
    mean = torch.tensor(make_cfg().MODEL.PIXEL_MEAN)
    want = (items[0]["image"][:, 3, 5].float() - mean) / torch.tensor([2.0, 4.0, 5.0])
    torch.testing.assert_close(model.seen.tensor[0, :, 3, 5], want)
    # Padding comes after normalisation: the border is 0, the mean colour.
    assert not model.seen.tensor[0, :, 40:].any()
    assert not any("pixel" in name for name in model.state_dict())


def test_precomputed_proposals():
    model = make_model(PROPOSAL_GENERATOR__NAME="PrecomputedProposals")
    assert model.proposal_generator is None
    given = Instances((64, 80), proposal_boxes=Boxes([[5.0, 5, 41, 41], [0, 0, 9, 9]]))
    given.objectness_logits = torch.zeros(2)
    with EventStorage():
        losses = model([make_input(FULL) | {"proposals": given}])
    assert set(losses) == LOSSES - {"loss_rpn_cls", "loss_rpn_loc"}
    with EventStorage(), pytest.raises(AssertionError, match="proposals"):
        model([make_input(FULL)])


def test_proposal_network():
    model = make_model(META_ARCHITECTURE="ProposalNetwork")
    with EventStorage():
        assert set(model([make_input(FULL)])) == {"loss_rpn_cls", "loss_rpn_loc"}
    model.eval()
    with torch.no_grad():
        (out,) = model([make_input() | {"height": 32, "width": 40}])
    assert out["proposals"].image_size == (32, 40)
    assert len(out["proposals"]) > 0


def test_pictures_of_training():
    cfg = make_cfg()
    cfg.VIS_PERIOD = 1
    with EventStorage() as storage:
        build_model(cfg)([make_input(FULL)])
        shapes = [tuple(entry[1].shape) for entry in storage._vis_data]
    assert (3, 64, 160) in shapes  # two panels side by side
    assert len(shapes) > 1  # and masks


@pytest.mark.parametrize(
    "change",
    [
        {"RESNETS__NORM": "BN", "BACKBONE__FREEZE_AT": 2},
        {"RESNETS__NORM": "GN", "FPN__NORM": "GN", "BACKBONE__FREEZE_AT": 0},
        {"ROI_BOX_HEAD__NORM": "GN", "ROI_BOX_HEAD__NUM_CONV": 1, "ROI_MASK_HEAD__NORM": "GN"},
        {"ROI_BOX_HEAD__CONV_DIM": 32, "BACKBONE__FREEZE_AT": 5},
        {"RESNETS__DEPTH": 34},
    ],
    ids=str,
)
def test_variants_train_and_reload(change):
    model = make_model(**change)
    with EventStorage():
        sum(model([make_input(FULL), make_input([], seed=1)]).values()).backward()
    grads = [p.grad is not None for p in model.parameters() if p.requires_grad]
    assert grads
    assert all(grads)
    twin = make_model(**change)
    twin.load_state_dict(model.state_dict())  # strict
    item = make_input(seed=5)
    with torch.no_grad():
        a, b = (m.eval()([item])[0]["instances"] for m in (model, twin))
    assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


def test_builders():
    model = make_model()
    assert model.device == torch.device("cpu")
    with pytest.raises(NotImplementedError, match="upstream"):
        make_model(META_ARCHITECTURE="RetinaNet")
    with pytest.raises(NotImplementedError, match="upstream"):
        build_sem_seg_head(make_cfg(SEM_SEG_HEAD__NAME="PointRendSemSegHead"), {})
    with pytest.raises(AssertionError, match="do not match"):
        make_model(PIXEL_STD=[1.0])

    @META_ARCH_REGISTRY.register()
    class _OwnModelForThisTest(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    assert isinstance(make_model(META_ARCHITECTURE="_OwnModelForThisTest"), _OwnModelForThisTest)
