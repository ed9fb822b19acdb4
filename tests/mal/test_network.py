"""Encoder and decoder together, and how a config names them."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from mal.config import add_mal_config
from mal.decoder import KVDecoder
from mal.encoder import ViTEncoder
from mal.network import DECODERS, MaskNetwork, build_decoder, build_network
from pseudolabel.errors import DataError

TINY = {"name": "vit_tiny_patch16_224", "embed_dim": 48, "depth": 2, "num_heads": 3}


def tiny_cfg(opts=()):
    cfg = get_cfg()
    add_mal_config(cfg)
    mal = cfg.MODEL.MAL
    mal.CROP_SIZE, mal.MAP_SIZE = 32, 24
    mal.ENCODER.NAME, mal.ENCODER.PATCH_SIZE = "vit_tiny_patch16_224", 8
    mal.ENCODER.EMBED_DIM, mal.ENCODER.DEPTH, mal.ENCODER.NUM_HEADS = 24, 1, 2
    mal.DECODER.HIDDEN_DIM, mal.DECODER.OUT_DIM, mal.DECODER.GRID = 16, 8, 2
    cfg.merge_from_list([f"MODEL.MAL.{o}" if i % 2 == 0 else o for i, o in enumerate(opts)])
    return cfg


def test_network_is_decoder_of_encoder_and_learns():
    torch.manual_seed(0)
    decoder = KVDecoder(in_dim=48, hidden_dim=8, out_dim=6, map_size=24)
    network = MaskNetwork(ViTEncoder(**TINY, image_size=32, patch_size=8), decoder)
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


@pytest.mark.parametrize("name", DECODERS)
def test_config_names_the_decoder_and_its_sizes(name):
    network = build_network(tiny_cfg(["DECODER.NAME", name, "DECODER.NUM_CLASSES", 3]))
    assert type(network.decoder) is DECODERS[name][0]
    assert network.decoder.num_classes == 3
    images, areas = torch.randn(2, 3, 32, 32), torch.tensor([500.0, 50_000.0])
    maps = [network(images, areas, torch.tensor([i, i])) for i in range(3)]
    assert maps[0].shape == (2, 24, 24)
    assert not torch.equal(maps[0], maps[1])
    with pytest.raises(ValueError, match="3 classes needs the class"):
        network(images, areas)


@pytest.mark.parametrize(
    ("opts", "changed"),
    [
        (["DECODER.HIDDEN_DIM", 24], "key.0.weight"),
        (["DECODER.OUT_DIM", 12], "key.2.weight"),
        (["DECODER.NUM_CONVS", 5], "value.4.weight"),
        (["DECODER.NAME", "query", "DECODER.QUERY_LAYERS", 4], "layers.3.mlp.0.weight"),
        (["DECODER.NAME", "fully_connected", "DECODER.GRID", 4], "hidden.weight"),
    ],
)
def test_every_size_reaches_its_decoder(opts, changed):
    base = ["DECODER.NAME", opts[1]] if opts[0] == "DECODER.NAME" else []
    before, after = (build_decoder(tiny_cfg(o), 24).state_dict() for o in (base, opts))
    assert changed not in before or before[changed].shape != after[changed].shape


def test_numbers_without_a_shape_reach_their_decoder():
    opts = ["DECODER.SCALES", (1.0, 2.0, 4.0), "DECODER.UPSAMPLE", 3.0, "MAP_SIZE", 20]
    decoder = build_decoder(tiny_cfg(opts), 24)
    assert (decoder.scales, decoder.upsample, decoder.map_size) == ((1.0, 2.0, 4.0), 3.0, 20)
    query = build_decoder(tiny_cfg(["DECODER.NAME", "query", "DECODER.QUERY_HEADS", 4]), 24)
    assert query.layers[0].attention.num_heads == 4


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DECODER.NAME", "atention"], "'atention'.*use one of attention, fully_connected, fully"),
        (["DECODER.NUM_CONVS", 0], "MODEL.MAL.DECODER: num_convs >= 1"),
        (["DECODER.NUM_CLASSES", -2], "MODEL.MAL.DECODER: .*num_classes >= 0"),
        (["DECODER.NAME", "query", "DECODER.QUERY_HEADS", 5], "divide hidden_dim"),
    ],
)
def test_impossible_configs_are_refused(opts, message):
    with pytest.raises(DataError, match=message):
        build_decoder(tiny_cfg(opts), 24)
