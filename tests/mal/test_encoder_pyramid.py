"""ConvNeXt and Swin against timm's own feature pyramids."""

import re

import pytest
import timm
import torch
from torch import nn

from mal.encoder_pyramid import PyramidEncoder
from pseudolabel.errors import DataError

CONVNEXT, SWIN = "convnext_atto", "swin_tiny_patch4_window7_224"
OVERLAY = {"url": "", "hf_hub_id": None}


def random_weights(name):
    """Complete timm model with a classifier; every parameter random, so that none can hide."""
    torch.manual_seed(4)
    model = timm.create_model(name, num_classes=10)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return dict(model.state_dict())


def convnext_release(state):
    names = {"stem.": "downsample_layers.0.", "head.fc.": "head.", "head.norm.": "norm."}
    out = {}
    for key, value in state.items():
        for old, new in names.items():
            if key.startswith(old):
                key = new + key[len(old) :]
        for stage in "123":
            key = key.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
        for old, new in (("blocks.", ""), ("conv_dw", "dwconv"), ("mlp.fc", "pwconv")):
            key = key.replace(old, new)
        out[key] = value
    return {"model": out}


def swin_release(state):
    """Downsampling at the end of a stage, buffers stored, classifier without pooling."""
    out = {}
    for key, value in state.items():
        for stage in (1, 2, 3):
            key = key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample#")
        out[key.replace("#", "").replace("head.fc.", "head.")] = value
    out["layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    out["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    return {"model": out}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (CONVNEXT, dict),
        (CONVNEXT, convnext_release),
        ("convnextv2_atto", dict),
        (SWIN, swin_release),
    ],
)
def test_features_are_those_of_timm_pyramid(tmp_path, name, layout):
    path = tmp_path / "weights.pth"
    torch.save(layout(random_weights(name)), path)
    encoder = PyramidEncoder(name=name, image_size=96, weights=path).eval()
    options = {"img_size": 96, "always_partition": True} if name == SWIN else {}
    reference = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={**OVERLAY, "file": str(path)},
        features_only=True,
        out_indices=(2,),
        **options,
    ).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        features, (expected,) = encoder(images), reference(images)
    if name != SWIN:  # timm has Swin's channels last
        expected = expected.permute(0, 2, 3, 1)
    expected = nn.functional.layer_norm(expected, expected.shape[-1:], eps=1e-6)
    assert features.shape == (2, encoder.embed_dim, 6, 6)
    torch.testing.assert_close(features, expected.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", [CONVNEXT, "swinv2_tiny_window8_256"])
def test_shapes_gradients_and_layers(name):
    encoder = PyramidEncoder(name=name, image_size=64, drop_path=0.1)
    features = encoder(torch.randn(2, 3, 64, 48))
    assert features.shape == (2, encoder.embed_dim, 4, 3)
    features.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())  # the rest was removed
    layers = {key: encoder.layer_of(key) for key, _ in encoder.named_parameters()}
    matches = [re.match(r"trunk\.\w+\.\d\.blocks\.\d+", key) for key in layers]
    count = 2 + len({match[0] for match in matches if match})
    assert {n for _, n in layers.values()} == {count}
    assert {layer for layer, _ in layers.values()} == set(range(count))
    assert layers["norm.weight"][0] == count - 1
    stages = "stages" if name == CONVNEXT else "layers"
    first = [layer for key, (layer, _) in layers.items() if f"{stages}.1.downsample" in key]
    assert set(first) == {layers[next(k for k in layers if f"{stages}.1.blocks.0." in k)][0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("stages.1.blocks.0.norm.bias"), r"missing: stages\.1\.blocks\.0\.norm"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({"stages.3.blocks.9.gamma": torch.zeros(1)}), r"unexpected: stages\.3"),
        (lambda s: s.update({"stem.0.bias": torch.zeros(3)}), r"of another shape: stem\.0\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    state = random_weights(CONVNEXT)
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(DataError, match=message):
        PyramidEncoder(name=CONVNEXT, image_size=64, weights=tmp_path / "weights.pth")


def test_own_file_holds_the_kept_stages_alone_and_loads_again(tmp_path):
    from mal.encoder_weights import save_encoder_weights

    source = PyramidEncoder(name=CONVNEXT, image_size=64)
    save_encoder_weights(source, tmp_path / "own.safetensors")
    weights = tmp_path / "own.safetensors"
    encoder = PyramidEncoder(name=CONVNEXT, image_size=64, weights=weights)
    for own, other in zip(encoder.parameters(), source.parameters()):
        assert torch.equal(own, other.half().float())


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("convnext_nothing", 64, "no model 'convnext_nothing'"),
        ("swinv2_cr_tiny_224", 64, "swinv2_cr_tiny_224 is a SwinTransformerV2Cr|cannot be built"),
        ("convnext_atto", 100, "CROP_SIZE to 96"),
    ],
)
def test_impossible_pyramids_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        PyramidEncoder(name=name, image_size=size)


def test_input_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="72 x 64 is not a multiple"):
        PyramidEncoder(name=CONVNEXT, image_size=64)(torch.zeros(1, 3, 72, 64))
