"""Optimizer and LR schedule from the SOLVER keys of a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from detectron2.config import CfgNode
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch import nn

from .lr_scheduler import LRMultiplier, LRScheduler, WarmupParamScheduler

__all__ = [
    "GradientClipType",
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
    "maybe_add_gradient_clipping",
    "reduce_param_groups",
]

logger = logging.getLogger(__name__)

_NORMS = (
    nn.modules.batchnorm._BatchNorm,  # 1d, 2d, 3d and SyncBatchNorm
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """Values of SOLVER.CLIP_GRADIENTS.CLIP_TYPE."""

    VALUE = "value"
    NORM = "norm"


def _clipper(cfg: CfgNode) -> Callable[[nn.Parameter], Any]:
    """A function that clips the gradient of one parameter in place."""
    kind, limit, norm = GradientClipType(cfg.CLIP_TYPE), cfg.CLIP_VALUE, cfg.NORM_TYPE
    if kind is GradientClipType.VALUE:
        return lambda p: nn.utils.clip_grad_value_(p, limit)
    return lambda p: nn.utils.clip_grad_norm_(p, limit, norm)


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: torch.optim.Optimizer | type[torch.optim.Optimizer]
) -> torch.optim.Optimizer | type[torch.optim.Optimizer]:
    """Make an optimizer (or optimizer class) clip each parameter's gradient before a step.

    A no-op unless SOLVER.CLIP_GRADIENTS.ENABLED. Parameters are clipped one by one, by value or
    by norm, not as one vector.

    Raises:
        ValueError: for an unknown CLIP_TYPE.
    """
    settings = cfg.SOLVER.CLIP_GRADIENTS
    if not settings.ENABLED:
        return optimizer
    base = optimizer if isinstance(optimizer, type) else type(optimizer)
    clip = _clipper(settings)

    def step(self: torch.optim.Optimizer, closure: Callable | None = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    clip(parameter)
        return base.step(self, closure)

    clipping = type(f"{base.__name__}WithGradientClip", (base,), {"step": step})
    if isinstance(optimizer, type):
        return clipping
    optimizer.__class__ = clipping
    return optimizer


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD over the trainable parameters, with the SOLVER keys' factors for norms and biases."""
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    sgd = torch.optim.SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
    )
    return maybe_add_gradient_clipping(cfg, sgd)


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer; frozen parameters are left out.

    Args:
        base_lr: LR of every group; None leaves it to the optimizer.
        weight_decay: for all parameters; weight_decay_norm: for those of norm layers;
            weight_decay_bias: for those named ``bias`` (norm layers' too). None: no exception.
        bias_lr_factor: factor on ``base_lr`` for parameters named ``bias``.
        lr_factor_func: maps a full parameter name to a factor on its LR.
        overrides: ``{"bias": {"lr": ...}}``: settings by the last part of the name. They win.

    Raises:
        ValueError: when an LR factor is asked for without ``base_lr``, or ``overrides`` has a
            "bias" next to the two arguments for biases.
    """
    by_name: dict[str, dict[str, float]] = {k: dict(v) for k, v in (overrides or {}).items()}
    bias: dict[str, float] = {}
    if bias_lr_factor not in (None, 1.0):
        if base_lr is None:
            raise ValueError("bias_lr_factor needs base_lr")
        bias["lr"] = bias_lr_factor * base_lr
    if weight_decay_bias is not None:
        bias["weight_decay"] = weight_decay_bias
    if bias and "bias" in by_name:
        raise ValueError('overrides["bias"] conflicts with bias_lr_factor / weight_decay_bias')
    if bias:
        by_name["bias"] = bias
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr")

    common = {"lr": base_lr, "weight_decay": weight_decay}
    common = {k: v for k, v in common.items() if v is not None}
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        of_norm = isinstance(module, _NORMS) and weight_decay_norm is not None
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            settings = common | ({"weight_decay": weight_decay_norm} if of_norm else {})
            if lr_factor_func is not None:
                settings["lr"] *= lr_factor_func(f"{prefix}.{name}" if prefix else name)
            settings.update(by_name.get(name, {}))
            groups.append({"params": [parameter], **settings})
    return reduce_param_groups(groups)


def _expand_param_groups(params: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One group per parameter; a later mention of a parameter updates its settings."""
    merged: dict[Any, dict[str, Any]] = {}
    for group in params:
        settings = {k: v for k, v in group.items() if k != "params"}
        for parameter in group["params"]:
            merged.setdefault(parameter, {"params": [parameter]}).update(settings)
    return list(merged.values())


def reduce_param_groups(params: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join parameters with equal settings into one group: fewer kernel launches per step."""
    joined: dict[tuple, dict[str, Any]] = {}
    for single in _expand_param_groups(params):
        settings = {k: v for k, v in single.items() if k != "params"}
        # Settings differ in their keys, too, so the keys belong to the identity.
        group = joined.setdefault(tuple(settings.items()), {"params": [], **settings})
        group["params"].extend(single["params"])
    return list(joined.values())


def _schedule(solver: CfgNode) -> ParamScheduler:
    """The multiplier of the base LR without warm-up, as a function of progress."""
    name, length = solver.LR_SCHEDULER_NAME, solver.MAX_ITER
    if name == "WarmupMultiStepLR":
        steps = [s for s in solver.STEPS if s < length]
        if len(steps) != len(solver.STEPS):
            logger.warning("SOLVER.STEPS from MAX_ITER (%d) on never take effect", length)
        values = [solver.GAMMA**drops for drops in range(len(steps) + 1)]
        return MultiStepParamScheduler(values=values, milestones=steps, num_updates=length)
    if name == "WarmupCosineLR":
        end = solver.BASE_LR_END / solver.BASE_LR
        if not 0.0 <= end <= 1.0:
            raise ValueError("SOLVER.BASE_LR_END must lie between 0 and BASE_LR")
        return CosineParamScheduler(1.0, end)
    if name == "WarmupStepWithFixedGammaLR":
        return StepWithFixedGammaParamScheduler(
            base_value=1.0, gamma=solver.GAMMA, num_decays=solver.NUM_DECAYS, num_updates=length
        )
    raise ValueError(f"Unknown SOLVER.LR_SCHEDULER_NAME: {name}")


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule named by SOLVER.LR_SCHEDULER_NAME, behind its warm-up.

    Raises:
        ValueError: for an unknown name, or a cosine end LR outside 0 .. BASE_LR.
    """
    solver = cfg.SOLVER
    warmed_up = WarmupParamScheduler(
        _schedule(solver),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, warmed_up, max_iter=solver.MAX_ITER)
