"""Encoder weights that timm publishes, by name; the hub alone is replaced."""

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file

from mal.encoder import ViTEncoder
from pseudolabel.errors import DataError

PUBLISHED = "timm:deit_tiny_patch16_224.fb_in1k"


def test_published_weights_are_loaded_by_name(tmp_path, monkeypatch):
    """The hub alone is replaced; the rest is timm's own loading, at the size of its release."""
    torch.manual_seed(3)
    released = timm.create_model("deit_tiny_patch16_224", num_classes=1000)
    save_file(released.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repo_id, filename, **_):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    encoder = ViTEncoder(name="vit_tiny_patch16_224", image_size=64, weights=PUBLISHED)
    assert asked == [("timm/deit_tiny_patch16_224.fb_in1k", "model.safetensors")]
    assert torch.equal(encoder.vit.blocks[3].mlp.fc2.weight, released.blocks[3].mlp.fc2.weight)
    assert encoder.vit.pos_embed.shape == (1, 17, 192)
    assert torch.equal(encoder.vit.pos_embed[:, 0], released.pos_embed[:, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}, "args": Path("x")}, r"could not be had \(weights_only=True blocked"),
        ({"model": {"norm.weight": torch.ones(192)}}, r"could not be had \(.*loading state_dict"),
    ],
)
def test_published_file_that_is_unsafe_or_incomplete_is_refused(
    tmp_path, monkeypatch, content, message
):
    torch.save(content, tmp_path / "pytorch_model.bin")

    def download(repo_id, filename, **_):
        if filename.endswith("safetensors"):
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    with pytest.raises(DataError, match=message):
        ViTEncoder(name="vit_tiny_patch16_224", image_size=64, weights=PUBLISHED)


def test_no_network_is_one_clear_message(monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    with pytest.raises(DataError, match=r"could not be had \(no connection\)\. Remedy: connect"):
        ViTEncoder(name="vit_tiny_patch16_224", image_size=64, weights=PUBLISHED)


@pytest.mark.parametrize("name", ["", "vit_tinny", "deit_tiny_patch16_224.mae", "test_vit4"])
def test_names_without_weights_are_refused_before_any_download(name):
    with pytest.raises(DataError, match="publishes no weights under"):
        ViTEncoder(name="vit_tiny_patch16_224", image_size=64, weights=f"timm:{name}")
