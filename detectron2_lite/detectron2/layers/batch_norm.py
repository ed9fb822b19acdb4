"""Normalisation layers and the names by which configs choose them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FrozenBatchNorm2d", "LayerNorm2d", "NaiveSyncBatchNorm", "get_norm"]


def _scale_and_shift(norm: nn.Module, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """The two (C, 1, 1) terms that normalise by given statistics (C,) and apply `norm`'s own."""
    scale = (var + norm.eps).rsqrt() * norm.weight
    return scale[:, None, None], (norm.bias - mean * scale)[:, None, None]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics *and* affine terms are constants.

    All four live in buffers (`weight`, `bias`, `running_mean`, `running_var`), so optimisers
    and EMA over parameters never see them while checkpoints of a plain batch norm load.
    """

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        ones, zeros = torch.ones(num_features), torch.zeros(num_features)
        self.register_buffer("weight", ones.clone())
        self.register_buffer("bias", zeros.clone())
        self.register_buffer("running_mean", zeros)
        # Minus eps: a new layer is then exactly the identity.
        self.register_buffer("running_var", ones - eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) per channel; differentiable in x alone."""
        if x.requires_grad:
            # The fused kernel would keep x alive for a gradient of the affine terms that is
            # never asked for; one multiply-add does not.
            scale, shift = _scale_and_shift(self, self.running_mean, self.running_var)
            return x * scale.to(x.dtype) + shift.to(x.dtype)
        scale, shift = self.weight, self.bias
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(x, mean, variance, scale, shift, training=False, eps=self.eps)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        # A trained batch norm counts its batches; here nobody does.
        state_dict.pop(prefix + "num_batches_tracked", None)
        if (local_metadata.get("version") or 1) < 2:
            # Converted files carry no version, and those with the statistics folded into the
            # affine terms mean mean 0 and variance 1 by leaving both out.
            state_dict.setdefault(prefix + "running_mean", torch.zeros(self.num_features))
            state_dict.setdefault(prefix + "running_var", torch.ones(self.num_features))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every (Sync)BatchNorm2d below `module` by its frozen equal.

        Children are replaced in place; the return value differs from `module` only when
        `module` itself is a batch norm.
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = cls(module.num_features, eps=module.eps)
            with torch.no_grad():
                if module.affine:
                    frozen.weight = module.weight.detach().clone()
                    frozen.bias = module.bias.detach().clone()
                if module.running_mean is not None:
                    frozen.running_mean = module.running_mean.clone()
                    frozen.running_var = module.running_var.clone()
            return frozen.to(frozen.weight.device).train(module.training)
        for name, child in module.named_children():
            replacement = cls.convert_frozen_batchnorm(child)
            if replacement is not child:
                setattr(module, name, replacement)
        return module


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over all ranks, also of unequal (and, with "N", empty) batches.

    Args:
        stats_mode: "" gives every rank the same say; "N" weighs the ranks by their number
            of images.
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        if stats_mode not in ("", "N"):
            raise ValueError(f"stats_mode must be '' or 'N', got {stats_mode!r}")
        super().__init__(*args, **kwargs)
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        if not self.training or alone:
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce

        x = input.float()
        if self._stats_mode == "N":
            share = x.new_full((1,), x.shape[0])
        elif x.shape[0] > 0:
            share = x.new_ones(1)
        else:
            raise ValueError("NaiveSyncBatchNorm needs stats_mode='N' for empty batches")
        if x.shape[0] == 0:
            first = second = x.sum() * 0 + x.new_zeros(x.shape[1])
        else:
            first, second = x.mean((0, 2, 3)), (x * x).mean((0, 2, 3))
        total = all_reduce(torch.cat([first * share, second * share, share]))
        mean, square = (total[:-1] / total[-1].clamp(min=1)).chunk(2)
        var = square - mean * mean
        if total[-1] > 0:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        scale, shift = _scale_and_shift(self, mean, var)
        return (x * scale + shift).to(input.dtype)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of each pixel, for NCHW maps."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, channels = eps, torch.zeros(normalized_shape)
        self.register_parameter("weight", nn.Parameter(channels + 1))
        self.register_parameter("bias", nn.Parameter(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) over C."""
        pixels = x.movedim(1, -1)
        normal = F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, self.eps)
        return normal.movedim(-1, 1)


def _naive_sync_n(channels: int) -> nn.Module:
    return NaiveSyncBatchNorm(channels, stats_mode="N")


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": _naive_sync_n,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": _group_norm,
    "LN": LayerNorm2d,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build a norm layer.

    Args:
        norm: "" or None for no norm; a name (BN, SyncBN, FrozenBN, GN, LN, nnSyncBN,
            naiveSyncBN, naiveSyncBN_N); or a callable from channels to a module.
        out_channels: channels of the map to normalise.

    Raises:
        KeyError: the name is unknown.
    """
    if not norm:
        return None
    if not isinstance(norm, str):
        return norm(out_channels)
    if norm not in _NORMS:
        raise KeyError(f"Unknown norm {norm!r}; choose from {', '.join(_NORMS)} or ''")
    return _NORMS[norm](out_channels)
