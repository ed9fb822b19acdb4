"""Decoders by name: what all share, and each against a twin in plain numpy."""

import math

import numpy as np
import pytest
import torch

from mal.decoder import KVDecoder
from mal.network import DECODERS

AREAS = torch.tensor([50.0, 5000.0, 20000.0, 1024.0, 9216.0, 1023.9])
BINNED = ["attention", "fully_convolutional", "query"]
NAMES = [*BINNED, "fully_connected"]
SIZES = {"in_dim": 8, "hidden_dim": 8, "out_dim": 6, "map_size": 24}
OWN = {"query": {"num_layers": 2, "num_heads": 2}, "fully_connected": {"grid": 3}}


def make(name="attention", **overrides):
    torch.manual_seed(0)
    return DECODERS[name][0](**{**SIZES, **OWN.get(name, {}), **overrides})


def features_of(count=6):
    return torch.randn(count, 8, 6, 6, generator=torch.Generator().manual_seed(1))


# what all share -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("areas", [AREAS[:1], AREAS[1:2], AREAS[2:3], AREAS])  # each bin, all
@pytest.mark.parametrize("shape", [(6, 6), (5, 3), (1, 1)])  # the map is square whatever these are
def test_shapes_per_name_and_bin(name, areas, shape):
    logits = make(name)(torch.randn(len(areas), 8, *shape), areas)
    assert logits.shape == (len(areas), 24, 24)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_mixed_batch_equals_per_bin_batches(name, num_classes):
    decoder, features = make(name, num_classes=num_classes), features_of()
    classes = torch.tensor([2, 0, 1, 1, 0, 2])
    mixed = decoder(features, AREAS, classes)
    for i, area in enumerate(AREAS):
        alone = decoder(features[i : i + 1], area[None], classes[i : i + 1])
        torch.testing.assert_close(mixed[i], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", BINNED)
@pytest.mark.parametrize(
    ("area", "scale"), [(1023.9, 0.5), (1024.0, 1.0), (9215.9, 1.0), (9216.0, 2.0), (1e12, 2.0)]
)
def test_bins_are_half_open(name, area, scale):
    features = features_of(1)
    binned = make(name)(features, torch.tensor([area], dtype=torch.float64))
    fixed = make(name, scales=(scale,) * 3)(features, torch.tensor([1.0]))
    assert torch.equal(binned, fixed)
    assert binned.std() > 0


def test_the_fully_connected_decoder_has_no_bins():
    features = features_of(1)
    maps = [make("fully_connected")(features, area[None]) for area in AREAS]
    assert all(torch.equal(maps[0], other) for other in maps)


@pytest.mark.parametrize("name", BINNED)
def test_equal_scales_are_one_batch(name):
    decoder = make(name, scales=(4.0, 4.0, 4.0))
    calls = []
    decoder.value[0].register_forward_hook(lambda _, __, out: calls.append(tuple(out.shape)))
    decoder(torch.randn(len(AREAS), 8, 3, 3), AREAS)
    assert calls == [(len(AREAS), 8, 12, 12)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [0, 2])
def test_gradient_reaches_every_parameter_in_a_mixed_batch(name, num_classes):
    decoder = make(name, num_classes=num_classes)
    features = features_of().requires_grad_()
    decoder(features, AREAS, torch.arange(len(AREAS)) % 2).square().sum().backward()
    assert not [n for n, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert features.grad.flatten(1).any(1).all()


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch_keeps_shape_and_graph(name):
    decoder = make(name, num_classes=2)
    logits = decoder(torch.zeros(0, 8, 6, 6), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert logits.shape == (0, 24, 24)
    logits.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_float32_under_autocast(name):
    decoder, features = make(name), features_of()
    expected = decoder(features, AREAS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = decoder(features, AREAS)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, expected)  # the heads did run in half precision
    torch.testing.assert_close(logits, expected, atol=0.05 * expected.std().item(), rtol=0.1)


def test_the_product_does_not_overflow_in_half_precision():
    decoder = make("attention", scales=(1, 1, 1))
    with torch.no_grad():
        decoder.key[-1].bias.fill_(1000.0)
        decoder.value[-1].bias.fill_(1000.0)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = decoder(features_of(1), AREAS[:1])
    assert logits.isfinite().all()
    assert logits.max() > 65504  # more than fp16 holds


@pytest.mark.parametrize("name", BINNED)
@pytest.mark.parametrize(
    "bad",
    [
        {"num_convs": 0},
        {"scales": (1, 2)},
        {"scales": (0, 1, 2)},
        {"upsample": 0},
        {"num_classes": -1},
    ],
)
def test_impossible_decoders_are_refused(name, bad):
    with pytest.raises(ValueError, match="required"):
        make(name, **bad)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("query", {"num_layers": 0}),
        ("query", {"num_heads": 3}),  # does not divide 8
        ("query", {"num_heads": 0}),
        ("fully_connected", {"grid": 0}),
        ("fully_connected", {"hidden_dim": 3}),  # a quarter of it is no channel
        ("fully_connected", {"num_classes": -1}),
    ],
)
def test_impossible_numbers_of_one_decoder_are_refused(name, bad):
    with pytest.raises(ValueError, match="required"):
        make(name, **bad)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("attention", 3.80),
        ("fully_connected", 5.37),
        ("fully_convolutional", 3.54),
        ("query", 6.76),
    ],
)
def test_parameters_at_the_size_of_the_paper(name, millions):
    with torch.device("meta"):
        decoder = DECODERS[name][0](768)
    total = sum(p.numel() for p in decoder.parameters())
    assert total / 1e6 == pytest.approx(millions, abs=0.005)


# the attention-based decoder ------------------------------------------------------------------


def test_state_of_the_attention_decoder_is_that_of_older_checkpoints():
    shapes = {name: tuple(value.shape) for name, value in KVDecoder(192).state_dict().items()}
    assert shapes == {
        "key.0.weight": (256, 192),
        "key.0.bias": (256,),
        "key.2.weight": (256, 256),
        "key.2.bias": (256,),
        "value.0.weight": (256, 192, 3, 3),
        "value.0.bias": (256,),
        "value.1.weight": (256, 256, 3, 3),
        "value.1.bias": (256,),
        "value.2.weight": (256, 256, 3, 3),
        "value.2.bias": (256,),
        "value.3.weight": (256, 256, 3, 3),
        "value.3.bias": (256,),
    }


def test_seeded_start_of_the_attention_decoder_draws_k_before_v():
    """A recorded run is repeated only where the same seed gives the same first weights."""
    torch.manual_seed(7)
    first = torch.nn.Linear(8, 8).weight
    torch.manual_seed(7)
    assert torch.equal(KVDecoder(8, 8, 6).key[0].weight, first)


def test_value_map_sizes_per_bin():
    """A 32 x 32 feature map gives V of 32, 64 and 128 for the three bins (upsampling included)."""
    decoder = KVDecoder(4, 4, 4, num_convs=2, map_size=128)
    sides = []
    decoder.value[-1].register_forward_hook(lambda _, __, out: sides.append(tuple(out.shape[2:])))
    logits = decoder(torch.randn(3, 4, 32, 32), torch.tensor([100.0, 2000.0, 10000.0]))
    assert sides == [(32, 32), (64, 64), (128, 128)]
    assert logits.shape == (3, 128, 128)


def test_initialisation_of_the_value_head():
    decoder = make(in_dim=64, hidden_dim=64, out_dim=64)
    for conv in decoder.value:
        assert not conv.bias.any()
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)


# twins ----------------------------------------------------------------------------------------


def resized(maps, height, width):
    """(C, h, w) to (C, height, width): bilinear, pixel centres aligned, edges continued."""
    for axis, size in ((1, height), (2, width)):
        have = maps.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape((-1, 1) if axis == 1 else -1)
        high = np.minimum(low + 1, have - 1)
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


def convolved(maps, weight, bias):
    """3 x 3, zeros around."""
    _, height, width = maps.shape
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    out = np.repeat(bias[:, None, None], height, 1).repeat(width, 2)
    for row in range(3):
        for column in range(3):
            part = padded[:, row : row + height, column : column + width]
            out += np.tensordot(weight[:, :, row, column], part, 1)
    return out


def twin_product(state, feature, weight, offset, scale):
    value = resized(feature, *(max(1, round(side * scale)) for side in feature.shape[1:]))
    count = sum(key.startswith("value.") for key in state) // 2
    for position in range(count):
        if position == count - 1:
            value = resized(value, *(2 * side for side in value.shape[1:]))
        value = convolved(
            value, state[f"value.{position}.weight"], state[f"value.{position}.bias"]
        ).clip(0)
    return resized((np.tensordot(weight, value, 1) + offset)[None], 24, 24)[0]


def affine(state, name, vector):
    return state[f"{name}.weight"] @ vector + state[f"{name}.bias"]


def normed(state, name, vector):
    centred = vector - vector.mean()
    scaled = centred / np.sqrt((centred**2).mean() + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def twin_attention(state, feature, index, scale):
    summary = affine(state, "key.0", feature.mean((1, 2))).clip(0)
    key = affine(state, "key.2", summary)[6 * index : 6 * index + 6]
    return twin_product(state, feature, key, 0.0, scale)


def twin_fully_convolutional(state, feature, index, scale):
    weight, bias = state["output.weight"][index], state["output.bias"][index]
    return twin_product(state, feature, weight, bias, scale)


def twin_fully_connected(state, feature, index, scale):
    del scale
    squeeze = state["squeeze.weight"][:, :, 0, 0]
    tokens = np.tensordot(squeeze, feature, 1) + state["squeeze.bias"][:, None, None]
    pooled = tokens.clip(0).reshape(len(tokens), 3, 2, 3, 2).mean((2, 4))  # 6 x 6 to 3 x 3
    hidden = affine(state, "hidden", pooled.ravel()).clip(0)
    code = affine(state, "code", hidden)[6 * index : 6 * index + 6]
    return affine(state, "output", code.clip(0)).reshape(24, 24)


def twin_query(state, feature, index, scale):
    query, tokens = state["query"][index], feature.reshape(len(feature), -1).T
    for layer in range(2):
        name = f"layers.{layer}"
        weights = np.split(state[f"{name}.attention.in_proj_weight"], 3)
        biases = np.split(state[f"{name}.attention.in_proj_bias"], 3)
        asked = weights[0] @ query + biases[0]
        keys, values = (tokens @ weights[part].T + biases[part] for part in (1, 2))
        answer = np.zeros(8)
        for own in (slice(0, 4), slice(4, 8)):  # two heads
            scores = np.exp(keys[:, own] @ asked[own] / math.sqrt(4))
            answer[own] = scores / scores.sum() @ values[:, own]
        answer = affine(state, f"{name}.attention.out_proj", answer)
        query = normed(state, f"{name}.attention_norm", query + answer)
        inner = affine(state, f"{name}.mlp.0", query)
        inner = inner * 0.5 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in inner]))
        query = normed(state, f"{name}.mlp_norm", query + affine(state, f"{name}.mlp.2", inner))
    return twin_product(state, feature, affine(state, "output", query), 0.0, scale)


TWINS = {
    "attention": twin_attention,
    "fully_connected": twin_fully_connected,
    "fully_convolutional": twin_fully_convolutional,
    "query": twin_query,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_decoder_equals_its_twin(name, num_classes):
    decoder = make(name, num_classes=num_classes).double()
    for parameter in decoder.parameters():  # biases and norms start at values that hide mistakes
        torch.nn.init.normal_(parameter, std=0.4)
    features, classes = features_of().double(), torch.tensor([2, 0, 1, 1, 0, 2])
    state = {key: value.numpy() for key, value in decoder.state_dict().items()}
    logits = decoder(features, AREAS, classes).detach().numpy()
    scales = [0.5, 1.0, 2.0, 1.0, 2.0, 0.5]
    for i, scale in enumerate(scales):
        index = int(classes[i]) if num_classes else 0
        expected = TWINS[name](state, features[i].numpy(), index, scale)
        np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-4 * expected.std())
