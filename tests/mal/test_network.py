"""Decoder, and its product with an encoder."""

import math

import pytest
import torch
from torch import nn

from mal.decoder import KVDecoder
from mal.encoder import ViTEncoder
from mal.network import MaskNetwork

TINY = {"name": "vit_tiny_patch16_224", "embed_dim": 48, "depth": 2, "num_heads": 3}
AREAS = torch.tensor([50.0, 5000.0, 20000.0, 1024.0, 9216.0, 1023.9])


def _decoder(**overrides):
    torch.manual_seed(0)
    return KVDecoder(**{"in_dim": 8, "hidden_dim": 8, "out_dim": 6, "map_size": 24, **overrides})


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
