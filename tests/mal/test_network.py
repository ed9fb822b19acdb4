"""Encoder, decoder and their product."""

import argparse
import logging
import math

import pytest
import torch
from torch import nn

from mal.decoder import KVDecoder
from mal.encoder import ConvStem, ViTEncoder, load_encoder_weights
from mal.network import MaskNetwork

TINY = {"name": "vit_tiny_patch16_224", "embed_dim": 48, "depth": 2, "num_heads": 3}
AREAS = torch.tensor([50.0, 5000.0, 20000.0, 1024.0, 9216.0, 1023.9])


def _decoder(**overrides):
    torch.manual_seed(0)
    return KVDecoder(**{"in_dim": 8, "hidden_dim": 8, "out_dim": 6, "map_size": 24, **overrides})


# encoder --------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"unsafe\.pth holds more than tensors"):
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


# decoder --------------------------------------------------------------------------------------


def test_value_map_sizes_per_bin():
    """A 32 x 32 feature map gives V of 32, 64 and 128 for the three bins (upsampling included)."""
    decoder = KVDecoder(4, 4, 4, num_convs=2, map_size=128)
    sides = []
    decoder.value[-1].register_forward_hook(lambda _, __, out: sides.append(tuple(out.shape[2:])))
    logits = decoder(torch.randn(3, 4, 32, 32), torch.tensor([100.0, 2000.0, 10000.0]))
    assert sides == [(32, 32), (64, 64), (128, 128)]
    assert logits.shape == (3, 128, 128)


def test_mixed_batch_equals_per_bin_batches():
    decoder = _decoder()
    features = torch.randn(len(AREAS), 8, 6, 6)
    mixed = decoder(features, AREAS)
    assert mixed.shape == (len(AREAS), 24, 24)
    for i, area in enumerate(AREAS):
        alone = decoder(features[i : i + 1], area[None])
        assert torch.allclose(mixed[i], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    ("area", "scale"), [(1023.9, 0.5), (1024.0, 1.0), (9215.9, 1.0), (9216.0, 2.0), (1e12, 2.0)]
)
def test_bins_are_half_open(area, scale):
    features = torch.randn(1, 8, 6, 6)
    binned = _decoder()(features, torch.tensor([area], dtype=torch.float64))
    fixed = _decoder(scales=(scale,) * 3)(features, torch.tensor([1.0]))
    assert torch.equal(binned, fixed)
    assert binned.std() > 0


def test_equal_scales_are_one_batch():
    decoder = _decoder(scales=(4.0, 4.0, 4.0), upsample=2.0)
    calls = []
    decoder.value[0].register_forward_hook(lambda _, __, out: calls.append(tuple(out.shape)))
    decoder(torch.randn(len(AREAS), 8, 3, 3), AREAS)
    assert calls == [(len(AREAS), 8, 12, 12)]


def test_logit_is_the_product_of_key_and_value():
    decoder = _decoder(num_convs=1, scales=(1, 1, 1), upsample=1, map_size=5)
    features = torch.randn(2, 8, 5, 5)
    key = decoder.key(features.mean((2, 3)))
    value = decoder.value[0](features).clamp(min=0)
    expected = torch.stack([(key[b, :, None, None] * value[b]).sum(0) for b in range(2)])
    assert torch.allclose(decoder(features, AREAS[:2]), expected, atol=1e-5)


def test_gradient_reaches_every_parameter_in_a_mixed_batch():
    decoder = _decoder()
    features = torch.randn(len(AREAS), 8, 6, 6, requires_grad=True)
    decoder(features, AREAS).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in decoder.parameters())
    assert features.grad.flatten(1).any(1).all()


def test_empty_batch_keeps_shape_and_graph():
    decoder = _decoder()
    logits = decoder(torch.zeros(0, 8, 6, 6), torch.zeros(0))
    assert logits.shape == (0, 24, 24)
    logits.sum().backward()
    assert decoder.value[0].weight.grad is not None


def test_logits_are_float32_under_autocast():
    decoder = _decoder()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = decoder(torch.randn(2, 8, 6, 6), AREAS[:2])
    assert logits.dtype == torch.float32


def test_initialisation_of_the_value_head():
    decoder = _decoder(in_dim=64, hidden_dim=64, out_dim=64)
    for conv in decoder.value:
        assert not conv.bias.any()
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)


@pytest.mark.parametrize(
    "bad", [{"num_convs": 0}, {"scales": (1, 2)}, {"scales": (0, 1, 2)}, {"upsample": 0}]
)
def test_impossible_decoders_are_refused(bad):
    with pytest.raises(ValueError, match="required"):
        _decoder(**bad)


# both -----------------------------------------------------------------------------------------


def test_network_is_decoder_of_encoder_and_learns():
    torch.manual_seed(0)
    network = MaskNetwork(ViTEncoder(**TINY, image_size=32, patch_size=8), _decoder(in_dim=48))
    images = torch.randn(2, 3, 32, 32)
    areas = torch.tensor([500.0, 50_000.0])
    target = (images.mean(1) > 0).float()[:, 4:28, 4:28]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        logits = network(images, areas)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    network.eval()
    features = network.encoder(images)
    assert torch.equal(network(images, areas), network.decoder(features, areas))
