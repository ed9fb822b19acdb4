"""Class-aware decoders: one mask per class, and whose class is which category."""

import json

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from mal.categories import category_classes, settle_categories
from mal.data import BoxCropPipeline  # noqa: F401  (registers itself)
from mal.labeler import mal
from mal.mask_auto_labeler import MaskAutoLabeler
from mal.network import DECODERS
from pseudolabel.errors import DataError
from tests.tiny import tiny_config, write_coco

AREAS = torch.tensor([50.0, 5000.0, 20000.0, 50.0])
SIZES = {"in_dim": 8, "hidden_dim": 8, "out_dim": 6, "map_size": 12}
# What has a part per class, along its first dimension.
PER_CLASS = {
    "attention": ["key.2.weight", "key.2.bias"],
    "fully_connected": ["code.weight", "code.bias"],
    "fully_convolutional": ["output.weight", "output.bias"],
    "query": ["query"],
}


def make(name, num_classes):
    torch.manual_seed(0)
    return DECODERS[name][0](**SIZES, num_classes=num_classes)


# the decoders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PER_CLASS)
def test_each_class_has_the_map_of_its_own_weights(name):
    """An agnostic decoder with the weights of one class draws that class's map."""
    aware, plain = make(name, 3), make(name, 0)
    features, classes = torch.randn(4, 8, 5, 5), torch.tensor([2, 0, 1, 2])
    logits = aware(features, AREAS, classes)
    for own in range(3):
        state = dict(aware.state_dict())
        for key in PER_CLASS[name]:
            state[key] = state[key].chunk(3)[own]
        plain.load_state_dict(state)
        chosen = classes == own
        torch.testing.assert_close(plain(features, AREAS)[chosen], logits[chosen])
        assert not torch.allclose(plain(features, AREAS)[~chosen], logits[~chosen])


@pytest.mark.parametrize("name", PER_CLASS)
def test_classes_of_equal_weights_are_one_agnostic_decoder(name):
    aware, plain = make(name, 3), make(name, 0)
    state = dict(plain.state_dict())
    for key in PER_CLASS[name]:
        state[key] = state[key].repeat(3, *[1] * (state[key].ndim - 1))
    aware.load_state_dict(state)
    features = torch.randn(4, 8, 5, 5)
    logits = aware(features, AREAS, torch.tensor([2, 0, 1, 2]))
    torch.testing.assert_close(logits, plain(features, AREAS))


@pytest.mark.parametrize("name", PER_CLASS)
def test_an_absent_class_learns_nothing(name):
    decoder = make(name, 3)
    logits = decoder(torch.randn(4, 8, 5, 5), AREAS, torch.tensor([0, 2, 0, 2]))
    logits.square().sum().backward()
    for key in PER_CLASS[name]:
        parts = decoder.get_parameter(key).grad.chunk(3)
        assert [bool(part.any()) for part in parts] == [True, False, True]


@pytest.mark.parametrize("name", PER_CLASS)
def test_an_agnostic_decoder_takes_no_notice_of_classes(name):
    decoder, features = make(name, 0), torch.randn(4, 8, 5, 5)
    told = decoder(features, AREAS, torch.tensor([7, 0, -1, 2]))
    assert torch.equal(told, decoder(features, AREAS))


@pytest.mark.parametrize("name", PER_CLASS)
@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, "3 classes needs the class of every box"),
        (torch.tensor([0, 1, 2]), "4 crops need 4 classes"),
        (torch.tensor([[0, 1, 2, 0]]), "4 crops need 4 classes"),
        (torch.tensor([0, 3, 0, 0]), "class 3 is none of the decoder's 0 to 2"),
        (torch.tensor([0, 1, -1, 0]), "class -1 is none"),  # would count from the end
    ],
)
def test_missing_and_impossible_classes_are_refused(name, classes, message):
    with pytest.raises(ValueError, match=message):
        make(name, 3)(torch.randn(4, 8, 5, 5), AREAS, classes)


# their categories -----------------------------------------------------------------------------


def category_cfg(num_classes, stated=(), **datasets):
    """A config whose data sets, {"train": ids, "test": ids}, are registered by their ids alone."""
    cfg = CfgNode()
    cfg.MODEL, cfg.DATASETS = CfgNode({"MAL": CfgNode({"DECODER": CfgNode()})}), CfgNode()
    cfg.MODEL.MAL.DECODER.NUM_CLASSES = num_classes
    cfg.MODEL.MAL.DECODER.CATEGORY_IDS = stated
    for split in ("train", "test"):
        ids = datasets.get(split, ())
        name = f"categories_{split}_{'_'.join(map(str, ids))}"
        if ids:
            index = {category: place for place, category in enumerate(ids)}
            MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = index
        cfg.DATASETS[split.upper()] = (name,)
    cfg.freeze()
    return cfg


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_classes": 2, "train": (3, 8)}, (3, 8)),
        ({"num_classes": 2, "train": (8, 3)}, (8, 3)),  # in the order of the indices
        ({"num_classes": 2, "train": (3, 8), "test": (3, 8)}, (3, 8)),
        ({"num_classes": 2, "stated": [3, 8], "train": (3, 8)}, (3, 8)),  # a run that goes on
        ({"num_classes": 0, "train": (3, 8), "test": (5,)}, ()),  # class-agnostic: any mixture
        ({"num_classes": 2, "stated": (4, 9)}, (4, 9)),  # nothing to compare with
    ],
)
def test_category_ids_come_from_the_data(arguments, expected):
    cfg = category_cfg(**arguments)
    settle_categories(cfg)
    assert tuple(cfg.MODEL.MAL.DECODER.CATEGORY_IDS) == expected
    assert cfg.is_frozen()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 3, "train": (3, 8)}, "NUM_CLASSES is 3.*2 categories.*set it to 2"),
        ({"num_classes": 2, "train": (3, 8), "test": (3, 9)}, "category ids of .* differ"),
        ({"num_classes": 2, "train": (3, 8), "test": (8, 3)}, "category ids of .* differ"),
        ({"num_classes": 2, "stated": (8, 3), "train": (3, 8)}, "CATEGORY_IDS are not those of"),
    ],
)
def test_categories_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        settle_categories(category_cfg(**arguments))


def test_categories_become_class_indices():
    classes = category_classes((3, 8, 90), [90, 3, 3], np.zeros((3, 4)))
    assert classes.tolist() == [2, 0, 0]
    assert classes.dtype == torch.long


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (None, "category of each of 2 boxes, got none"),
        ([3], "category of each of 2 boxes, got 1"),
        ([3, 7], r"box \[1\.0, 2\.0, 3\.0, 4\.0\].*not trained on category 7"),
    ],
)
def test_unknown_categories_name_their_box(categories, message):
    boxes = np.array([[0, 0, 9, 9], [1, 2, 3, 4]], float)
    with pytest.raises(DataError, match=message):
        category_classes((3, 8), categories, boxes)


# the labeler ----------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path):
    """config.yaml and checkpoint of a class-aware run on categories 3 and 8, whose JSON is gone."""
    json_file = write_coco(tmp_path)
    cfg = tiny_config("mal/sample", json_file, tmp_path / "out")
    cfg.MODEL.MAL.DECODER.NUM_CLASSES = 2
    settle_categories(cfg)
    torch.manual_seed(0)
    model = MaskAutoLabeler(cfg)
    with torch.no_grad():  # class 0 is background everywhere, class 1 foreground
        for network in (model.student, model.teacher):
            half = len(network.decoder.key[2].bias) // 2
            network.decoder.key[2].bias[:half] = -50
            network.decoder.key[2].bias[half:] = 50
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    json_file.unlink()
    return config, tmp_path / "model.pth"


IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
BOXES = np.array([[4, 4, 40, 40], [20, 10, 60, 50]], float)


def test_labeler_maps_category_ids_without_the_training_json(trained):
    labeler = mal(str(trained[0]), str(trained[1]))
    assert labeler.needs_categories is True
    assert labeler.category_ids == (3, 8)
    for categories, full in (([3, 8], [False, True]), ([8, 3], [True, False])):
        records = labeler.label(IMAGE, BOXES, categories=categories)
        assert [record.mask_source == "model" for record in records] == full
    with pytest.raises(DataError, match="not trained on category 5"):
        labeler.label(IMAGE, BOXES, categories=[3, 5])
    with pytest.raises(DataError, match="got none"):
        labeler.label(IMAGE, BOXES)
    json.dumps(labeler.describe())


def test_labeler_without_the_category_ids_says_where_they_are(trained):
    opts = ["MODEL.MAL.DECODER.CATEGORY_IDS", "(3,)"]
    with pytest.raises(DataError, match=r"1 CATEGORY_IDS for a decoder of 2.*config\.yaml"):
        mal(str(trained[0]), str(trained[1]), opts)


def test_agnostic_labeler_needs_no_categories(tmp_path):
    cfg = tiny_config("mal/sample", write_coco(tmp_path), tmp_path / "out")
    DetectionCheckpointer(MaskAutoLabeler(cfg), str(tmp_path)).save("model")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    labeler = mal(str(tmp_path / "config.yaml"), str(tmp_path / "model.pth"))
    assert labeler.needs_categories is False
    assert labeler.label(IMAGE, BOXES) == labeler.label(IMAGE, BOXES, categories=[77, 78])
