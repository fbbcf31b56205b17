"""ACMIL: several attention branches that must differ, and the most attended tiles masked.

Source: Zhang et al. 2023, *Attention-Challenging Multiple Instance Learning for Whole Slide Image
Classification*, arXiv 2311.07125.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from wsi.aggregators.base import Aggregator, Output, Packed
from wsi.aggregators.layers import AttentionScores, segment_softmax, segment_weighted_sum
from wsi.errors import ConfigError


class ACMIL(Aggregator):
    """M branches of gated attention; the bag is pooled by their mean.

    h_i = ReLU(W x_i), a^m = softmax_i(score^m(h_i)), z^m = sum_i a_i^m h_i,
    z = sum_i (1/M sum_m a_i^m) h_i. In training, of the `masked_top` tiles with the most attention
    in a branch a share is masked at random, and the others take their weight.

    The auxiliary loss is the mean cosine between attentions of two branches, plus the mean
    cross-entropy of a classifier on each z^m where labels are given. Without a head, as with
    objectives on the embedding, there are no such classifiers and the cosine alone is left.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E.
        attention_dim: width of the attention network.
        branches: M.
        masked_top: tiles per branch that may be masked, the most attended; at most all.
        masked_share: share of those that are masked, rounded down; one tile is always left.
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
        branches: int = 5,
        masked_top: int = 10,
        masked_share: float = 0.6,
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
        if branches < 1 or masked_top < 0 or not 0 <= masked_share <= 1:
            raise ConfigError(
                f"acmil: branches={branches} must be 1 or more, masked_top={masked_top} 0 or more "
                f"and masked_share={masked_share} between 0 and 1"
            )
        self.masked_top, self.masked_share = masked_top, masked_share
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.attention = AttentionScores(hidden, attention_dim, branches, gated=True)
        self.branch_heads = (
            nn.ModuleList([nn.Linear(hidden, n_classes) for _ in range(branches)])
            if n_classes is not None
            else None
        )
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E), logits (B, C) or None, attention (sum N, M), aux_loss."""
        h = self.embed(batch.x)
        scores = self.attention(h)
        if self.training:
            scores = self._masked(scores, batch.sizes)
        a = segment_softmax(scores, batch.sizes)
        embedding = self.dropout(segment_weighted_sum(h, a.mean(1, keepdim=True), batch.sizes))
        aux = self._auxiliary(h, a, batch) if self.training else None
        return Output(embedding, self.classify(embedding), a, aux_loss=aux)

    def _auxiliary(self, h: Tensor, a: Tensor, batch: Packed) -> Tensor:
        likeness = _likeness(a, batch.sizes)
        if self.branch_heads is None or batch.y is None:
            return likeness
        losses = [
            cross_entropy(head(segment_weighted_sum(h, weights[:, None], batch.sizes)), batch.y)
            for head, weights in zip(self.branch_heads, a.unbind(1), strict=True)
        ]
        return likeness + torch.stack(losses).mean()

    def _masked(self, scores: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return scores (sum N, M), those of masked tiles -inf."""
        return torch.cat([self._masked_bag(bag) for bag in scores.split(list(sizes))])

    def _masked_bag(self, scores: Tensor) -> Tensor:
        top = min(self.masked_top, len(scores))
        masked = min(int(top * self.masked_share), len(scores) - 1)
        if masked < 1:
            return scores
        most = scores.topk(top, dim=0).indices
        drawn = torch.rand(most.shape).argsort(0)[:masked].to(most.device)  # as dropout: torch's
        return scores.scatter(0, most.gather(0, drawn), -torch.inf)


def _likeness(a: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the mean cosine between the attentions of two branches, over bags and pairs."""
    pairs = list(combinations(range(a.shape[1]), 2))
    if not pairs:
        return a.new_zeros(())
    first, second = (list(side) for side in zip(*pairs, strict=True))
    bags = [
        cosine_similarity(bag[:, first], bag[:, second], dim=0).mean()
        for bag in a.split(list(sizes))
    ]
    return torch.stack(bags).mean()
