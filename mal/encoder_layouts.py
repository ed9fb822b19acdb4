"""Names of pretrained ViT weights: from those of the public releases to timm's.

MAE, DeiT, DINO and timm's own files agree but for wrappers and pretext parts. DINOv2, DINOv3 (its
own files and those of the transformers library) and DeiT III name registers, layer scale, gated
MLPs and the bias of queries and values differently, and position embeddings do or do not include
the class token. Values are never changed beyond what keeps the network's function: folding the
class token's position into the token, zeroing a bias that the release masks.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from pseudolabel.errors import DataError

State = dict[str, Tensor]

# Wrappers of the whole network in checkpoints of a training; the innermost comes last.
_PREFIXES = ("module.", "backbone.")
# Heads and parts of a pretext task, and values that the network computes by itself.
_NOT_ENCODER = re.compile(
    r"(head|head_dist|dino_head|ibot_head|projectors|local_cls_norm)\.|mask_token$|decoder_"
)
_RENAMED = (
    (re.compile(r"^(register_tokens|storage_tokens)$"), "reg_token"),
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w1\."), ".mlp.fc1_g."),
    (re.compile(r"\.mlp\.w2\."), ".mlp.fc1_x."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
)
# DINOv3 as the transformers library has it; an MLP is gated where there is a gate_proj.
_TRANSFORMERS = (
    (re.compile(r"^embeddings\.patch_embeddings\."), "patch_embed.proj."),
    (re.compile(r"^embeddings\.register_tokens$"), "reg_token"),
    (re.compile(r"^embeddings\."), ""),
    (re.compile(r"^(?:model\.)?layer\.(?=\d)"), "blocks."),
    (re.compile(r"\.attention\.o_proj\."), ".attn.proj."),
    (re.compile(r"\.layer_scale([12])\.lambda1$"), r".ls\1.gamma"),
    (re.compile(r"\.mlp\.gate_proj\."), ".mlp.fc1_g."),
    (re.compile(r"\.mlp\.down_proj\."), ".mlp.fc2."),
)
_QUERY = re.compile(r"^(blocks\.\d+\.)attention\.q_proj\.weight$")
_LAYER_SCALE = re.compile(r"^(blocks\.\d+\.)(?:ls|gamma_)([12])(?:\.gamma)?$")
_QKV_BIAS = re.compile(r"^(blocks\.\d+\.attn\.)qkv\.bias$")
_PERIODS = "rope_embed.periods"
# The release keeps the periods in bfloat16, which has three digits.
_PERIOD_TOLERANCE = 0.01
_ZERO = 1e-6


def to_timm_names(stored: State, vit: nn.Module, source: object) -> State:
    """The encoder's part of a checkpoint under the names of `vit`, in float32.

    Nothing is dropped but what `_NOT_ENCODER` lists, so that a strict comparison with the network
    still sees all else.

    Args:
        stored: tensors by name, in any of the known layouts.
        vit: the timm VisionTransformer or Eva that will receive them.
        source: file or name, for errors.

    Raises:
        DataError: key biases or rotary periods that the network cannot have.
    """
    state = {key: value.float() for key, value in _unwrapped(stored).items()}
    if "embeddings.patch_embeddings.weight" in state:
        state = _from_transformers(state)
    state = {key: value for key, value in state.items() if not _NOT_ENCODER.match(key)}
    for pattern, name in _RENAMED:
        state = {pattern.sub(name, key): value for key, value in state.items()}
    own = vit.state_dict().keys()
    scale = "gamma_{}" if any(key.endswith(".gamma_1") for key in own) else "ls{}.gamma"
    state = {
        _LAYER_SCALE.sub(lambda m: m[1] + scale.format(m[2]), key): value
        for key, value in state.items()
    }
    _check_periods(state.pop(_PERIODS, None), vit, source)
    if "blocks.0.attn.qkv.bias" not in own:
        state = _split_bias(state, own, source)
    return _fold_class_position(state, vit)


def _unwrapped(stored: State) -> State:
    for prefix in _PREFIXES:
        # A training's checkpoint has the heads of the pretext task beside the backbone.
        if any(key.startswith(prefix) for key in stored):
            heads = {k: v for k, v in stored.items() if not k.startswith(prefix)}
            inner = {k[len(prefix) :]: v for k, v in stored.items() if k.startswith(prefix)}
            stored = inner | heads
    return stored


def _from_transformers(state: State) -> State:
    for pattern, name in _TRANSFORMERS:
        state = {pattern.sub(name, key): value for key, value in state.items()}
    first = "fc1_x" if any(".mlp.fc1_g." in key for key in state) else "fc1"
    state = {key.replace(".mlp.up_proj.", f".mlp.{first}."): v for key, v in state.items()}
    for block in [match[1] for match in map(_QUERY.match, state) if match]:
        names = [f"{block}attention.{part}_proj" for part in "qkv"]
        if all(f"{name}.weight" in state for name in names):
            weights = [state.pop(f"{name}.weight") for name in names]
            biases = [state.pop(f"{name}.bias", torch.zeros(len(weights[0]))) for name in names]
            state[f"{block}attn.qkv.weight"] = torch.cat(weights)
            state[f"{block}attn.qkv.bias"] = torch.cat(biases)
    return state


def _split_bias(state: State, own: set[str], source: object) -> State:
    """One bias for queries, keys and values to two for queries and values; keys must have none.

    Rotary embedding turns the keys after their bias, so that one would not cancel in the softmax.
    """
    split: State = {}
    for key, value in state.items():
        if key.endswith(".qkv.bias_mask"):
            continue
        match = _QKV_BIAS.match(key)
        if match is None:
            split[key] = value
            continue
        mask = state.get(f"{key}_mask")
        if mask is not None:
            # The masked part may hold anything, NaN included.
            value = torch.where(mask.nan_to_num() == 0, 0.0, value)
        query, keys, values = value.chunk(3)
        if keys.abs().max() > _ZERO:
            raise DataError(
                source, "keys have a bias, the network has none", "choose its model", key
            )
        parts = {f"{match[1]}q_bias": query, f"{match[1]}v_bias": values}
        if parts.keys() <= own:
            split |= parts
        elif max(query.abs().max(), values.abs().max()) > _ZERO:
            raise DataError(
                source,
                "queries and values have a bias, the network has none",
                "set MODEL.MAL.ENCODER.NAME to the timm model that ends in _qkvb",
                key,
            )
    return split


def _check_periods(stored: Tensor | None, vit: nn.Module, source: object) -> None:
    if stored is None:
        return
    periods = getattr(getattr(vit, "rope", None), "periods", None)
    if (
        periods is None
        or periods.shape != stored.shape
        or not torch.allclose(periods.float().cpu(), stored, rtol=_PERIOD_TOLERANCE)
    ):
        raise DataError(
            source,
            "its rotary position embedding has periods other than the network's",
            "choose the timm model of this release (vit_*_dinov3)",
            _PERIODS,
        )


def _fold_class_position(state: State, vit: nn.Module) -> State:
    """Adds the class token's position to the token where `vit` keeps positions for patches only."""
    positions = state.get("pos_embed")
    if positions is None or not getattr(vit, "no_embed_class", False) or "cls_token" not in state:
        return state
    count = positions.shape[1]
    # A square grid of patches alone needs nothing; no square is one more than another but 1.
    if count > 1 and round((count - 1) ** 0.5) ** 2 == count - 1:
        token = state["cls_token"] + positions[:, :1]
        return state | {"cls_token": token, "pos_embed": positions[:, 1:]}
    return state
