"""Mask decoder: one dynamic 1x1 filter per crop, applied to a per-pixel embedding.

Legend: B batch; D encoder width; h, w feature size; E embedding width (`out_dim`); M map side.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pseudolabel.masks import size_bin_index


class KVDecoder(nn.Module):
    """Attention-based decoder of Lan et al. 2023: logit(x, y) = <K, V(x, y)>.

    K summarises the whole crop, V keeps the spatial detail. V ends with a ReLU, hence the sign of
    a logit comes from K alone. Before V the feature map is resized by a factor that depends on the
    size of the original box: a small object's crop is an enlarged image without fine detail.

    Args:
        in_dim: D.
        hidden_dim: width of both heads.
        out_dim: E.
        num_convs: 3x3 convolutions of the V head, the last after the upsampling.
        map_size: M, side of the logit map that leaves the decoder.
        scales: feature resize for small, medium and large boxes; equal values switch the size
            adjustment off.
        upsample: bilinear factor just before the last convolution.

    Raises:
        ValueError: fewer than one convolution, or not three positive scales.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 256,
        out_dim: int = 256,
        num_convs: int = 4,
        map_size: int = 128,
        scales: tuple[float, float, float] = (0.5, 1.0, 2.0),
        upsample: float = 2.0,
    ) -> None:
        super().__init__()
        if num_convs < 1 or len(scales) != 3 or min(scales) <= 0 or upsample <= 0:
            raise ValueError(
                "num_convs >= 1, three positive scales and upsample > 0 are required; got"
                f" {num_convs}, {tuple(scales)}, {upsample}"
            )
        self.map_size, self.scales, self.upsample = map_size, tuple(scales), upsample
        self.key = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim)
        )
        widths = [in_dim, *[hidden_dim] * (num_convs - 1), out_dim]
        self.value = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths)
        )
        for conv in self.value:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)

    def forward(self, features: Tensor, box_areas: Tensor) -> Tensor:
        """Decode one mask per crop.

        Args:
            features: (B, D, h, w).
            box_areas: (B,), area of each box in original image pixels; on the CPU it costs no
                synchronisation.

        Returns:
            logits (B, M, M), float32.
        """
        keys = self.key(features.mean(dim=(2, 3)))
        if len(set(self.scales)) == 1:
            return self._decode(features, keys, self.scales[0])
        bins = [size_bin_index(area) for area in box_areas.tolist()]
        members = [[i for i, own in enumerate(bins) if own == which] for which in range(3)]
        if max(map(len, members)) == len(bins):
            return self._decode(features, keys, self.scales[bins[0]] if bins else 1.0)
        parts = [
            self._decode(features[index], keys[index], scale)
            for index, scale in zip(members, self.scales)
            if index
        ]
        order = torch.tensor([i for index in members for i in index], device=features.device)
        return torch.cat(parts)[order.argsort()]

    def _decode(self, features: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Logits (B, M, M) of crops that share one feature scale."""
        value = _resize(features, scale)
        for position, conv in enumerate(self.value, start=1):
            if position == len(self.value):
                value = _resize(value, self.upsample)
            value = F.relu(conv(value))
        # a sum of E non-negative products leaves fp16's range early
        with torch.autocast(features.device.type, enabled=False):
            logits = torch.einsum("be,behw->bhw", keys.float(), value.float())
            return _to_size(logits, (self.map_size, self.map_size))


def _resize(features: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return features
    size = [max(1, round(side * factor)) for side in features.shape[-2:]]
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def _to_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    resized = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)
    return resized[:, 0]
