"""Attention pooling (ABMIL).

Source: Ilse, Tomczak, Welling, *Attention-based Deep Multiple Instance Learning*, 2018,
arXiv 1802.04712, eq. 7-9.
"""

from __future__ import annotations

from torch import nn

from wsi.aggregators.attention import check_heads
from wsi.aggregators.base import Aggregator, Output, Packed, TileTerms
from wsi.aggregators.layers import AttentionScores, segment_softmax, segment_weighted_sum


class ABMIL(Aggregator):
    """Weighted mean of tile features, with weights from a small attention network.

    h_i = ReLU(W x_i), a = softmax_i(score(h_i)), z = sum_i a_i h_i, logits = head(z). With H > 1
    heads, each pools its own E / H features. Dropout acts on z alone, so it neither unbalances
    the attention nor costs a mask per tile.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E, features per tile after the first layer.
        attention_dim: width of the attention network.
        gated: eq. 9 rather than eq. 8.
        heads: H, a divisor of `hidden`.
        dropout: share of the bag embedding dropped in training.
        instance_dropout: share of tiles left out in training, at least one kept per bag.
        attention_entropy: weight of the attention's negative entropy in the loss (AEM).
    """

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        *,
        hidden: int = 512,
        attention_dim: int = 128,
        gated: bool = True,
        heads: int = 1,
        dropout: float = 0.25,
        instance_dropout: float = 0.0,
        attention_entropy: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            n_classes,
            embedding_dim=hidden,
            instance_dropout=instance_dropout,
            attention_entropy=attention_entropy,
        )
        check_heads("abmil", hidden, heads)
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.attention = AttentionScores(hidden, attention_dim, heads, gated=gated)
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E), logits (B, C) or None, attention (sum N, H)."""
        terms = self.tile_terms(batch)
        embedding = segment_weighted_sum(terms.h, terms.attention, batch.sizes)
        dropped = self.dropout(embedding)
        return Output(embedding=dropped, logits=self.classify(dropped), attention=terms.attention)

    def tile_terms(self, batch: Packed) -> TileTerms:
        """Return h (sum N, E) and attention (sum N, H)."""
        h = self.embed(batch.x)
        return TileTerms(h, segment_softmax(self.attention(h), batch.sizes))
