"""The network from its config: what is refused at the start, backbones, published weights."""

import os
import pickle
import sys

import pytest
import torch
from torch import nn

from masksmith_projects.mask2former.config import check_config
from masksmith_projects.mask2former.network import build_network
from masksmith_projects.mask2former.weights import load_whole, to_library
from pseudolabel.errors import DataError
from pseudolabel.optimizer import backbone_prefixes
from tests.projects.mask2former.tiny_model import (
    BACKBONES,
    PREFIX,
    sample,
    tiny_cfg,
    tiny_model,
)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (PREFIX + "BACKBONE", "vgg", "'vgg' is no backbone"),
        (PREFIX + "CONVS_DIM", 48, "48 is no multiple of 32"),  # group norm
        (PREFIX + "CONVS_DIM", 0, "0 is no width"),
        (PREFIX + "HIDDEN_DIM", 33, "33 is no multiple of NHEADS 2"),
        (PREFIX + "NHEADS", 0, "is no number of heads"),
        (PREFIX + "HIDDEN_DIM", 34, "34 is no multiple of 4"),
        (PREFIX + "SIZE_DIVISIBILITY", 16, "16 is no multiple of 32"),
        (PREFIX + "SIZE_DIVISIBILITY", 0, "0 is no multiple of 32"),
        (PREFIX + "DEC_LAYERS", 1, "leaves no decoder layer"),
        (PREFIX + "NUM_OBJECT_QUERIES", 0, "is too small"),
        (PREFIX + "TRAIN_NUM_POINTS", 0, "is too small"),
        (PREFIX + "OVERSAMPLE_RATIO", 0.5, "is below 1"),
        (PREFIX + "IMPORTANCE_SAMPLE_RATIO", 1.5, "is no share"),
        ("INPUT.MASK_FORMAT", "polygon", "'polygon' gives polygons"),
        ("MODEL.MASK_ON", False, "is False"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 0, "is not settled"),
    ],
)
def test_what_the_library_cannot_do_is_refused_at_the_start(key, value, message):
    with pytest.raises(DataError, match=rf"{key}: .*{message}.*Remedy: "):
        build_network(tiny_cfg([key, value]))


def test_every_rule_holds_for_a_sound_config():
    check_config(tiny_cfg())


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match=r"needs the transformers library.*masksmith\[hf\]"):
        build_network(tiny_cfg())


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_every_backbone_trains_all_that_is_left_trainable(backbone):
    model = tiny_model(backbone=backbone).train()
    losses = model([sample(), sample(boxes=(), seed=1)])
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [], "several processes would wait for these"
    encoder = [n for n, p in model.named_parameters() if ".encoder." in n and p.grad is not None]
    assert encoder
    # The learning rate of the backbone is its alone; the pixel decoder has an encoder, too.
    (prefix,) = backbone_prefixes(model)
    within = {n for n, _ in model.named_parameters() if n.startswith(prefix)}
    backbone = model.model.pixel_level_module.encoder
    assert len(within) == len(list(backbone.parameters()))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]], r"IN_FEATURES: .*'res5': 32"),
        ([PREFIX + "IN_FEATURES", ("res5", "res4", "res3", "res2")], "IN_FEATURES: .*stride"),
        ([PREFIX + "PRETRAINED", "x"], "PRETRAINED: is for the library's backbones"),
        ([PREFIX + "BACKBONE_WEIGHTS", "x"], "BACKBONE_WEIGHTS: is for the library's backbones"),
    ],
)
def test_a_detectron2_backbone_that_does_not_fit(opts, message):
    with pytest.raises(DataError, match=message):
        build_network(tiny_cfg(opts, "detectron2"))


def test_feature_pyramids_fit_too():
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 16]
    opts += ["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
    opts += [PREFIX + "IN_FEATURES", ("p2", "p3", "p4", "p5")]
    losses = tiny_model(opts, "detectron2").train()([sample()])
    assert all(torch.isfinite(value) for value in losses.values())


def test_frozen_batch_norm_of_the_library_resnet_keeps_its_state():
    model = tiny_model([PREFIX + "FREEZE_NORM", True], "resnet").train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    sum(model([sample()]).values()).backward()
    assert norms
    assert all(not norm.training for norm in norms)
    assert all(p.grad is None for norm in norms for p in norm.parameters())
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as the library writes it, and the model whose weights are in it."""
    model = tiny_model(seed=3)
    folder = tmp_path_factory.mktemp("published")
    to_library(model).save_pretrained(folder)
    return folder, model


def test_names_of_the_state_are_the_library_s(published):
    from transformers import Mask2FormerForUniversalSegmentation

    _, model = published
    whole = Mask2FormerForUniversalSegmentation(model.model.config)
    assert list(model.state_dict()) == list(whole.state_dict())
    whole.load_state_dict(model.state_dict())


def test_a_folder_round_trip_changes_nothing(published):
    folder, model = published
    other = tiny_model([PREFIX + "PRETRAINED", str(folder)], seed=4)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_with_other_classes_only_the_class_head_is_new(published):
    folder, model = published
    opts = [PREFIX + "PRETRAINED", str(folder), "MODEL.ROI_HEADS.NUM_CLASSES", 7]
    other = tiny_model(opts, seed=4).state_dict()
    assert other["class_predictor.weight"].shape == (8, 32)
    assert other["criterion.empty_weight"].tolist() == pytest.approx([1.0] * 7 + [0.1])
    for name, value in model.state_dict().items():
        if not name.startswith(("class_predictor", "criterion")):
            assert torch.equal(other[name], value), name


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([PREFIX + "NUM_OBJECT_QUERIES", 9], "of another network: 2 weights"),
        ([PREFIX + "DEC_LAYERS", 4], "of another network: .* first model.transformer_module"),
        ([PREFIX + "DEC_LAYERS", 2], "0 weights are absent .* have no place"),
        ([PREFIX + "PRE_NORM", True], "PRE_NORM: is True, .* for False"),
    ],
)
def test_weights_of_another_network_are_refused(published, opts, message):
    with pytest.raises(DataError, match=message):
        tiny_model([PREFIX + "PRETRAINED", str(published[0]), *opts])


@pytest.mark.parametrize("key", ["PRETRAINED", "BACKBONE_WEIGHTS"])
def test_a_missing_folder_is_not_looked_up_as_a_name(key, tmp_path):
    with pytest.raises(DataError, match=rf"{key}: there is no folder .*nothing"):
        tiny_model([PREFIX + key, str(tmp_path / "nothing")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=rf"{key}: .*empty cannot be loaded"):
        tiny_model([PREFIX + key, str(tmp_path / "empty")])


def test_a_pickle_is_read_without_running_it(published, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    network = build_network(tiny_cfg())
    network.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_whole(network, str(tmp_path))
    torch.save({"class_predictor.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_whole(network, str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_of_tensors_loads(published, tmp_path):
    _, model = published
    model.model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    other = tiny_model([PREFIX + "PRETRAINED", str(tmp_path)], seed=4)
    assert torch.equal(other.class_predictor.weight, model.class_predictor.weight)


def test_a_classifier_gives_the_backbone(tmp_path):
    from transformers import SwinForImageClassification

    config = tiny_model().model.pixel_level_module.encoder.config
    classifier = SwinForImageClassification(config)
    classifier.save_pretrained(tmp_path)
    model = tiny_model([PREFIX + "BACKBONE_WEIGHTS", str(tmp_path)], seed=4)
    loaded = model.model.pixel_level_module.encoder.state_dict()
    names = [name for name in classifier.state_dict() if name in loaded]
    assert len(names) > 50
    for name in names:
        assert torch.equal(loaded[name], classifier.state_dict()[name]), name
    with pytest.raises(DataError, match="of another network"):
        tiny_model([PREFIX + "BACKBONE_WEIGHTS", str(tmp_path), PREFIX + "SWIN.EMBED_DIM", 16])
