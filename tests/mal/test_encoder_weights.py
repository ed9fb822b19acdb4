"""Pretrained weights in the layouts of their releases, against timm's own models and loader."""

import argparse
import logging

import pytest
import timm
import torch
from safetensors.torch import save_file

from mal.encoder import ViTEncoder
from mal.encoder_weights import load_encoder_weights, save_encoder_weights
from pseudolabel.errors import DataError

TINY = {"embed_dim": 64, "depth": 2, "num_heads": 2}
SIDE = {14: 56, 16: 64}


def timm_model(name, **options):
    """A tiny model of that architecture; every parameter random, so that none can hide."""
    torch.manual_seed(2)
    side = SIDE[14 if "patch14" in name else 16]
    options = {"img_size": side, "dynamic_img_size": True, "num_classes": 0, **TINY, **options}
    vit = timm.create_model(name, global_pool="token", **options).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return vit


def renamed(state, *pairs):
    for old, new in pairs:
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


def with_pretext(state):
    decoder = {"decoder_embed.weight": torch.ones(3), "decoder_blocks.0.norm1.bias": torch.ones(3)}
    return {"model": {**state, "mask_token": torch.ones(1, 1, 64), **decoder}}


def with_heads(state):
    return {"model": {**state, "head.weight": torch.ones(9, 64), "head_dist.bias": torch.ones(9)}}


def deit3(state):
    return renamed(state, (".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2"))


def dino_training(state):
    teacher = {f"module.backbone.{key}": value for key, value in state.items()}
    teacher["module.head.mlp.0.weight"] = torch.ones(4, 64)
    return {"student": {"other": torch.ones(1)}, "teacher": teacher, "epoch": 3}


def dinov2(state):
    return {**state, "mask_token": torch.zeros(1, 64)}


def dinov2_registers(state):
    """The class token has a position of its own there."""
    position = torch.full((1, 1, 64), 0.3)
    state = renamed(state, ("reg_token", "register_tokens"))
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    return {**state, "mask_token": torch.zeros(1, 64)}


def dinov3(state):
    """One bias of queries, keys and values, of which the keys' part is masked and holds NaN."""
    state = renamed(
        state,
        ("reg_token", "storage_tokens"),
        ("gamma_1", "ls1.gamma"),
        ("gamma_2", "ls2.gamma"),
        ("mlp.fc1_g", "mlp.w1"),
        ("mlp.fc1_x", "mlp.w2"),
        *([("mlp.fc2", "mlp.w3")] if "blocks.0.mlp.fc1_g.bias" in state else []),
    )
    for block in ("blocks.0.attn.", "blocks.1.attn."):
        query = state.pop(f"{block}q_bias", torch.zeros(64))
        value = state.pop(f"{block}v_bias", torch.zeros(64))
        state[f"{block}qkv.bias"] = torch.cat([query, torch.full((64,), torch.nan), value])
        mask = torch.cat([torch.ones(64), torch.zeros(64), torch.ones(64)])
        state[f"{block}qkv.bias_mask"] = mask
    periods = timm_model("vit_small_patch16_dinov3").rope.periods.bfloat16()
    return {**state, "mask_token": torch.zeros(1, 64), "rope_embed.periods": periods}


LAYOUTS = [
    ("vit_tiny_patch16_224", dict),  # timm's own; MAE and DINO without pretext parts are the same
    ("vit_base_patch16_224", with_pretext),  # MAE with its decoder
    ("deit_tiny_patch16_224", with_heads),
    ("deit_tiny_distilled_patch16_224", with_heads),  # two prefix tokens
    (
        "deit3_small_patch16_224",
        lambda s: renamed(s, (".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2")),
    ),
    ("vit_small_patch16_224", dino_training),  # a checkpoint of the training itself
    ("vit_small_patch14_dinov2", dinov2),
    ("vit_base_patch14_reg4_dinov2", dict),  # as timm converted it
    ("vit_base_patch14_reg4_dinov2", dinov2_registers),
    ("vit_large_patch16_dinov3", dict),
    ("vit_small_patch16_dinov3", dinov3),  # biases are there, and zero
    ("vit_small_patch16_dinov3_qkvb", dinov3),
    ("vit_small_plus_patch16_dinov3", dinov3),  # gated MLP
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_features_are_those_of_the_timm_model(tmp_path, name, layout):
    vit = timm_model(name)
    torch.save(layout(dict(vit.state_dict())), tmp_path / "release.pth")
    patch = vit.patch_embed.patch_size[0]
    side = SIDE[patch]
    encoder = ViTEncoder(name=name, image_size=side, **TINY, weights=tmp_path / "release.pth")
    encoder.eval()
    for size in ((side, side), (side + 2 * patch, side)):  # the stored grid and another
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            features = encoder(images)
            expected = vit.forward_features(images)[:, vit.num_prefix_tokens :]
        assert features.shape == (2, 64, size[0] // patch, size[1] // patch)
        torch.testing.assert_close(features.flatten(2), expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("vit_small_patch14_dinov2", dinov2),
        ("vit_base_patch14_reg4_dinov2", dinov2_registers),
        ("vit_small_patch16_dinov3_qkvb", dinov3),
        ("vit_small_plus_patch16_dinov3", dinov3),
    ],
)
def test_releases_load_as_timm_loads_them(tmp_path, name, layout):
    path = tmp_path / "release.pth"
    torch.save(layout(dict(timm_model(name).state_dict())), path)
    overlay = {"file": str(path), "url": "", "hf_hub_id": None}
    reference = timm_model_from(name, overlay)
    side = SIDE[reference.patch_embed.patch_size[0]]
    encoder = ViTEncoder(name=name, image_size=side, **TINY, weights=path)
    own, theirs = encoder.vit.state_dict(), reference.state_dict()
    assert own.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(own[key], value, msg=key)


@pytest.mark.parametrize(("gated", "activation"), [(False, "gelu"), (True, "silu")])
def test_dinov3_of_transformers_gives_its_own_features(tmp_path, gated, activation):
    """An implementation of its own, rotary positions and all."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.DINOv3ViTConfig(
        **sizes,
        intermediate_size=256,
        num_register_tokens=4,
        use_gated_mlp=gated,
        hidden_act=activation,
    )
    model = transformers.DINOv3ViTModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    name = "vit_small_plus_patch16_dinov3_qkvb" if gated else "vit_small_patch16_dinov3_qkvb"
    weights = tmp_path / "model.safetensors"
    encoder = ViTEncoder(name=name, image_size=64, **TINY, weights=weights).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        features = encoder(images).flatten(2).transpose(1, 2)
        expected = model(images).last_hidden_state[:, 5:]
    torch.testing.assert_close(features, expected)


def timm_model_from(name, overlay):
    side = SIDE[14 if "patch14" in name else 16]
    options = {"img_size": side, "dynamic_img_size": True, "num_classes": 0, **TINY}
    return timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, global_pool="token", **options
    )


def _registers_missing(state):
    return {key: value for key, value in dinov2(state).items() if key != "reg_token"}


def _biased_keys(state):
    state = dinov3(state)
    state["blocks.1.attn.qkv.bias"] = torch.ones(192)
    del state["blocks.1.attn.qkv.bias_mask"]
    return state


def _other_periods(state):
    state = dinov3(state)
    state["rope_embed.periods"] = state["rope_embed.periods"] * 1.1
    return state


@pytest.mark.parametrize(
    ("source", "layout", "target", "message"),
    [
        # weights of one model for another
        ("vit_base_patch14_reg4_dinov2", _registers_missing, None, r"missing: reg_token\."),
        ("vit_small_patch14_dinov2", dinov2, "vit_base_patch14_reg4_dinov2", "missing: reg_token"),
        ("deit_tiny_distilled_patch16_224", with_heads, "deit_tiny_patch16_224", "no square grid"),
        ("deit3_small_patch16_224", dict, "vit_small_patch16_224", "no square grid"),
        ("vit_small_patch16_dinov3_qkvb", dinov3, "vit_small_patch16_dinov3", "ends in _qkvb"),
        ("vit_small_patch16_dinov3", dinov3, "vit_small_patch16_224", "rotary position"),
        ("vit_small_patch16_dinov3", dict, "vit_small_patch16_dinov3_qkvb", r"missing: .*q_bias"),
        # values that the network cannot have
        ("vit_small_patch16_dinov3_qkvb", _biased_keys, None, "keys have a bias"),
        ("vit_small_patch16_dinov3", _other_periods, None, "rotary position"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, source, layout, target, message):
    path = tmp_path / "release.pth"
    torch.save(layout(dict(timm_model(source).state_dict())), path)
    side = SIDE[14 if "patch14" in source else 16]
    encoder = ViTEncoder(name=target or source, image_size=side, **TINY)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(DataError, match=message) as error:
        load_encoder_weights(encoder, path)
    assert str(path) in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


# a file ---------------------------------------------------------------------------------------

NAME = "vit_tiny_patch16_224"
OLD_FORMAT = {"_use_new_zipfile_serialization": False}


def _save_vit(path, change=None, image_size=32, **overrides):
    torch.manual_seed(1)
    encoder = ViTEncoder(name=NAME, **TINY, image_size=image_size, **overrides)
    state = {key: value.half() for key, value in encoder.vit.state_dict().items()}
    if change:
        change(state)
    torch.save(state, path)
    return encoder


def test_values_become_float32(tmp_path):
    source = _save_vit(tmp_path / "vit.pth")
    encoder = ViTEncoder(name=NAME, **TINY, image_size=32, weights=tmp_path / "vit.pth")
    for key, value in source.vit.state_dict().items():
        loaded = encoder.vit.state_dict()[key]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, value.half().float())


def test_weights_from_safetensors(tmp_path):
    source = ViTEncoder(name=NAME, **TINY, image_size=32)
    save_file(source.vit.state_dict(), tmp_path / "vit.safetensors")
    encoder = ViTEncoder(name=NAME, **TINY, image_size=32, weights=tmp_path / "vit.safetensors")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder.eval()(images), source.eval()(images))


def test_position_embedding_is_resized_and_prefix_kept(tmp_path):
    source = _save_vit(tmp_path / "vit.pth", image_size=64)
    encoder = ViTEncoder(name=NAME, **TINY, image_size=96, weights=tmp_path / "vit.pth")
    small, large = source.vit.pos_embed.half().float(), encoder.vit.pos_embed
    assert large.shape == (1, 1 + 36, 64)
    assert torch.equal(large[:, 0], small[:, 0])
    corner = large[0, 1:].reshape(6, 6, 64)[0, 0]
    assert torch.cosine_similarity(corner, small[0, 1], dim=0) > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), r"missing: blocks\.1\.attn\.qkv\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({"norm.bias": torch.zeros(5)}), r"norm\.bias \(5,\) for \(64,\)"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 7, 64)), "no square grid"),
        (lambda s: s.update({"rope_embed.periods": torch.ones(8)}), "rotary"),
    ],
)
def test_what_does_not_fit_is_listed(tmp_path, change, message):
    _save_vit(tmp_path / "vit.pth", change)
    with pytest.raises(DataError, match=message):
        ViTEncoder(name=NAME, **TINY, image_size=32, weights=tmp_path / "vit.pth")


def junk(path, size=None, content=b""):
    """A damaged file: the first bytes of a good one, or anything else."""
    if size is not None:
        _save_vit(path)
        content = path.read_bytes()[:size]
    path.write_bytes(content)


DAMAGED = "is no readable checkpoint. Remedy: download it again"


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.pth", lambda path: None, "there are no encoder weights. Remedy: correct MODEL.MAL.ENC"),
        ("a.pth", lambda path: junk(path, 5000), DAMAGED),  # a download that broke off
        ("a.pth", lambda path: junk(path, 3), DAMAGED),
        ("a.pth", junk, DAMAGED),  # empty
        ("a.pth", lambda path: junk(path, content=b"<html>gone</html>" * 9), DAMAGED),
        ("a.pth", lambda path: junk(path, content=bytes(300)), DAMAGED),
        ("a.safetensors", junk, DAMAGED),
        ("a.safetensors", lambda path: junk(path, content=b"not a header" * 9), DAMAGED),
        ("a.safetensors", lambda path: junk(path, 5000), DAMAGED),  # a .pth by another name
        ("a.pth", lambda path: torch.save({"epoch": 3}, path), "no state dict"),
        ("a.pth", lambda path: torch.save({"args": argparse.Namespace()}, path), "holds more than"),
        (
            "a.pth",  # torch's format before it was a zip
            lambda path: torch.save({"args": argparse.Namespace()}, path, **OLD_FORMAT),
            "holds more than tensors",
        ),
    ],
)
def test_missing_damaged_and_foreign_files_are_one_clear_error(tmp_path, name, write, message):
    write(tmp_path / name)
    encoder = ViTEncoder(name=NAME, **TINY, image_size=32)
    with pytest.raises(DataError, match=message) as error:
        load_encoder_weights(encoder, tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_conv_stem_leaves_the_projection_out_and_says_so(tmp_path, caplog):
    source = _save_vit(tmp_path / "vit.pth")
    with caplog.at_level(logging.WARNING):
        options = {"image_size": 32, "stem": "conv", "weights": tmp_path / "vit.pth"}
        encoder = ViTEncoder(name=NAME, **TINY, **options)
    assert "patch_embed.proj.weight" in caplog.text
    loaded = encoder.vit.blocks[1].mlp.fc1.weight
    assert torch.equal(loaded, source.vit.blocks[1].mlp.fc1.weight.half().float())


def test_own_file_of_a_conv_stem_is_loaded_whole_or_refused(tmp_path, caplog):
    """A file that knows a conv stem has no excuse for a part of it."""
    path = tmp_path / "own.safetensors"
    source = ViTEncoder(name=NAME, **TINY, image_size=32, stem="conv")
    save_encoder_weights(source, path)
    with caplog.at_level(logging.WARNING):
        encoder = ViTEncoder(name=NAME, **TINY, image_size=32, stem="conv", weights=path)
    assert not caplog.text
    for own, other in zip(encoder.parameters(), source.parameters()):
        assert torch.equal(own, other.half().float())
    with pytest.raises(DataError, match=r"unexpected: patch_embed\.layers\.10"):
        ViTEncoder(name=NAME, **TINY, image_size=32, patch_size=8, stem="conv", weights=path)


def test_real_deit_weights(data_dir):
    path = data_dir / "weights" / "deit_tiny_patch16_224.fp16.pth"
    encoder = ViTEncoder(name=NAME, image_size=96, weights=path).eval()
    assert encoder.vit.pos_embed.shape == (1, 37, 192)
    with torch.inference_mode():
        features = encoder(torch.randn(1, 3, 96, 96))
    assert features.shape == (1, 192, 6, 6)
    # trained LayerNorm scales differ from 1; random initialisation has exactly 1
    assert (encoder.vit.norm.weight - 1).abs().max() > 0.1
    assert features.isfinite().all()
