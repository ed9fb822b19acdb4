"""Encoders: shapes, order of tokens, weights."""

import argparse
import logging

import pytest
import torch
from torch import nn

from mal.encoder import ConvStem, ViTEncoder
from mal.encoder_weights import load_encoder_weights

TINY = {"name": "vit_tiny_patch16_224", "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.mark.parametrize(
    ("stem", "patch", "size", "grid"),
    [
        ("patch", 0, (32, 32), (2, 2)),  # the model's own patches of 16
        ("patch", 8, (32, 32), (4, 4)),
        ("conv", 16, (32, 32), (2, 2)),  # four stages
        ("conv", 4, (32, 32), (8, 8)),  # two stages
        ("patch", 8, (48, 24), (6, 3)),  # another size and shape than the one it was built for
        ("conv", 8, (48, 24), (6, 3)),
    ],
)
def test_encoder_shapes(stem, patch, size, grid):
    encoder = ViTEncoder(**TINY, image_size=32, stem=stem, patch_size=patch)
    features = encoder(torch.randn(2, 3, *size))
    assert features.shape == (2, 48, *grid)
    assert encoder.embed_dim == 48
    assert encoder.patch_size == (patch or 16)
    features.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_features_are_normalised_patch_tokens_in_raster_order():
    encoder = ViTEncoder(**TINY, image_size=32, patch_size=8).eval()
    images = torch.randn(1, 3, 32, 32)
    features = encoder(images)
    assert features.mean(dim=1).abs().max() < 1e-5  # final LayerNorm, still without affine change
    tokens = encoder.vit.forward_features(images)
    assert tokens.shape[1] == 17
    assert torch.equal(features[0, :, 1, 2], tokens[0, 1 + 4 * 1 + 2])


def test_conv_stem_has_the_stated_layers():
    stem = ConvStem(image_size=64, patch_size=16, embed_dim=64)
    convs = [layer for layer in stem.layers if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [8, 16, 32, 64, 64]
    assert [conv.bias is None for conv in convs] == [True] * 4 + [False]
    assert [conv.kernel_size[0] for conv in convs] == [3, 3, 3, 3, 1]
    assert all(g.num_groups == 1 for g in stem.layers if isinstance(g, nn.GroupNorm))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stem": "linear"}, "stem must be one of"),
        ({"stem": "conv", "patch_size": 6, "image_size": 36}, "power of two"),
        ({"image_size": 40}, "multiple of the patch size"),
        ({"name": "resnet10t", "embed_dim": 0, "depth": 0, "num_heads": 0}, "VisionTransformer"),
        ({"name": "vit_tinny"}, "no model 'vit_tinny'"),
    ],
)
def test_impossible_encoders_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        ViTEncoder(**{**TINY, "image_size": 32, **overrides})


def test_input_that_does_not_divide_is_refused():
    encoder = ViTEncoder(**TINY, image_size=32)
    with pytest.raises(ValueError, match="32 x 40"):
        encoder(torch.zeros(1, 3, 32, 40))


def _save_vit(path, change=None, wrapper=None, image_size=32, **overrides):
    torch.manual_seed(1)
    encoder = ViTEncoder(**{**TINY, **overrides}, image_size=image_size)
    state = {key: value.half() for key, value in encoder.vit.state_dict().items()}
    state |= {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}
    if change:
        change(state)
    torch.save({wrapper: state} if wrapper else state, path)
    return encoder


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_weights_round_trip(tmp_path, wrapper):
    source = _save_vit(tmp_path / "vit.pth", wrapper=wrapper)
    encoder = ViTEncoder(**TINY, image_size=32, weights=tmp_path / "vit.pth")
    for key, value in source.vit.state_dict().items():
        loaded = encoder.vit.state_dict()[key]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, value.half().float())


def test_weights_from_safetensors(tmp_path):
    from safetensors.torch import save_file

    source = ViTEncoder(**TINY, image_size=32)
    save_file(source.vit.state_dict(), tmp_path / "vit.safetensors")
    encoder = ViTEncoder(**TINY, image_size=32, weights=tmp_path / "vit.safetensors")
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(encoder.eval()(images), source.eval()(images))


def test_position_embedding_is_resized_and_prefix_kept(tmp_path):
    source = _save_vit(tmp_path / "vit.pth", image_size=64)
    encoder = ViTEncoder(**TINY, image_size=96, weights=tmp_path / "vit.pth")
    small, large = source.vit.pos_embed.half().float(), encoder.vit.pos_embed
    assert large.shape == (1, 1 + 36, 48)
    assert torch.equal(large[:, 0], small[:, 0])
    corner = large[0, 1:].reshape(6, 6, 48)[0, 0]
    assert torch.cosine_similarity(corner, small[0, 1], dim=0) > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), r"missing: blocks\.1\.attn\.qkv\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda s: s.update({"norm.bias": torch.zeros(5)}), r"norm\.bias \(5,\) for \(48,\)"),
        (lambda s: s.update(pos_embed=torch.zeros(1, 7, 48)), "no square grid"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "vit.pth"
    _save_vit(path, change)
    encoder = ViTEncoder(**TINY, image_size=32)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        load_encoder_weights(encoder, path)
    assert str(path) in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_missing_file_and_foreign_content(tmp_path):
    encoder = ViTEncoder(**TINY, image_size=32)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_encoder_weights(encoder, tmp_path / "absent.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no state dict"):
        load_encoder_weights(encoder, tmp_path / "other.pth")
    torch.save({"model": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "unsafe.pth")
    with pytest.raises(ValueError, match=r"unsafe\.pth: holds more than tensors"):
        load_encoder_weights(encoder, tmp_path / "unsafe.pth")


def test_conv_stem_leaves_the_projection_out_and_says_so(tmp_path, caplog):
    source = _save_vit(tmp_path / "vit.pth")
    with caplog.at_level(logging.WARNING):
        encoder = ViTEncoder(**TINY, image_size=32, stem="conv", weights=tmp_path / "vit.pth")
    assert "patch_embed.proj.weight" in caplog.text
    loaded = encoder.vit.blocks[1].mlp.fc1.weight
    assert torch.equal(loaded, source.vit.blocks[1].mlp.fc1.weight.half().float())


def test_real_deit_weights(data_dir):
    path = data_dir / "weights" / "deit_tiny_patch16_224.fp16.pth"
    encoder = ViTEncoder(name="vit_tiny_patch16_224", image_size=96, weights=path).eval()
    assert encoder.vit.pos_embed.shape == (1, 37, 192)
    with torch.inference_mode():
        features = encoder(torch.randn(1, 3, 96, 96))
    assert features.shape == (1, 192, 6, 6)
    # trained LayerNorm scales differ from 1; random initialisation has exactly 1
    assert (encoder.vit.norm.weight - 1).abs().max() > 0.1
    assert features.isfinite().all()
