"""Formats of weights, safe loading, matching by suffix, atomic saving."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import (
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
)
from iopath.common.file_io import PathHandler, PathManager
from torch import nn


class _Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1 = nn.Module()
        self.block1.layer1 = nn.Linear(2, 3)
        self.layer2 = nn.Linear(3, 2)
        self.res = nn.Module()
        self.res.layer2 = nn.Linear(3, 2)


def _suffix_weights():
    names = {"layer1": (3, 2), "layer2": (2, 3), "res.layer2": (2, 3)}
    out = OrderedDict()
    for name, shape in names.items():
        out[f"{name}.weight"], out[f"{name}.bias"] = torch.rand(shape), torch.rand(shape[0])
    return out


def _assert_suffix_weights(model, weights):
    for layer, name in ((model.block1.layer1, "layer1"), (model.res.layer2, "res.layer2")):
        assert torch.equal(layer.weight, torch.as_tensor(weights[f"{name}.weight"]))
        assert torch.equal(layer.bias, torch.as_tensor(weights[f"{name}.bias"]))
    assert torch.equal(model.layer2.weight, torch.as_tensor(weights["layer2.weight"]))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_longest_suffix_wins(prefix):
    weights = _suffix_weights()
    names = {prefix + k: v for k, v in _Complex().state_dict().items()}
    aligned = align_and_update_state_dicts(names, weights)
    assert set(aligned) == set(names)
    assert torch.equal(aligned[f"{prefix}res.layer2.bias"], weights["res.layer2.bias"])
    assert torch.equal(aligned[f"{prefix}block1.layer1.bias"], weights["layer1.bias"])


def test_ambiguous_entry_is_refused():
    model = {"a.w": torch.zeros(1), "b.w": torch.zeros(1)}
    with pytest.raises(ValueError, match="ambiguous"):
        align_and_update_state_dicts(model, {"w": torch.ones(1)})


def test_match_of_another_shape_is_left_out(caplog):
    aligned = align_and_update_state_dicts({"a.w": torch.zeros(1)}, {"w": torch.ones(2)})
    assert "a.w" not in aligned
    assert "(2,)" in caplog.text


# Caffe2 name -> ours
C2 = [
    ("conv1_w", "stem.conv1.weight"),
    ("res_conv1_bn_s", "stem.conv1.norm.weight"),
    ("res_conv1_bn_b", "stem.conv1.norm.bias"),
    ("res2_0_branch1_w", "res2.0.shortcut.weight"),
    ("res2_0_branch1_bn_s", "res2.0.shortcut.norm.weight"),
    ("res4_5_branch2a_bn_b", "res4.5.conv1.norm.bias"),
    ("res5_2_branch2b_w", "res5.2.conv2.weight"),
    ("res3_1_branch2c_w", "res3.1.conv3.weight"),
    ("res4_0_branch2a_bn_riv", "res4.0.conv1.norm.running_var"),
    ("res4_0_branch2b_gn_s", "res4.0.conv2.norm.weight"),
    ("pred_w", "linear.weight"),
]
# Names of FPN, RPN and heads: (Caffe2 name, ours)
C2_HEADS = [
    ("fpn_inner_res5_2_sum_w", "fpn_lateral5.weight"),
    ("fpn_inner_res4_22_sum_lateral_b", "fpn_lateral4.bias"),
    ("fpn_inner_res3_3_sum_lateral_gn_s", "fpn_lateral3.norm.weight"),
    ("fpn_res2_2_sum_w", "fpn_output2.weight"),
    ("conv_rpn_w", "proposal_generator.rpn_head.conv.weight"),
    ("rpn_cls_logits_fpn2_b", "proposal_generator.rpn_head.objectness_logits.bias"),
    ("rpn_bbox_pred_fpn2_w", "proposal_generator.rpn_head.anchor_deltas.weight"),
    ("fc6_w", "box_head.fc1.weight"),
    ("fc7_b", "box_head.fc2.bias"),
    ("head_conv1_gn_s", "box_head.conv1.norm.weight"),
    ("_[mask]_fcn1_w", "mask_head.mask_fcn1.weight"),
    ("_mask_fcn4_b", "mask_head.mask_fcn4.bias"),
    ("conv5_mask_w", "mask_head.deconv.weight"),
    ("lr", "lr"),
]


@pytest.mark.parametrize(("name", "expected"), C2)
def test_caffe2_names(name, expected):
    assert convert_basic_c2_names([name]) == [expected]


@pytest.mark.parametrize(("name", "expected"), [*C2, *C2_HEADS])
def test_caffe2_detector_names(name, expected):
    weight = torch.arange(6.0)
    renamed, old_of = convert_c2_detectron_names({name: weight})
    assert old_of == {expected: name}
    assert torch.equal(renamed[expected], weight)


# (Caffe2 name, ours, rows that remain, in their new order) of six rows, the background first
BACKGROUND = [
    ("cls_score_w", "cls_score.weight", [1, 2, 3, 4, 5, 0]),
    ("cls_score_b", "cls_score.bias", [1, 2, 3, 4, 5, 0]),
    ("bbox_pred_w", "bbox_pred.weight", [4, 5]),
    ("mask_fcn_logits_b", "mask_head.predictor.bias", [1, 2, 3, 4, 5]),
]


@pytest.mark.parametrize(("name", "expected", "rows"), BACKGROUND)
def test_caffe2_background_class(name, expected, rows):
    weight = torch.rand(6, 2)
    renamed, _ = convert_c2_detectron_names({name: weight})
    assert torch.equal(renamed[expected], weight[rows])


def test_caffe2_class_agnostic_boxes_stay():
    weight = torch.rand(4, 2)
    assert torch.equal(
        convert_c2_detectron_names({"bbox_pred_w": weight})[0]["bbox_pred.weight"], weight
    )


def _model_of(names):
    """A module with parameters of the given dotted names, all of shape (1,)."""
    root = nn.Module()
    for name in names:
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        module.register_parameter(leaf, nn.Parameter(torch.zeros(1)))
    return root


def test_caffe2_blobs(tmp_path):
    model = _model_of(["backbone." + new for _, new in C2])
    blobs = {old: np.full(1, i + 1.0, "float32") for i, (old, _) in enumerate(C2)}
    blobs["conv1_w_momentum"] = np.zeros(1, "float32")
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    DetectionCheckpointer(model).load(str(path))
    for i, (_, new) in enumerate(C2):
        assert model.state_dict()["backbone." + new].item() == i + 1.0


# (file name, content made from suffix-named arrays, query)
FORMATS = [
    ("zoo.pkl", lambda w: {"model": w, "__author__": "t", "matching_heuristics": True}, ""),
    ("a.pth", lambda w: {"model": w}, "?matching_heuristics=True"),
    ("bare.pth", lambda w: w, "?matching_heuristics=True"),
    ("pycls.pyth", lambda w: {"model_state": w}, ""),
]


@pytest.mark.parametrize(("name", "wrap", "query"), FORMATS)
def test_formats_with_matching(name, wrap, query, tmp_path):
    weights = _suffix_weights()
    path = tmp_path / name
    if name.endswith(".pkl"):
        arrays = {k: v.numpy() for k, v in weights.items()}
        path.write_bytes(pickle.dumps(wrap(arrays)))
    else:
        torch.save(wrap(weights), path)
    model = _Complex()
    DetectionCheckpointer(model).load(f"{path}{query}")
    _assert_suffix_weights(model, weights)


def test_zoo_file_loads_by_name_and_old_buffers_are_ignored(tmp_path, caplog):
    model = nn.Sequential(nn.Linear(2, 2))
    weights = {k: np.ones(v.shape, "float32") for k, v in model.state_dict().items()}
    weights["pixel_mean"] = np.zeros(3)
    weights["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4))
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}))
    DetectionCheckpointer(model).load(str(path))
    assert (model[0].weight == 1).all()
    assert "not used by the model" not in caplog.text


def test_what_nobody_took_is_returned(tmp_path):
    model = nn.Linear(1, 1)
    arrays = {k: v.numpy() for k, v in model.state_dict().items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}))
    assert DetectionCheckpointer(model).load(str(tmp_path / "zoo.pkl")) == {"__author__": "zoo"}
    torch.save({"model": model.state_dict(), "iteration": 7}, tmp_path / "a.pth")
    path = str(tmp_path / "a.pth")
    assert DetectionCheckpointer(model).load(path) == {"iteration": 7}
    matched = DetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    assert matched == {"iteration": 7, "matching_heuristics": True}


def test_query_of_a_pkl_has_no_effect(tmp_path, caplog):
    arrays = {k: v.numpy() for k, v in _suffix_weights().items()}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}))
    model = _Complex()
    before = model.block1.layer1.weight.clone()
    DetectionCheckpointer(model).load(f"{path}?matching_heuristics=True")
    assert torch.equal(model.block1.layer1.weight, before)
    assert "no effect" in caplog.text


def test_python2_pickle(tmp_path):
    """Zoo files of Python 2 (protocol 2): byte strings as text, numpy's old module names."""
    array = pickle.dumps(np.float32([1.5]), protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core" in array
    # {"model": {"w": array}, "__author__": "x"} with SHORT_BINSTRING keys, as Python 2 wrote them
    data = b"\x80\x02}(U\x05model}U\x01w" + array[2:-1] + b"sU\x0a__author__U\x01xu."
    path = tmp_path / "old.pkl"
    path.write_bytes(data)
    model = _model_of(["w"])
    DetectionCheckpointer(model).load(str(path))
    assert model.w.item() == 1.5


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pth"])
def test_files_that_run_code_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"model": {"w": _Evil()}, "__author__": "x"}
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(pickle.UnpicklingError, match=rf"{name}.*trust"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(path))
    assert not (tmp_path / "unpickled").exists()


def test_wrong_files(tmp_path):
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1))
    with pytest.raises((AssertionError, OSError)):
        checkpointer.load(str(tmp_path / "missing.pth"))
    torch.save({"x": 1}, tmp_path / "a.pyth")
    with pytest.raises(ValueError, match="model_state"):
        checkpointer.load(str(tmp_path / "a.pyth"))
    torch.save({"model": 3}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="state dict"):
        checkpointer.load(str(tmp_path / "b.pth"))
    with pytest.raises(ValueError, match="unknown options"):
        checkpointer.load(str(tmp_path / "b.pth") + "?foo=1")


def test_nothing_to_load_leaves_the_model():
    model = nn.Linear(1, 1)
    before = model.weight.item()
    assert DetectionCheckpointer(model).load("") == {}
    assert model.weight.item() == before


class _Counter:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_resume_or_load(tmp_path):
    model, counter = nn.Linear(1, 1), _Counter(5)
    saver = DetectionCheckpointer(model, str(tmp_path), counter=counter)
    assert not saver.has_checkpoint()
    saver.save("first", iteration=1)
    counter.value = 6
    saver.save("second", iteration=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("first.pth", "last_checkpoint", "second.pth")
    ]
    fresh = _Counter(0)
    loader = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), counter=fresh)
    assert loader.resume_or_load("unused", resume=True)["iteration"] == 2
    assert fresh.value == 6
    fresh.value = 0
    loader.resume_or_load(str(tmp_path / "first.pth"), resume=False)  # the model alone
    assert fresh.value == 0
    assert torch.equal(loader.model.weight, model.weight)


def test_failed_save_keeps_the_old_file(tmp_path):
    model, counter = nn.Linear(1, 1), _Counter(5)
    saver = DetectionCheckpointer(model, str(tmp_path), counter=counter)
    saver.save("model")
    counter.value = lambda: 0  # cannot be pickled
    with pytest.raises((AttributeError, pickle.PicklingError)):
        saver.save("model")
    loaded = torch.load(tmp_path / "model.pth", weights_only=True)
    assert loaded["counter"] == {"value": 5}


def test_save_is_off_without_a_folder_or_on_request(tmp_path):
    DetectionCheckpointer(nn.Linear(1, 1)).save("x")
    DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path), save_to_disk=False).save("x")
    assert not list(tmp_path.iterdir())


def test_own_path_handler(tmp_path):
    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["lite_test://"]

        def _get_local_path(self, path, **kwargs):
            return str(tmp_path / path.removeprefix("lite_test://"))

        def _open(self, path, mode="r", **kwargs):
            return open(self._get_local_path(path), mode)

    manager = PathManager()
    manager.register_handler(Handler())
    model = nn.Linear(1, 1)
    checkpointer = DetectionCheckpointer(model, "lite_test://")
    checkpointer.path_manager = manager
    checkpointer.save("a")
    assert (tmp_path / "a.pth").is_file()
    other = DetectionCheckpointer(nn.Linear(1, 1))
    other.path_manager = manager
    other.load("lite_test://a.pth")
    assert torch.equal(other.model.weight, model.weight)
