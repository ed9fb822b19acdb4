"""Encoders: shapes, order of tokens, weights."""

import pytest
import torch
from torch import nn

from mal.encoder import ConvStem, ViTEncoder

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


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("vit_small_patch14_dinov2", 512, 518),  # the paper's crops
        ("vit_small_patch14_dinov2", 128, 126),
        ("vit_small_patch14_dinov2", 5, 14),
        ("vit_small_patch16_dinov3", 518, 512),
        ("vit_tiny_patch16_224", 125, 128),
    ],
)
def test_the_nearest_fitting_crop_size_is_named(name, size, nearest):
    sizes = {"embed_dim": 48, "depth": 1, "num_heads": 3}
    with pytest.raises(ValueError, match=rf"{size} is not a multiple .*CROP_SIZE to {nearest}$"):
        ViTEncoder(name=name, image_size=size, **sizes)
    ViTEncoder(name=name, image_size=nearest, **sizes)


@pytest.mark.parametrize(("stem", "patch"), [("patch", 16), ("conv", 16), ("conv", 8)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3_qkvb"])
def test_rotary_and_stored_positions_take_either_stem(name, stem, patch):
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": patch}
    encoder = ViTEncoder(name=name, image_size=32, stem=stem, **sizes)
    features = encoder(torch.randn(2, 3, 48, 32))
    assert features.shape == (2, 48, 48 // patch, 32 // patch)
    features.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_layers_are_counted_from_the_stem(name):
    encoder = ViTEncoder(name=name, image_size=32, embed_dim=48, depth=2, num_heads=3)
    layers = {key: encoder.layer_of(key) for key, _ in encoder.named_parameters()}
    assert {count for _, count in layers.values()} == {4}
    for key, (layer, _) in layers.items():
        expected = {"blocks.0": 1, "blocks.1": 2, "norm.": 3}
        assert layer == next((v for k, v in expected.items() if key.startswith(f"vit.{k}")), 0), key
