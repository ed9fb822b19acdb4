"""The fully connected decoder: an MLP from the averaged tokens to all pixels of the map.

Legend: B batch; D encoder width; h, w feature size; G side of the averaged grid; E width before the
output (`out_dim`); M map side; C masks per crop.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .decoder_product import class_index, own_part


class FullyConnectedDecoder(nn.Module):
    """Every pixel of the map has weights of its own.

    The publication names this decoder and gives no sizes. An MLP on all 32 x 32 tokens of a ViT-B
    would have 200 million weights, so the tokens are squeezed to a quarter of `hidden_dim` channels
    and averaged to G x G first: 5.4 million at the default sizes, where `KVDecoder` has 3.8. There
    is no feature map to resize, hence no size bins and no upsampling. With classes, the layer
    before the output has C parts of which the box's class takes one, and the M x M output weights
    are shared.

    Args:
        in_dim: D.
        hidden_dim: width of the first layer.
        out_dim: E.
        map_size: M.
        grid: G.
        num_classes: 0 for one mask whatever the class, else C.

    Raises:
        ValueError: a size that leaves nothing.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 256,
        out_dim: int = 256,
        map_size: int = 128,
        grid: int = 8,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if hidden_dim < 4 or grid < 1 or num_classes < 0:
            raise ValueError(
                "hidden_dim >= 4, grid >= 1 and num_classes >= 0 are required; got"
                f" {hidden_dim}, {grid}, {num_classes}"
            )
        self.map_size, self.grid, self.num_classes = map_size, grid, num_classes
        channels = hidden_dim // 4
        self.squeeze = nn.Conv2d(in_dim, channels, 1)
        self.hidden = nn.Linear(channels * grid * grid, hidden_dim)
        self.code = nn.Linear(hidden_dim, out_dim * max(1, num_classes))
        self.output = nn.Linear(out_dim, map_size * map_size)

    def forward(self, features: Tensor, box_areas: Tensor, classes: Tensor | None = None) -> Tensor:
        """Decode one mask per crop.

        Args:
            features: (B, D, h, w).
            box_areas: (B,), not used: there are no size bins.
            classes: (B,), of `class_index`.

        Returns:
            logits (B, M, M), float32.

        Raises:
            ValueError: of `class_index`.
        """
        index = class_index(self.num_classes, classes, features)
        pooled = F.adaptive_avg_pool2d(F.relu(self.squeeze(features)), self.grid)
        codes = self.code(F.relu(self.hidden(pooled.flatten(1))))
        own = own_part(codes, index, max(1, self.num_classes))
        logits = self.output(F.relu(own))
        return logits.float().unflatten(1, (self.map_size, self.map_size))
