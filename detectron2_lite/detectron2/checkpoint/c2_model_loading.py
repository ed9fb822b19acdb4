"""Matching weights to a model by name suffix, and names of Caffe2 ResNets."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch

__all__ = ["align_and_update_state_dicts", "convert_basic_c2_names"]

logger = logging.getLogger(__name__)

# Order matters: the affine parts of a normalisation carry the convolution's name in front.
_C2_PARTS = (
    (r"_bn_s$", ".norm.weight"),
    (r"_bn_b(eta|ias)?$", ".norm.bias"),
    (r"_bn_gamma$", ".norm.weight"),
    (r"_bn_(running_mean|rm)$", ".norm.running_mean"),
    (r"_bn_(running_var|riv)$", ".norm.running_var"),
    (r"_gn_s$", ".norm.weight"),
    (r"_gn_b(ias)?$", ".norm.bias"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
    (r"^(res_conv1|conv1)\.", "stem.conv1."),
    (r"^res(\d)_(\d+)_branch1\.", r"res\1.\2.shortcut."),
    (r"^res(\d)_(\d+)_branch2a\.", r"res\1.\2.conv1."),
    (r"^res(\d)_(\d+)_branch2b\.", r"res\1.\2.conv2."),
    (r"^res(\d)_(\d+)_branch2c\.", r"res\1.\2.conv3."),
)


def convert_basic_c2_names(names: list[str]) -> list[str]:
    """Names of a Caffe2 ResNet backbone in this package's naming; others come back as parts.

    E.g. ``res2_0_branch2a_bn_s`` -> ``res2.0.conv1.norm.weight``.
    """
    out = []
    for name in names:
        for pattern, replacement in _C2_PARTS:
            name = re.sub(pattern, replacement, name)
        out.append(name)
    return out


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, torch.Tensor],
    ckpt_state_dict: Mapping[str, torch.Tensor],
    c2_conversion: bool = True,
) -> dict[str, torch.Tensor]:
    """Rename checkpoint entries to the model's names by the longest matching suffix.

    A checkpoint name matches a model name that equals it or ends with "." and it; the longest
    match wins. So ``res2.0.conv1.weight`` finds ``backbone.bottom_up.res2.0.conv1.weight``.

    Args:
        c2_conversion: the checkpoint has Caffe2 names (a ResNet backbone).

    Returns:
        a new state dict: matched entries under the model's names, the rest under their own
        (so that the loader reports them as unused). Matches of another shape are left out.

    Raises:
        ValueError: when one checkpoint entry would have to fill two places of the model.
    """
    source = dict(ckpt_state_dict)
    if c2_conversion:
        source = dict(zip(convert_basic_c2_names(list(source)), source.values()))
    taken: dict[str, str] = {}
    result: dict[str, torch.Tensor] = {}
    for key, value in model_state_dict.items():
        parts = key.split(".")
        suffixes = (".".join(parts[i:]) for i in range(len(parts)))
        match = next((s for s in suffixes if s in source), None)
        if match is None:
            continue
        if source[match].shape != value.shape:
            logger.warning(
                "%s has shape %s in the checkpoint, but %s %s in the model: not loaded",
                match,
                tuple(source[match].shape),
                key,
                tuple(value.shape),
            )
            continue
        if match in taken:
            raise ValueError(
                f"ambiguous checkpoint entry {match}: it matches {taken[match]} and {key}"
            )
        taken[match] = key
        result[key] = source[match]
    if not taken:
        logger.warning("No weight of the checkpoint matches any in the model")
    result.update({k: v for k, v in source.items() if k not in taken and k not in result})
    return result
