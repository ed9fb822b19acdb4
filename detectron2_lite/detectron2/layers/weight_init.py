"""The weight initialisations that stock models use.

Caffe2's two are here because `fvcore.nn`, where upstream takes them from, warns on import with
torch >= 2.10.
"""

from __future__ import annotations

from torch import nn

__all__ = ["c2_msra_fill", "c2_xavier_fill", "normal_fill"]


def c2_xavier_fill(module: nn.Module) -> None:
    """Uniform weights in +-sqrt(3 / fan_in), bias 0 (Caffe2's "XavierFill")."""
    nn.init.kaiming_uniform_(module.weight, a=1)
    _zero_bias(module)


def c2_msra_fill(module: nn.Module) -> None:
    """Normal weights with variance 2 / fan_out, bias 0 (Caffe2's "MSRAFill")."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(module)


def normal_fill(module: nn.Module, std: float) -> None:
    """Normal weights around 0, bias 0: small outputs at the start, as predictors need them."""
    nn.init.normal_(module.weight, std=std)
    _zero_bias(module)


def _zero_bias(module: nn.Module) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
