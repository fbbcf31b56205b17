"""ABMIL with an attention branch per class.

Source: Ilse et al. 2018, arXiv 1802.04712, eq. 7-9, once per class; Lu et al. 2021, arXiv
2004.09666, for the branches.
"""

from __future__ import annotations

from torch import nn

from wsi.aggregators.base import Aggregator, Output, Packed, TileTerms, needed_classes
from wsi.aggregators.layers import (
    AttentionScores,
    BranchHead,
    segment_branches,
    segment_softmax,
)


class MultiBranchABMIL(Aggregator):
    """One attention, one embedding and one score per class.

    h_i = ReLU(W x_i), a_c = softmax_i(score_c(h_i)), z_c = sum_i a_ic h_i, logit_c = w_c.z_c + b_c.
    The branches share all but the last layer of the attention network. The bag embedding is
    (z_1, ..., z_C), so a head is needed; `abmil` with heads has branches without it.

    Args:
        dim: features per tile, D.
        n_classes: C.
        hidden: E, features per tile after the first layer; the bag embedding has C E.
        attention_dim: width of the attention network.
        gated: eq. 9 rather than eq. 8.
        dropout: share of the bag embedding dropped in training.
        instance_dropout: share of tiles left out in training, at least one kept per bag.
        attention_entropy: weight of the attention's negative entropy in the loss (AEM).

    Raises:
        ConfigError: there are no classes, as the objective works on the embedding.
    """

    needs_head = True

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        *,
        hidden: int = 512,
        attention_dim: int = 128,
        gated: bool = True,
        dropout: float = 0.25,
        instance_dropout: float = 0.0,
        attention_entropy: float = 0.0,
    ) -> None:
        classes = needed_classes("abmil_mb", n_classes, "abmil aggregator.heads=4")
        super().__init__(
            dim,
            None,
            embedding_dim=classes * hidden,
            instance_dropout=instance_dropout,
            attention_entropy=attention_entropy,
        )
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.attention = AttentionScores(hidden, attention_dim, classes, gated=gated)
        self.dropout = nn.Dropout(dropout)
        self.head = BranchHead(hidden, classes)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, C E), logits (B, C), attention (sum N, C)."""
        h = self.embed(batch.x)
        attention = segment_softmax(self.attention(h), batch.sizes)
        z = self.dropout(segment_branches(h, attention, batch.sizes).flatten(1))
        return Output(z, self.classify(z), attention=attention)

    def tile_terms(self, batch: Packed) -> TileTerms:
        """Return h, once per class (sum N, C E), and attention (sum N, C)."""
        h = self.embed(batch.x)
        attention = segment_softmax(self.attention(h), batch.sizes)
        return TileTerms(h.repeat(1, attention.shape[1]), attention)
