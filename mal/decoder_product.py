"""What most decoders share: a per-pixel embedding V, and one filter per crop that reads it.

Legend: B batch; D encoder width; h, w feature size; E embedding width (`out_dim`); M map side;
C masks per crop, 1 or the number of classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pseudolabel.masks import size_bin_index


class ProductDecoder(nn.Module):
    """Logits <filter, V(x, y)>; a subclass says where the filter comes from.

    It sets `value` (of `value_head`) and implements `filters`. Before V the feature map is resized
    by a factor that depends on the size of the original box: a small object's crop is an enlarged
    image without fine detail. V ends with a ReLU and runs once per crop, whatever C.

    Args:
        map_size: M, side of the logit map that leaves the decoder.
        scales: feature resize for small, medium and large boxes; equal values switch the size
            adjustment off.
        upsample: bilinear factor just before the last convolution of V.
        num_classes: 0 for one mask whatever the class, else C.

    Raises:
        ValueError: not three positive scales, or another impossible number.
    """

    value: nn.ModuleList

    def __init__(
        self, map_size: int, scales: tuple[float, float, float], upsample: float, num_classes: int
    ) -> None:
        super().__init__()
        if len(scales) != 3 or min(scales) <= 0 or upsample <= 0 or num_classes < 0:
            raise ValueError(
                "three positive scales, upsample > 0 and num_classes >= 0 are required; got"
                f" {tuple(scales)}, {upsample}, {num_classes}"
            )
        self.map_size, self.scales, self.upsample = map_size, tuple(scales), upsample
        self.num_classes = num_classes

    def filters(self, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """The filter of each crop and what is added to its logits.

        Args:
            features: (B, D, h, w).
            index: (B,), which of the C masks.

        Returns:
            (B, E), and (B,) or None.
        """
        raise NotImplementedError

    def forward(self, features: Tensor, box_areas: Tensor, classes: Tensor | None = None) -> Tensor:
        """Decode one mask per crop.

        Args:
            features: (B, D, h, w).
            box_areas: (B,), area of each box in original image pixels; on the CPU it costs no
                synchronisation.
            classes: (B,), of `class_index`.

        Returns:
            logits (B, M, M), float32.

        Raises:
            ValueError: of `class_index`.
        """
        index = class_index(self.num_classes, classes, features)
        weight, offset = self.filters(features, index)
        if len(set(self.scales)) == 1:
            return self._decode(features, weight, offset, self.scales[0])
        bins = [size_bin_index(area) for area in box_areas.tolist()]
        members = [[i for i, own in enumerate(bins) if own == which] for which in range(3)]
        if max(map(len, members)) == len(bins):
            scale = self.scales[bins[0]] if bins else 1.0
            return self._decode(features, weight, offset, scale)
        parts = [
            self._decode(features[own], weight[own], None if offset is None else offset[own], scale)
            for own, scale in zip(members, self.scales)
            if own
        ]
        order = torch.tensor([i for own in members for i in own], device=features.device)
        return torch.cat(parts)[order.argsort()]

    def _decode(
        self, features: Tensor, weight: Tensor, offset: Tensor | None, scale: float
    ) -> Tensor:
        """Logits (B, M, M) of crops that share one feature scale."""
        value = _resize(features, scale)
        for position, conv in enumerate(self.value, start=1):
            if position == len(self.value):
                value = _resize(value, self.upsample)
            value = F.relu(conv(value))
        # a sum of E non-negative products leaves fp16's range early
        with torch.autocast(features.device.type, enabled=False):
            logits = torch.einsum("be,behw->bhw", weight.float(), value.float())
            if offset is not None:
                logits = logits + offset.float()[:, None, None]
            return _to_size(logits, (self.map_size, self.map_size))


def value_head(in_dim: int, hidden_dim: int, out_dim: int, num_convs: int) -> nn.ModuleList:
    """3x3 convolutions from D to E channels, initialised for the ReLU that follows each.

    Raises:
        ValueError: fewer than one convolution.
    """
    if num_convs < 1:
        raise ValueError(f"num_convs >= 1 is required, got {num_convs}")
    widths = [in_dim, *[hidden_dim] * (num_convs - 1), out_dim]
    convs = nn.ModuleList(
        nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(widths)
    )
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(conv.bias)
    return convs


def class_index(num_classes: int, classes: Tensor | None, features: Tensor) -> Tensor:
    """Which of a decoder's masks each crop gets.

    Args:
        num_classes: 0 for a class-agnostic decoder, which ignores `classes`.
        classes: (B,), class of each box, 0 to num_classes - 1; on the CPU it costs no
            synchronisation.
        features: (B, D, h, w), for batch size and device.

    Returns:
        (B,), long, on the device of the features.

    Raises:
        ValueError: a class-aware decoder gets no classes, too few or many, or one that it lacks.
    """
    count = len(features)
    if num_classes == 0:
        return torch.zeros(count, dtype=torch.long, device=features.device)
    if classes is None:
        raise ValueError(
            f"a decoder of {num_classes} classes needs the class of every box; give `classes`, or"
            " set MODEL.MAL.DECODER.NUM_CLASSES 0"
        )
    if classes.shape != (count,):
        raise ValueError(f"{count} crops need {count} classes, got shape {tuple(classes.shape)}")
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if len(wrong):
        raise ValueError(f"class {int(wrong[0])} is none of the decoder's 0 to {num_classes - 1}")
    return classes.to(features.device, torch.long)


def own_part(stacked: Tensor, index: Tensor, count: int) -> Tensor:
    """The parts (B, E) of the chosen masks.

    Args:
        stacked: (B, C * E).
        index: (B,), 0 to C - 1.
        count: C.
    """
    parts = stacked.unflatten(1, (count, -1))
    return parts[torch.arange(len(parts), device=parts.device), index]


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
