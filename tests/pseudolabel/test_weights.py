"""Weight names: torchvision's ResNet to Detectron2's."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pseudolabel.errors import DataError
from pseudolabel.weights import convert_file, convert_resnet, detectron2_name

ROOT = Path(__file__).resolve().parents[2]
B = "backbone.bottom_up."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv1.weight", B + "stem.conv1.weight"),
        ("bn1.running_var", B + "stem.conv1.norm.running_var"),
        # Stage numbers move by one, block numbers stay, two digits too (ResNet-101).
        ("layer1.0.conv1.weight", B + "res2.0.conv1.weight"),
        ("layer3.22.bn3.bias", B + "res4.22.conv3.norm.bias"),
        ("layer4.0.downsample.0.weight", B + "res5.0.shortcut.weight"),
        ("layer4.0.downsample.1.running_mean", B + "res5.0.shortcut.norm.running_mean"),
        # Left out on purpose.
        ("fc.weight", None),
        ("layer1.0.bn1.num_batches_tracked", None),
    ],
)
def test_names(name, expected):
    assert detectron2_name(name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "conv2.weight",  # the stem has one convolution
        "downsample.0.weight",  # and no shortcut
        "layer5.0.conv1.weight",
        "layer1.0.se.weight",
        "module.conv1.weight",
        "layer1.0.conv1.weight.extra",
        "",
    ],
)
def test_unknown_names(name):
    with pytest.raises(KeyError):
        detectron2_name(name)


@given(
    st.integers(1, 4),
    st.integers(0, 35),
    st.sampled_from(["conv1", "bn2", "conv3", "downsample.0", "downsample.1"]),
    st.sampled_from(["weight", "bias", "running_mean"]),
)
def test_names_keep_apart(layer, block, module, leaf):
    """Two entries never fall on one name."""
    name = f"layer{layer}.{block}.{module}.{leaf}"
    others = {f"layer{n}.{block}.{m}.{leaf}" for n in range(1, 5) for m in ("conv1", "bn1", "bn3")}
    targets = [detectron2_name(n) for n in others | {name}]
    assert len(set(targets)) == len(targets)


@pytest.fixture
def tiny():
    """A ResNet with a stem, one block, a classifier and half-precision matrices."""
    return {
        "conv1.weight": torch.rand(4, 3, 7, 7).half(),
        "bn1.weight": torch.rand(4),
        "bn1.num_batches_tracked": torch.tensor(7),
        "layer1.0.conv1.weight": torch.rand(4, 4, 1, 1).half(),
        "fc.weight": torch.rand(10, 4),
        "fc.bias": torch.rand(10),
    }


def test_convert(tiny):
    result = convert_resnet(tiny)
    assert set(result.model) == {
        B + "stem.conv1.weight",
        B + "stem.conv1.norm.weight",
        B + "res2.0.conv1.weight",
    }
    assert all(value.dtype == torch.float32 for value in result.model.values())
    assert torch.equal(result.model[B + "stem.conv1.weight"], tiny["conv1.weight"].float())
    assert sorted(result.dropped) == ["bn1.num_batches_tracked", "fc.bias", "fc.weight"]
    assert result.absent == ["res3", "res4", "res5"]


def test_unknown_entries_are_named(tiny):
    with pytest.raises(DataError, match=r"w.pth: 1 entries .*blocks.0.attn.weight"):
        convert_resnet({**tiny, "blocks.0.attn.weight": torch.zeros(1)}, "w.pth")


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_file(tiny, tmp_path, wrapper):
    torch.save({wrapper: tiny, "epoch": 3} if wrapper else tiny, tmp_path / "in.pth")
    convert_file(tmp_path / "in.pth", tmp_path / "out.pth")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert content["matching_heuristics"] is False
    assert content["model"].keys() == convert_resnet(tiny).model.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "do not exist"),
        (b"no checkpoint", "not a safe checkpoint"),
        (b"", "not a safe checkpoint"),
        ({"a": 1}, "no plain state dict"),
        ([torch.zeros(1)], "no plain state dict"),
        ({}, "no ResNet weights"),
        # Code in the pickle is not run.
        ({"conv1.weight": Path("x")}, "not a safe checkpoint"),
    ],
)
def test_bad_files(tmp_path, content, message):
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    target.write_text("earlier")
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    with pytest.raises(DataError, match=message):
        convert_file(source, target)
    assert target.read_text() == "earlier"  # the last complete file stays


def test_command_says_what_it_did(tiny, tmp_path):
    torch.save(tiny, tmp_path / "in.pth")
    command = [sys.executable, str(ROOT / "tools/convert_weights.py"), "in.pth"]
    done = subprocess.run(
        [*command, "out.pth"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "fc.weight, fc.bias" in done.stdout
    assert "start at random: res3, res4, res5" in done.stdout
    torch.save({"x": torch.zeros(1)}, tmp_path / "in.pth")
    failed = subprocess.run([*command, "x.pth"], cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "not torchvision ResNet names: x" in failed.stderr
    assert not (tmp_path / "x.pth").exists()


def test_real_weights_fill_a_real_backbone(data_dir, tmp_path):
    """ResNet-50 without layer4: every name of stem to res4, with the model's shapes."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_backbone
    from torch import nn

    source = data_dir / "weights/resnet50_caffe_c2c4.fp16.pth"
    result = convert_file(source, tmp_path / "r50.pth")
    assert result.absent == ["res5"]
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model = nn.Module()
    model.backbone = build_backbone(cfg)
    wanted = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if name.startswith((B + "stem", B + "res2", B + "res3", B + "res4"))
        and not name.endswith("num_batches_tracked")
    }
    assert {name: tuple(value.shape) for name, value in result.model.items()} == wanted
    DetectionCheckpointer(model).load(str(tmp_path / "r50.pth"))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in result.model.items())
