"""AdamW, learning rates per sample and part of the model, and clipping of the whole gradient."""

import logging
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from pseudolabel.errors import DataError

logger = logging.getLogger(__name__)

Layer = tuple[int, int]

# Beside Detectron2's values of SOLVER.CLIP_GRADIENTS.CLIP_TYPE, which clip one parameter at a time.
FULL_MODEL = "full_model"


def learning_rate(cfg: CfgNode, samples_per_step: int) -> float:
    """`SOLVER.LR_PER_SAMPLE` x samples where that key is positive, else `SOLVER.BASE_LR`.

    Args:
        samples_per_step: of one optimizer step: over all processes and accumulated batches.

    Raises:
        DataError: a negative LR_PER_SAMPLE, or a step without samples.
    """
    per_sample = cfg.SOLVER.LR_PER_SAMPLE
    if per_sample < 0 or samples_per_step < 1:
        raise DataError(
            f"SOLVER.LR_PER_SAMPLE {per_sample}",
            f"times {samples_per_step} samples a step is no learning rate",
            "use 0 (off) or more, and at least one sample",
        )
    return per_sample * samples_per_step if per_sample else cfg.SOLVER.BASE_LR


def with_learning_rate(cfg: CfgNode, samples_per_step: int, unit: str = "samples") -> CfgNode:
    """The config with `learning_rate` as BASE_LR; BASE_LR_END keeps its ratio to BASE_LR.

    What reads the result (AdamW, Detectron2's SGD, the schedule) needs no further rule. The product
    is logged.

    Args:
        unit: what a sample is, for the log.

    Returns:
        A frozen copy whose LR_PER_SAMPLE is 0, so that doing it twice changes nothing; `cfg` itself
        where the key is 0 already.

    Raises:
        DataError: of `learning_rate`; a BASE_LR_END above BASE_LR, or a BASE_LR of 0.
    """
    rate, per_sample = learning_rate(cfg, samples_per_step), cfg.SOLVER.LR_PER_SAMPLE
    if not per_sample:
        logger.info("lr %.3g for %d %s a step", rate, samples_per_step, unit)
        return cfg
    logger.info("lr %.3g = %.3g x %d %s", rate, per_sample, samples_per_step, unit)
    base, end = cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR_END
    if not 0 <= end <= base or base == 0:
        raise DataError(
            "SOLVER.BASE_LR and BASE_LR_END",
            f"{base} and {end} do not say at which part of the learning rate it ends, which is all "
            "that they mean beside SOLVER.LR_PER_SAMPLE",
            "change SOLVER.LR_PER_SAMPLE for another rate, or set it to 0 to use BASE_LR",
        )
    scaled = cfg.clone()
    scaled.defrost()
    # In this order a ratio of at most 1 stays one after rounding, which the schedules demand.
    scaled.SOLVER.BASE_LR_END = rate * (end / base)
    scaled.SOLVER.BASE_LR, scaled.SOLVER.LR_PER_SAMPLE = rate, 0.0
    scaled.freeze()
    return scaled


def build_adamw(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over all trainable parameters, in one group without `SOLVER.LAYER_DECAY`.

    With it there is one group per layer, the learning rate of layer i of n being
    BASE_LR x LAYER_DECAY^(n - 1 - i). Weight decay and rate make no difference between weights,
    biases and norms. Then `settle_optimizer`.

    Args:
        model: with layer decay, one of its modules has `layer_of` (see `layers_of`).

    Raises:
        DataError: LAYER_DECAY outside ]0, 1], or no module that knows its layers; a key that only
            Detectron2's SGD obeys; as of `settle_optimizer`.
    """
    base, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.LAYER_DECAY
    if not 0 < decay <= 1:
        remedy = "use a factor above 0 and up to 1 (none)"
        raise DataError(f"SOLVER.LAYER_DECAY {decay}", "is no factor", remedy)
    _refuse_keys_of_sgd(cfg)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if decay == 1:
        groups = [{"params": list(trained.values())}]
    else:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for name, (layer, count) in layers_of(model, list(trained)).items():
            by_rate.setdefault(base * decay ** (count - 1 - layer), []).append(trained[name])
        groups = [{"params": by_rate[rate], "lr": rate} for rate in sorted(by_rate)]
        logger.info("AdamW: %d layers, lr %.3g to %.3g", len(groups), min(by_rate), max(by_rate))
    optimizer = maybe_add_gradient_clipping(without_full_model_clipping(cfg), torch.optim.AdamW)(
        groups,
        lr=base,
        betas=tuple(cfg.SOLVER.BETAS),
        eps=cfg.SOLVER.EPS,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    settle_optimizer(cfg, model, optimizer)
    return optimizer


def _refuse_keys_of_sgd(cfg: CfgNode) -> None:
    """Biases and norms are parameters as all others here; who states otherwise shall know."""
    solver = cfg.SOLVER
    # Detectron2's default of the second is no decay of norms, which AdamW has never followed here.
    accepted = {
        "BIAS_LR_FACTOR": (1.0,),
        "WEIGHT_DECAY_NORM": (0.0, solver.WEIGHT_DECAY),
        "WEIGHT_DECAY_BIAS": (None, solver.WEIGHT_DECAY),
    }
    for key, values in accepted.items():
        if solver[key] not in values:
            problem = f"is {solver[key]}, and SOLVER.OPTIMIZER 'AdamW' treats all parameters alike"
            raise DataError(f"SOLVER.{key}", problem, f"leave it at {values[0]}, or use 'SGD'")


def without_full_model_clipping(cfg: CfgNode) -> CfgNode:
    """The config for Detectron2's clipping, which does not know the type "full_model"."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE != FULL_MODEL:
        return cfg
    stock = cfg.clone()
    stock.defrost()
    stock.SOLVER.CLIP_GRADIENTS.ENABLED = False
    stock.freeze()
    return stock


def settle_optimizer(cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gives a fresh optimizer `SOLVER.BACKBONE_MULTIPLIER` and full-model clipping, in place.

    Groups are split in two where the multiplier is not 1. With `CLIP_TYPE` "full_model" every step
    begins by scaling all gradients with one factor, so that their common norm (`NORM_TYPE`) is at
    most `CLIP_VALUE`; a loss scaler has taken its factor out by then.

    Raises:
        DataError: the multiplier is not positive, or the model has no backbone to apply it to.
    """
    factor, clip = cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.CLIP_GRADIENTS
    if factor != 1:
        optimizer.param_groups = _split_groups(optimizer.param_groups, model, factor)
    if not clip.ENABLED or clip.CLIP_TYPE != FULL_MODEL:
        return

    def clip_all(stepping: torch.optim.Optimizer, *_: object) -> None:
        trained = [weight for group in stepping.param_groups for weight in group["params"]]
        nn.utils.clip_grad_norm_(trained, clip.CLIP_VALUE, clip.NORM_TYPE)

    optimizer.register_step_pre_hook(clip_all)


def _split_groups(groups: list[dict], model: nn.Module, factor: float) -> list[dict]:
    """Groups whose backbone parameters have a group of their own, with the scaled rate."""
    key, prefixes = f"SOLVER.BACKBONE_MULTIPLIER {factor}", backbone_prefixes(model)
    if factor <= 0:
        raise DataError(key, "is no factor", "use a positive number; MODEL.*.FREEZE_* freezes")
    if not prefixes:
        problem = f"no part of {type(model).__name__} is called or declared a backbone"
        raise DataError(key, problem, "set it to 1")
    lowered = {id(p) for name, p in model.named_parameters() if name.startswith(prefixes)}
    split = []
    for group in groups:
        parts = {True: [], False: []}
        for weight in group["params"]:
            parts[id(weight) in lowered].append(weight)
        split += [
            {**group, "params": part, "lr": group["lr"] * (factor if within else 1)}
            for within, part in parts.items()
            if part
        ]
    logger.info("lr x %g for %s", factor, ", ".join(name.rstrip(".") for name in prefixes))
    return split


def backbone_prefixes(model: nn.Module) -> tuple[str, ...]:
    """What the names of the backbone's parameters begin with.

    A backbone is a module called `backbone` or one that knows its layers (see `layers_of`); a model
    that keeps it elsewhere says so by an attribute `backbone_prefixes`, relative to itself.
    """
    found = []
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        stated = getattr(module, "backbone_prefixes", ())
        found += [start + prefix for prefix in stated]
        if not stated and (path.split(".")[-1] == "backbone" or hasattr(module, "layer_of")):
            found.append(start)
    # What lies within another one adds nothing.
    return tuple(p for p in found if not any(p != q and p.startswith(q) for q in found))


def layers_of(model: nn.Module, names: list[str]) -> dict[str, Layer]:
    """(layer, number of layers) of each named parameter, counted from the input.

    A module knows the layers of its own parameters by `layer_of(name) -> (layer, number)`, the name
    being the one inside that module. Parameters outside such modules (decoders, heads) are of the
    last layer.

    Raises:
        DataError: no module of the model has `layer_of`.
        ValueError: one gives a layer that it has not.
    """
    experts = dict(_experts(model))
    if not experts:
        problem = f"no part of {type(model).__name__} knows its layers (a method layer_of)"
        raise DataError("SOLVER.LAYER_DECAY", problem, "use a ViT encoder, or set it to 1")
    found: dict[str, Layer] = {}
    for name in names:
        owner = max((path for path in experts if name.startswith(path)), key=len, default=None)
        found[name] = (0, 1) if owner is None else experts[owner].layer_of(name[len(owner) :])
        layer, count = found[name]
        if not 0 <= layer < count:
            raise ValueError(f"{name}: layer {layer} of {count}")
    return found


def _experts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if hasattr(module, "layer_of"):
            yield (f"{path}." if path else ""), module
