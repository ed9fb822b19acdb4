"""The network from its config: what is refused at the start, backbones, published weights."""

import os
import pickle
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from masksmith_projects.mask2former import network
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
        (PREFIX + "CONVS_DIM", 0, "0 is too small"),
        (PREFIX + "HIDDEN_DIM", 33, "33 is no multiple of NHEADS 2"),
        (PREFIX + "NHEADS", 0, "is too small"),
        (PREFIX + "HIDDEN_DIM", 34, "34 is no multiple of 4"),
        (PREFIX + "SIZE_DIVISIBILITY", 16, "16 is no multiple of 32"),
        (PREFIX + "SIZE_DIVISIBILITY", 0, "0 is no multiple of 32"),
        (PREFIX + "DEC_LAYERS", 1, "leaves no decoder layer"),
        (PREFIX + "NUM_OBJECT_QUERIES", 0, "is too small"),
        (PREFIX + "TRAIN_NUM_POINTS", 0, "is too small"),
        (PREFIX + "OVERSAMPLE_RATIO", 0.5, "is below 1"),
        (PREFIX + "IMPORTANCE_SAMPLE_RATIO", 1.5, "is no share"),
        (PREFIX + "HIDDEN_DIM", 0, "is too small"),  # a multiple of everything
        (PREFIX + "MASK_DIM", 0, "is too small"),
        (PREFIX + "ENC_DIM_FEEDFORWARD", 0, "is too small"),
        (PREFIX + "DIM_FEEDFORWARD", -1, "is too small"),
        (PREFIX + "TRANSFORMER_ENC_LAYERS", 0, "is too small"),
        (PREFIX + "SWIN.WINDOW_SIZE", 0, "is too small"),
        (PREFIX + "SWIN.DEPTHS", (1, 1), "is no number per stage"),
        (PREFIX + "SWIN.NUM_HEADS", (1, 1, 2, 0), "is no number per stage"),
        (PREFIX + "SWIN.NUM_HEADS", (1, 1, 3, 2), r"do not divide the widths \[8, 16, 32, 64\]"),
        (PREFIX + "SWIN.DROP_PATH_RATE", 1.0, "is no share"),
        (PREFIX + "RESNET.WIDTHS", (8, 8, 8, 8, 8), "is no number per stage"),
        (PREFIX + "RESNET.BLOCK", "x", "'x' is no block"),
        (PREFIX + "CLASS_WEIGHT", -1.0, "turns a loss around"),
        (PREFIX + "MASK_WEIGHT", float("nan"), "turns a loss around"),
        (PREFIX + "NO_OBJECT_WEIGHT", -1.0, "is no weight"),
        (PREFIX + "NO_OBJECT_WEIGHT", 0.0, "is no weight"),  # its term is 0 / 0 in an empty batch
        ("TEST.DETECTIONS_PER_IMAGE", 0, "leaves no result"),
        ("INPUT.MASK_FORMAT", "polygon", "'polygon' gives polygons"),
        ("MODEL.MASK_ON", False, "is False"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 0, "is not settled"),
    ],
)
def test_what_the_library_cannot_do_is_refused_at_the_start(key, value, message):
    with pytest.raises(DataError, match=rf"{key}: .*{message}.*Remedy: "):
        build_network(tiny_cfg([key, value]))


def test_weights_of_all_losses_must_not_be_zero():
    opts = [o for name in ("CLASS", "MASK", "DICE") for o in (f"{PREFIX}{name}_WEIGHT", 0.0)]
    with pytest.raises(DataError, match=r"CLASS_WEIGHT: 0\.0 is 0 as the other two are"):
        check_config(tiny_cfg(opts))
    check_config(tiny_cfg(opts[2:]))


def test_weights_of_the_whole_and_of_the_backbone_are_refused_together():
    opts = [PREFIX + "PRETRAINED", "a/b", PREFIX + "BACKBONE_WEIGHTS", "c/d"]
    with pytest.raises(DataError, match="BACKBONE_WEIGHTS: 'c/d' is not read where PRETRAINED"):
        check_config(tiny_cfg(opts))


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


def test_a_file_of_an_older_library_version_loads(published, tmp_path):
    """On the hub are such: no `swin.` level, and no norm behind the last feature map."""
    folder, model = published
    state = load_file(folder / "model.safetensors")
    old = {n.replace("encoder.swin.", "encoder."): v for n, v in state.items()}
    norms = [n for n in old if n.endswith(("encoder.layernorm.weight", "encoder.layernorm.bias"))]
    assert len(norms) == 2
    for name in norms:
        del old[name]
    shutil.copy(folder / "config.json", tmp_path)
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    other = tiny_model([PREFIX + "PRETRAINED", str(tmp_path)], seed=4)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("key", ["PRETRAINED", "BACKBONE_WEIGHTS"])
def test_a_checkpoint_takes_the_place_of_the_weights_of_the_start(key, tmp_path, monkeypatch):
    """An evaluation of a finished run needs neither their folder nor the internet."""
    opts = [PREFIX + key, str(tmp_path / "gone"), "MODEL.WEIGHTS", "model_final.pth"]
    said = []
    monkeypatch.setattr(network.logger, "warning", lambda text, *a: said.append(text % a))
    build_network(tiny_cfg(opts))
    assert said == [f"{tmp_path / 'gone'} is not loaded, since MODEL.WEIGHTS takes its place"]


def test_with_other_classes_only_the_class_head_is_new(published):
    folder, model = published
    opts = [PREFIX + "PRETRAINED", str(folder), "MODEL.ROI_HEADS.NUM_CLASSES", 7]
    other = tiny_model(opts, seed=4).state_dict()
    # Drawn before anything is loaded: alike in all processes, whatever loading draws.
    drawn = tiny_model(opts[2:], seed=4).state_dict()
    assert other["class_predictor.weight"].shape == (8, 32)
    assert torch.equal(other["class_predictor.weight"], drawn["class_predictor.weight"])
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
    with pytest.raises(DataError, match=rf"{key}: .*empty cannot be loaded .*no config.json"):
        tiny_model([PREFIX + key, str(tmp_path / "empty")])


@pytest.mark.parametrize("source", ["pubb", "weights/pubb", "output/pubb", "a/b/c", "a/", "../a"])
def test_what_is_no_name_is_not_looked_up(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    with pytest.raises(DataError, match=f"PRETRAINED: there is no folder {source}.*OWNER/NAME"):
        load_whole(SimpleNamespace(), source)  # nothing of it is used


def test_a_name_that_cannot_be_had_says_that_it_was_looked_up():
    class Offline:
        def __init__(self):
            self.config = self

        @classmethod
        def from_pretrained(cls, place):
            raise OSError(f"no connection for {place}")

    message = "PRETRAINED: owner/name, looked up as a name .*no connection for owner/name"
    with pytest.raises(DataError, match=message):
        load_whole(Offline(), "owner/name")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_damaged_files_of_a_folder(published, name, share, tmp_path):
    folder = shutil.copytree(published[0], tmp_path / "copy")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"PRETRAINED: .*copy cannot be loaded"):
        load_whole(build_network(tiny_cfg()), str(folder))


def test_a_pickle_is_read_without_running_it(published, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    whole = build_network(tiny_cfg())
    whole.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_whole(whole, str(tmp_path))
    torch.save({"class_predictor.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_whole(whole, str(tmp_path))
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
