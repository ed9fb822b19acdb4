"""Matching weights to a model by name suffix, and the names of Caffe2 models."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch

__all__ = [
    "align_and_update_state_dicts",
    "convert_basic_c2_names",
    "convert_c2_detectron_names",
]

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
    (r"^pred\.", "linear."),
)

# FPN, RPN and heads of the first Detectron, after _C2_PARTS. RPN convolutions shared by all levels
# carry the name of the first.
_C2_HEADS = (
    (r"^fpn_inner_res(\d)_\d+_sum(_lateral)?\.", r"fpn_lateral\1."),
    (r"^fpn_res(\d)_\d+_sum\.", r"fpn_output\1."),
    (r"^conv_rpn(_fpn\d)?\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn_cls_logits(_fpn\d)?\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn_bbox_pred(_fpn\d)?\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head_conv(\d)\.", r"box_head.conv\1."),
    (r"^_\[?mask\]?_fcn(\d)\.", r"mask_head.mask_fcn\1."),
    (r"^conv5_mask\.", "mask_head.deconv."),
    (r"^mask_fcn_logits\.", "mask_head.predictor."),
)


def convert_basic_c2_names(names: list[str]) -> list[str]:
    """Names of a Caffe2 ResNet backbone in this package's naming; others only get its endings.

    E.g. ``res2_0_branch2a_bn_s`` -> ``res2.0.conv1.norm.weight``.
    """
    return [_substitute(name, _C2_PARTS) for name in names]


def _substitute(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def convert_c2_detectron_names(
    weights: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Blobs of a Caffe2 model with this package's names and order of classes.

    Caffe2 has the background as its first class: here it is the last of the class scores, and has
    neither boxes nor masks.

    Returns:
        renamed weights, and for each new name the old one.
    """
    old_of = {_substitute(convert_basic_c2_names([old])[0], _C2_HEADS): old for old in weights}
    return {new: _without_background(new, weights[old]) for new, old in old_of.items()}, old_of


def _without_background(name: str, weight: torch.Tensor) -> torch.Tensor:
    if name in ("cls_score.weight", "cls_score.bias"):
        return weight.roll(-1, dims=0)
    if name in ("bbox_pred.weight", "bbox_pred.bias") and len(weight) > 4:  # not class-agnostic
        return weight[4:]
    if name.startswith("mask_head.predictor.") and len(weight) > 1:
        return weight[1:]
    return weight


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, torch.Tensor],
    ckpt_state_dict: Mapping[str, torch.Tensor],
    c2_conversion: bool = True,
) -> dict[str, torch.Tensor]:
    """Rename checkpoint entries to the model's names by the longest matching suffix.

    A checkpoint name matches a model name that equals it or ends with "." and it; the longest
    match wins. So ``res2.0.conv1.weight`` finds ``backbone.bottom_up.res2.0.conv1.weight``.

    Args:
        c2_conversion: the checkpoint has Caffe2 names (:func:`convert_c2_detectron_names`).

    Returns:
        a new state dict: matched entries under the model's names, the rest under their own
        (so that the loader reports them as unused). Matches of another shape are left out.

    Raises:
        ValueError: when one checkpoint entry would have to fill two places of the model.
    """
    source = dict(ckpt_state_dict)
    if c2_conversion:
        source, _ = convert_c2_detectron_names(source)
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
