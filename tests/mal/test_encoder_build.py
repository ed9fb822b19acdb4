"""From the keys of a config to an encoder."""

import logging

import pytest
import timm
import torch
from detectron2.config import get_cfg
from safetensors.torch import save_file

from mal.config import add_mal_config
from mal.encoder import ViTEncoder
from mal.encoder_build import build_encoder
from mal.encoder_pyramid import PyramidEncoder
from pseudolabel.errors import DataError


def config(*options):
    cfg = get_cfg()
    add_mal_config(cfg)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.MAL.CROP_SIZE = 64
    encoder = {f"MODEL.MAL.ENCODER.{key}": value for key, value in options}
    cfg.merge_from_list([text for pair in encoder.items() for text in pair])
    return cfg


TINY = (("EMBED_DIM", 48), ("DEPTH", 1), ("NUM_HEADS", 3))


@pytest.mark.parametrize(
    ("options", "kind", "shape"),
    [
        ((("NAME", "vit_tiny_patch16_224"), *TINY), ViTEncoder, (48, 4, 4)),
        ((("NAME", "vit_tiny_patch16_224"), ("STEM", "conv"), *TINY), ViTEncoder, (48, 4, 4)),
        ((("NAME", "vit_tiny_patch16_224"), ("PATCH_SIZE", 8), *TINY), ViTEncoder, (48, 8, 8)),
        ((("NAME", "vit_small_patch16_dinov3"), *TINY), ViTEncoder, (48, 4, 4)),
        ((("NAME", "convnext_atto"),), PyramidEncoder, (160, 4, 4)),
        ((("NAME", "swinv2_tiny_window8_256"),), PyramidEncoder, (384, 4, 4)),
    ],
)
def test_name_chooses_the_encoder(options, kind, shape):
    encoder = build_encoder(config(*options))
    assert isinstance(encoder, kind)
    assert encoder.embed_dim == shape[0]
    assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, *shape)


@pytest.mark.parametrize(
    ("option", "value"),
    [("STEM", "conv"), ("PATCH_SIZE", 8), ("EMBED_DIM", 96), ("DEPTH", 2), ("NUM_HEADS", 2)],
)
def test_keys_of_a_vit_are_refused_for_other_networks(option, value):
    with pytest.raises(DataError, match=rf"ENCODER: {option} describe a ViT; convnext_atto"):
        build_encoder(config(("NAME", "convnext_atto"), (option, value)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((("NAME", "vit_tinny"),), "ENCODER: timm has no model 'vit_tinny'"),
        ((("NAME", "resnet18"),), "ENCODER: resnet18 cannot be built"),
        ((("NAME", "vit_tiny_patch16_224"), ("STEM", "con")), "stem must be one of"),
        ((("NAME", "vit_tiny_patch16_224"), ("PATCH_SIZE", 24)), "set MODEL.MAL.CROP_SIZE to 72"),
        ((("NAME", "convnext_atto"), ("WEIGHTS", "absent.pth")), "there are no encoder weights"),
    ],
)
def test_what_cannot_be_built_is_one_clear_error(options, message):
    with pytest.raises(DataError, match=message):
        build_encoder(config(*options))


def test_weights_stay_unread_where_a_copy_follows():
    options = (("NAME", "vit_tiny_patch16_224"), ("WEIGHTS", "absent.pth"), *TINY)
    assert build_encoder(config(*options), pretrained=False).embed_dim == 48
    with pytest.raises(DataError, match="no encoder weights"):
        build_encoder(config(*options))


def test_drop_path_reaches_either_encoder():
    for name in ("vit_tiny_patch16_224", "convnext_atto"):
        encoder = build_encoder(config(("NAME", name), ("DROP_PATH", 0.2)))
        rates = [m.drop_prob for m in encoder.modules() if type(m).__name__ == "DropPath"]
        assert max(rates) > 0.1


def test_variables_in_the_path_are_replaced(tmp_path, monkeypatch):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, depth=1, num_heads=3)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    options = (("NAME", "vit_tiny_patch16_224"), ("WEIGHTS", "$WEIGHTS_DIR/vit.safetensors"), *TINY)
    monkeypatch.delenv("WEIGHTS_DIR", raising=False)
    with pytest.raises(DataError, match="variable in this path is not set"):
        build_encoder(config(*options))
    monkeypatch.setenv("WEIGHTS_DIR", str(tmp_path))
    encoder = build_encoder(config(*options))
    assert torch.equal(encoder.vit.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("weights", "warns"),
    [
        ("timm:deit_tiny_patch16_224.fb_in1k", False),  # ImageNet's mean, as the config
        ("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", True),  # trained with mean .5
    ],
)
def test_other_pixel_statistics_of_published_weights_are_reported(
    tmp_path, monkeypatch, caplog, weights, warns
):
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setattr(
        "timm.models._hub.hf_hub_download", lambda *_, **__: str(tmp_path / "w.safetensors")
    )
    with caplog.at_level(logging.WARNING):
        build_encoder(config(("NAME", "vit_tiny_patch16_224"), ("WEIGHTS", weights)))
    assert ("MODEL.PIXEL_MEAN [127.5, 127.5, 127.5]" in caplog.text) is warns
