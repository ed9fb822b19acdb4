"""The query-based decoder: a learned query asks the tokens for the filter of V.

Legend: B batch; D encoder width; h, w feature size; Q width of the query (`hidden_dim`);
E embedding width; C masks per crop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder_product import ProductDecoder, value_head


class QueryDecoder(ProductDecoder):
    """logit(x, y) = <query after cross-attention, V(x, y)>.

    The tokens carry the encoder's position embedding, so none is added here. With classes there
    are C queries, of which only the one of the box's class is decoded.

    Args:
        in_dim: D.
        hidden_dim: Q, and width of the V head.
        out_dim: E.
        num_convs: of the V head, as in `KVDecoder`.
        num_layers: cross-attention layers.
        num_heads: of each; divides Q.
        map_size, scales, upsample, num_classes: of `ProductDecoder`.

    Raises:
        ValueError: of `ProductDecoder` and `value_head`; no layer, or heads that do not divide Q.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int = 256,
        out_dim: int = 256,
        num_convs: int = 4,
        num_layers: int = 3,
        num_heads: int = 8,
        map_size: int = 128,
        scales: tuple[float, float, float] = (0.5, 1.0, 2.0),
        upsample: float = 2.0,
        num_classes: int = 0,
    ) -> None:
        super().__init__(map_size, scales, upsample, num_classes)
        if num_layers < 1 or num_heads < 1 or hidden_dim % num_heads:
            raise ValueError(
                "num_layers >= 1 and num_heads that divide hidden_dim are required; got"
                f" {num_layers}, {num_heads} and {hidden_dim}"
            )
        self.query = nn.Parameter(0.02 * torch.randn(max(1, num_classes), hidden_dim))
        self.layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, in_dim, num_heads) for _ in range(num_layers)
        )
        self.output = nn.Linear(hidden_dim, out_dim)
        self.value = value_head(in_dim, hidden_dim, out_dim, num_convs)

    def filters(self, features: Tensor, index: Tensor) -> tuple[Tensor, None]:
        """(B, E) from the query of each crop; no offset."""
        query = self.query[index][:, None]
        tokens = features.flatten(2).transpose(1, 2)
        for layer in self.layers:
            query = layer(query, tokens)
        return self.output(query[:, 0]), None


class CrossAttentionLayer(nn.Module):
    """Attention of queries to tokens and an MLP, each added and then normalised.

    Args:
        width: Q.
        token_width: D.
        num_heads: divides Q.
    """

    def __init__(self, width: int, token_width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            width, num_heads, kdim=token_width, vdim=token_width, batch_first=True
        )
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, Q) and (B, hw, D) -> (B, N, Q)."""
        answer, _ = self.attention(query, tokens, tokens, need_weights=False)
        query = self.attention_norm(query + answer)
        return self.mlp_norm(query + self.mlp(query))
