"""The fully convolutional decoder: V with a 1x1 output layer, the same for every crop.

Legend: B batch; D encoder width; h, w feature size; E embedding width; C masks per crop.
"""

from __future__ import annotations

from torch import Tensor, nn

from .decoder_product import ProductDecoder, value_head


class FullyConvolutionalDecoder(ProductDecoder):
    """The attention-based decoder without K: nothing adapts the filter to the crop.

    With classes, the output layer has C channels of which the box's class takes one.

    Args:
        in_dim: D.
        hidden_dim, out_dim, num_convs: of the V head, as in `KVDecoder`.
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
        self.value = value_head(in_dim, hidden_dim, out_dim, num_convs)
        # A linear layer over channels is a 1x1 convolution; only the rows in use are computed.
        self.output = nn.Linear(out_dim, max(1, num_classes))

    def filters(self, features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (B, E) and bias (B,) of the output channel; the features are not looked at."""
        return self.output.weight[index], self.output.bias[index]
