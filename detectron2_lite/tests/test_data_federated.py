"""Class frequencies of the federated loss, read from the metadata of the training data."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

COUNTS = [{"id": 3, "image_count": 1}, {"id": 1, "image_count": 9}, {"id": 2, "image_count": 100}]


@pytest.fixture(scope="module", autouse=True)
def metadata():
    names = {"fed_a": COUNTS, "fed_same": COUNTS, "fed_other": COUNTS[:2]}
    for name, counts in names.items():
        MetadataCatalog.get(name).class_image_count = counts
    yield
    for name in [*names, "fed_without"]:
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    ("names", "power", "want"),
    [
        ("fed_a", 1.0, [9.0, 100, 1]),  # in the order of the ids
        (["fed_a", "fed_same"], 0.5, [3.0, 10, 1]),
        (("fed_a",), 0.0, [1.0, 1, 1]),
    ],
)
def test_weights(names, power, want):
    assert get_fed_loss_cls_weights(names, power).tolist() == pytest.approx(want)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("fed_without", AttributeError, "set MetadataCatalog"),  # the remedy
        (["fed_a", "fed_other"], ValueError, "class_image_count"),  # they disagree
        ([], ValueError, "DATASETS.TRAIN"),
    ],
)
def test_mistakes(names, error, message):
    with pytest.raises(error, match=message):
        get_fed_loss_cls_weights(names)


def test_from_config():
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    cfg.DATASETS.TRAIN = ("fed_a",)
    predictor = FastRCNNOutputLayers(cfg, ShapeSpec(channels=4))
    torch.testing.assert_close(predictor.fed_loss_cls_weights, torch.tensor([3.0, 10, 1]))
    # As upstream does, the weights are saved with the model.
    assert "fed_loss_cls_weights" in predictor.state_dict()
