"""DSMIL: the highest-scoring tile, and how much every other tile is like it.

Source: Li, Li, Eliceiri 2021, *Dual-stream multiple instance learning network*, arXiv 2011.08939,
eq. 4-8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wsi.aggregators.base import Aggregator, Output, Packed, needed_classes
from wsi.aggregators.layers import segment_branches, segment_softmax
from wsi.errors import ConfigError


class DSMIL(Aggregator):
    """Two streams over tiles h_i = ReLU(W x_i), whose logits are averaged.

    The first scores tiles, s_ic, and takes the highest of each class, that of its critical tile.
    The second weighs tiles by how near their query is to that of the critical tile,
    a_ic = softmax_i(q_i.q_crit(c) / sqrt(Q)), and scores the embedding
    (z_1, ..., z_C), z_c = sum_i a_ic h_i, with one linear layer over all of it. So a head is
    needed: without classes there is no critical tile.

    The objective sees the average. The paper puts its loss on either stream, and `stream_weight`
    adds that: the mean of both streams' cross-entropy, under the class frequencies of training
    whatever the objective assumes. Queries have two layers, as in the authors' programme; the
    paper's have one.

    Args:
        dim: features per tile, D.
        n_classes: C.
        hidden: E, features per tile after the first layer; the bag embedding has C E.
        query_dim: Q, width of the queries.
        nonlinear: queries of two layers (ReLU, tanh) rather than one linear.
        stream_weight: weight of the loss on the single streams, where labels are given.
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
        query_dim: int = 128,
        nonlinear: bool = True,
        stream_weight: float = 1.0,
        dropout: float = 0.25,
        instance_dropout: float = 0.0,
        attention_entropy: float = 0.0,
    ) -> None:
        classes = needed_classes("dsmil", n_classes, "abmil")
        super().__init__(
            dim,
            None,  # half of the logits is not in the embedding
            embedding_dim=classes * hidden,
            instance_dropout=instance_dropout,
            attention_entropy=attention_entropy,
        )
        if not 0 <= stream_weight < float("inf"):
            raise ConfigError(f"dsmil: stream_weight={stream_weight} is no weight — give 0 or more")
        self.stream_weight = stream_weight
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.instance = nn.Linear(hidden, classes)
        self.query = nn.Sequential(nn.Linear(hidden, query_dim))
        if nonlinear:
            self.query.extend([nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh()])
        self.bag = nn.Linear(classes * hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, C E), logits (B, C), attention (sum N, C).

        In evaluation also evidence (sum N, C), which sums to the logits, the choice of the
        critical tiles taken as given; in training with labels the loss on the streams.
        """
        h = self.embed(batch.x)
        scores = self.instance(h)
        critical = self._critical(scores, batch.sizes)
        highest = scores.gather(0, critical)
        attention = segment_softmax(self._likeness(self.query(h), critical, batch), batch.sizes)
        z = self.dropout(segment_branches(h, attention, batch.sizes).flatten(1))
        with torch.autocast(z.device.type, enabled=False):  # as `classify`: losses take differences
            bag = self.bag(z.to(self.bag.weight.dtype))
            highest = highest.to(bag.dtype)
        return Output(
            z,
            (highest + bag) / 2,
            attention=attention,
            evidence=None if self.training else self._evidence(h, attention, critical, highest),
            aux_loss=self._stream_loss(highest, bag, batch.y),
        )

    def _critical(self, scores: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return rows (B, C) of the highest score per bag and class."""
        rows, start = [], 0
        for part in scores.detach().split(sizes):
            rows.append(part.argmax(0) + start)
            start += len(part)
        return torch.stack(rows)

    def _likeness(self, q: Tensor, critical: Tensor, batch: Packed) -> Tensor:
        """Return q_i.q_crit(c) / sqrt(Q) (sum N, C)."""
        parts = zip(q.split(batch.sizes), q[critical], strict=True)
        return torch.cat([part @ crit.T for part, crit in parts]) / math.sqrt(q.shape[1])

    def _stream_loss(self, highest: Tensor, bag: Tensor, y: Tensor | None) -> Tensor | None:
        if not self.training or y is None or self.stream_weight == 0:
            return None
        return self.stream_weight * (cross_entropy(highest, y) + cross_entropy(bag, y)) / 2

    def _evidence(self, h: Tensor, a: Tensor, critical: Tensor, highest: Tensor) -> Tensor:
        """Return half of sum_c' a_ic' W_cc'.h_i + mean_c'(a_ic') b_c, and of s where critical."""
        C = a.shape[1]
        blocks = self.bag.weight.unflatten(1, (C, -1))  # (C, C', E)
        second = a.mean(1, keepdim=True) * self.bag.bias
        for k in range(C):
            second = second + a[:, k, None] * (h @ blocks[:, k].T)
        return second.scatter_add(0, critical, highest.to(second)) / 2
