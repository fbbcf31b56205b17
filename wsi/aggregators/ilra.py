"""ILRA: tiles speak to each other through a few latent vectors.

Source: Xiang and Zhang 2023, *Exploring Low-Rank Property in Multiple Instance Learning for Whole
Slide Image Classification*, ICLR 2023, eq. 13-17. Their contrastive pretraining of the encoder is
not part of an aggregator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wsi.aggregators.attention import attend, check_heads, pool_by_query
from wsi.aggregators.base import Aggregator, Output, Packed
from wsi.aggregators.layers import segment_softmax
from wsi.errors import ConfigError


class ILRA(Aggregator):
    """Low-rank self-attention, several times, then pooling by one learned query.

    Per layer, with latents L (r, E): T = GAB(L, x), x = GAB(x, T), where GAB(q, k) attends from q
    to k, normalises, adds ReLU(W .), normalises and gates by SiLU(U q). Pooling attends from one
    learned query to all tiles; its attention is given back. The cost is r per tile, never N.

    Where we differ: one linear map, not two, before each attention; norms are always on; dropout
    acts on the bag embedding.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E.
        heads: H, a divisor of `hidden`.
        layers: of low-rank attention.
        latents: r, the rank.
        dropout: share of the bag embedding dropped in training.
        instance_dropout: share of tiles left out in training, at least one kept per bag.
        attention_entropy: weight of the attention's negative entropy in the loss (AEM).
    """

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        *,
        hidden: int = 256,
        heads: int = 8,
        layers: int = 2,
        latents: int = 64,
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
        check_heads("ilra", hidden, heads)
        if layers < 1 or latents < 1:
            raise ConfigError(f"ilra: layers={layers} and latents={latents} must be 1 or more")
        widths = [dim] + [hidden] * (layers - 1)
        self.layers = nn.ModuleList([_LowRank(w, hidden, heads, latents) for w in widths])
        self.pooling = _Attending(hidden, hidden, hidden, heads, gated=False)
        self.seed = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, hidden)))
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E), logits (B, C) or None, attention (sum N, H)."""
        x = batch.x
        for layer in self.layers:
            x = layer(x, batch.sizes)
        pooled, attention = self.pooling.one_each(self.seed, x, batch.sizes)
        embedding = self.dropout(pooled)
        return Output(embedding, self.classify(embedding), attention)


class _LowRank(nn.Module):
    def __init__(self, dim: int, width: int, heads: int, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(nn.init.xavier_uniform_(torch.empty(latents, width)))
        self.gather = _Attending(width, dim, width, heads, gated=True)
        self.spread = _Attending(dim, width, width, heads, gated=True)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return tiles (sum N, width) of tiles (sum N, dim)."""
        ranks = [len(self.latents)] * len(sizes)
        told = self.gather(self.latents.repeat(len(sizes), 1), x, ranks, sizes)
        return self.spread(x, told, sizes, ranks)


class _Attending(nn.Module):
    """Cross attention, a residual layer, norms, and a gate of the queries."""

    def __init__(self, q_dim: int, k_dim: int, width: int, heads: int, *, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(q_dim, width)
        self.key_value = nn.Linear(k_dim, 2 * width)
        self.out, self.inner = nn.Linear(width, width), nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.gate = nn.Sequential(nn.Linear(q_dim, width), nn.SiLU()) if gated else None

    def forward(
        self, q: Tensor, k: Tensor, q_sizes: Sequence[int], k_sizes: Sequence[int]
    ) -> Tensor:
        query, (key, value) = self.query(q), self.key_value(k).chunk(2, dim=1)
        return self._rest(q, query, attend(query, key, value, q_sizes, k_sizes, self.heads))

    def one_each(self, q: Tensor, k: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what query q (1, E) gathers of each bag (B, E), and its attention (sum N, H)."""
        key, value = self.key_value(k).chunk(2, dim=1)
        query = self.query(q).expand(len(sizes), -1)
        mixed, scores = pool_by_query(query, key, value, sizes, self.heads)
        return self._rest(q, query, mixed), segment_softmax(scores, sizes)

    def _rest(self, q: Tensor, query: Tensor, mixed: Tensor) -> Tensor:
        o = self.norms[0](query + self.out(mixed))
        o = self.norms[1](o + self.inner(o).relu())
        return o if self.gate is None else o * self.gate(q)
