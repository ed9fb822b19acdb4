"""The attention-based decoder: one dynamic 1x1 filter per crop, applied to a per-pixel embedding.

Legend: B batch; D encoder width; h, w feature size; E embedding width; C masks per crop.
"""

from __future__ import annotations

from torch import Tensor, nn

from .decoder_product import ProductDecoder, own_part, value_head


class KVDecoder(ProductDecoder):
    """Attention-based decoder of Lan et al. 2023: logit(x, y) = <K, V(x, y)>.

    K summarises the whole crop, V keeps the spatial detail. V ends with a ReLU, hence the sign of
    a logit comes from K alone. With classes, K has C vectors of which the box's class takes one.

    Args:
        in_dim: D.
        hidden_dim: width of both heads.
        out_dim: E.
        num_convs: 3x3 convolutions of the V head, the last after the upsampling.
        map_size, scales, upsample, num_classes: of `ProductDecoder`.

    Raises:
        ValueError: of `ProductDecoder` and `value_head`.
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
        num_classes: int = 0,
    ) -> None:
        super().__init__(map_size, scales, upsample, num_classes)
        keys = out_dim * max(1, num_classes)
        self.key = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, keys)
        )
        self.value = value_head(in_dim, hidden_dim, out_dim, num_convs)

    def filters(self, features: Tensor, index: Tensor) -> tuple[Tensor, None]:
        """K (B, E) from the mean of all positions; no offset."""
        keys = self.key(features.mean(dim=(2, 3)))
        return own_part(keys, index, max(1, self.num_classes)), None
