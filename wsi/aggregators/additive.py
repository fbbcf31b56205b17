"""Additive MIL: the logits of a bag are a sum over its tiles.

Source: Javed et al. 2022, arXiv 2206.01794, eq. 4-5.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

from wsi.aggregators.base import Aggregator, Output, Packed
from wsi.aggregators.layers import AttentionScores, segment_softmax, segment_weighted_sum


class AdditiveMIL(Aggregator):
    """Each tile, scaled by its attention, is scored by itself; the scores are added up.

    h_i = ReLU(W x_i), a = softmax_i(score(h_i)), logits = b + sum_i V t_i with
    t_i = g(a_i h_i) - g(0) and g one layer, ReLU. The embedding is sum_i t_i. The attention is
    inside g, so that, other than in ABMIL, what a tile adds is no weighted copy of what it says
    alone; yet it is exact: e_ic = v_c.t_i + a_i b_c.

    Where we differ: the paper adds psi(a_i h_i) with all biases, so that N tiles without any
    attention add N psi(0). We take g(0) off and count the last bias once per bag.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: features per tile after the first layer.
        scored: E, width of g.
        attention_dim: width of the attention network.
        gated: eq. 9 rather than eq. 8 of Ilse et al. 2018.
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
        scored: int = 256,
        attention_dim: int = 128,
        gated: bool = True,
        dropout: float = 0.25,
        instance_dropout: float = 0.0,
        attention_entropy: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            n_classes,
            embedding_dim=scored,
            instance_dropout=instance_dropout,
            attention_entropy=attention_entropy,
        )
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.attention = AttentionScores(hidden, attention_dim, 1, gated=gated)
        self.score = nn.Linear(hidden, scored)
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E), logits (B, C) or None, attention (sum N, 1).

        In evaluation with a head also evidence (sum N, C), which sums to the logits.
        """
        h = self.embed(batch.x)
        attention = segment_softmax(self.attention(h), batch.sizes)
        terms = self._terms(attention * h)
        z = self.dropout(segment_weighted_sum(terms, terms.new_ones(len(terms), 1), batch.sizes))
        evidence = None if self.training else self._evidence(terms, attention)
        return Output(z, self.classify(z), attention=attention, evidence=evidence)

    def _terms(self, attended: Tensor) -> Tensor:
        """Return g(a_i h_i) - g(0) (sum N, E)."""
        # Of a large bag a_i h_i is minute beside the bias: added to it in half precision it
        # would be lost.
        bias = self.score.bias.float()
        return (linear(attended, self.score.weight).float() + bias).relu() - bias.relu()

    def _evidence(self, terms: Tensor, attention: Tensor) -> Tensor | None:
        head = self.linear_head()
        return None if head is None else terms @ head[0].T + attention * head[1]
