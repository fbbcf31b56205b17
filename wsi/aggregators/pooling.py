"""Poolings per feature: the baselines every aggregator has to beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsi.aggregators.base import Aggregator, Output, Packed, TileTerms
from wsi.aggregators.layers import segment_max, segment_mean
from wsi.errors import ConfigError


class _Pooling(Aggregator):
    """h_i = ReLU(W x_i), then one vector per bag.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E, features per tile after the first layer.
        dropout: share of the bag embedding dropped in training.
        instance_dropout: share of tiles left out in training, at least one kept per bag.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        *,
        hidden: int = 512,
        dropout: float = 0.25,
        instance_dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, n_classes, embedding_dim=hidden, instance_dropout=instance_dropout)
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)

    def _output(self, pooled: Tensor, attention: Tensor | None = None) -> Output:
        embedding = self.dropout(pooled)
        return Output(embedding=embedding, logits=self.classify(embedding), attention=attention)


class MeanPooling(_Pooling):
    """The mean of the tile features; its attention is 1 / N for every tile."""

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E), logits (B, C) or None, attention (sum N, 1)."""
        terms = self.tile_terms(batch)
        return self._output(segment_mean(terms.h, batch.sizes), terms.attention)

    def tile_terms(self, batch: Packed) -> TileTerms:
        """Return h (sum N, E) and attention (sum N, 1)."""
        h = self.embed(batch.x)
        shares = [torch.full((n, 1), 1 / n) for n in batch.sizes]
        return TileTerms(h, torch.cat(shares).to(h))


class MaxPooling(_Pooling):
    """The largest value of each feature over the tiles; it has no attention."""

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E) and logits (B, C) or None."""
        return self._output(segment_max(self.embed(batch.x), batch.sizes))


class LSEPooling(_Pooling):
    """A soft maximum of each feature: z = (1 / r) log(mean_i exp(r h_i)).

    Between the mean (r to 0) and the maximum (r to infinity). Other than in the paper it acts on
    features, not on class scores, so that it serves objectives on the embedding, too.

    Source: Pinheiro & Collobert 2015, arXiv 1411.6228, eq. 6.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E, features per tile after the first layer.
        r: sharpness, above 0.
        dropout: share of the bag embedding dropped in training.
        instance_dropout: share of tiles left out in training, at least one kept per bag.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        *,
        hidden: int = 512,
        r: float = 5.0,
        dropout: float = 0.25,
        instance_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            dim, n_classes, hidden=hidden, dropout=dropout, instance_dropout=instance_dropout
        )
        if not 0 < r < float("inf"):
            raise ConfigError(f"lse: r={r} is no sharpness — give a number above 0")
        self.r = r

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E) and logits (B, C) or None."""
        parts = self.embed(batch.x).split(batch.sizes)
        pooled = [(self.r * part).logsumexp(0) - math.log(len(part)) for part in parts]
        return self._output(torch.stack(pooled) / self.r)
