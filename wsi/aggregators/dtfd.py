"""DTFD: a bag cut into pseudo-bags, each distilled into features for a second tier.

Source: Zhang et al. 2022, *DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning
for Histopathology Whole Slide Image Classification*, arXiv 2203.12081.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wsi.aggregators.base import Aggregator, Output, Packed
from wsi.aggregators.landmarks import content_ranks
from wsi.aggregators.layers import AttentionScores, segment_softmax, segment_weighted_sum
from wsi.errors import ConfigError


class DTFD(Aggregator):
    """Gated attention over tiles within pseudo-bags, then over what is distilled of those.

    h_i = ReLU(W x_i); per pseudo-bag m: a = softmax_i(score1(h_i)), z_m = sum_i a_i h_i; distilled
    features d_j of all m; b = softmax_j(score2(d_j)), z = sum_j b_j d_j. The auxiliary loss is the
    cross-entropy of tier 1's classifier on each z_m with the label of the bag, where labels are
    given; without a head, as with objectives on the embedding, there is no such classifier.

    `distill=afs` keeps z_m. `maxmin` keeps, per class, the tile of m to which the classifier of
    tier 1 gives the highest probability (class activation, eq. 5-7: softmax_c(a_i w_c . h_i)); of
    two classes these are the paper's tiles of the highest and lowest probability.

    In training tiles are dealt to pseudo-bags at random, anew each time. In evaluation they are
    dealt in turn by their rank along a fixed direction of feature space, so every pseudo-bag is a
    sample of the whole bag and the order of tiles does not matter. A bag of fewer tiles than
    pseudo-bags has one for each tile.

    Where we differ: the paper trains the tiers by separate optimisers and losses; here both
    losses are minimised together, and tier 1 learns from tier 2 too.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E.
        attention_dim: width of both attention networks.
        pseudo_bags: per bag.
        distill: `afs` or `maxmin`.
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
        pseudo_bags: int = 5,
        distill: Literal["afs", "maxmin"] = "afs",
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
        if pseudo_bags < 1:
            raise ConfigError(f"dtfd: pseudo_bags={pseudo_bags} must be 1 or more")
        if distill == "maxmin" and n_classes is None:
            raise ConfigError(
                "dtfd: distill=maxmin picks tiles by the classifier of tier 1, and with an "
                "objective on the embedding there is none — set aggregator.distill=afs"
            )
        self.pseudo_bags, self.distill = pseudo_bags, distill
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.tier1 = AttentionScores(hidden, attention_dim, 1, gated=True)
        self.tier1_head = nn.Linear(hidden, n_classes) if n_classes is not None else None
        self.tier2 = AttentionScores(hidden, attention_dim, 1, gated=True)
        self.dropout = nn.Dropout(dropout)

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, E), logits (B, C) or None, attention (sum N, 1), aux_loss.

        A tile's attention is its share of the bag embedding over both tiers; with `maxmin` only
        distilled tiles have any.
        """
        dealt = self._dealt(batch)
        h = self.embed(batch.x)[dealt.order]
        a = segment_softmax(self.tier1(h), dealt.sizes)
        z = segment_weighted_sum(h, a, dealt.sizes)
        picked = None if self.distill == "afs" else self._picked(h, a, dealt.sizes)
        d = z if picked is None else h[picked]
        per_bag = [n * (len(d) // len(z)) for n in dealt.counts]
        b = segment_softmax(self.tier2(d), per_bag)
        embedding = self.dropout(segment_weighted_sum(d, b, per_bag))
        shares = _shares(a, b, picked, dealt.sizes)
        attention = torch.zeros_like(shares).index_copy(0, dealt.order, shares)
        aux = self._tier1_loss(z, dealt.counts, batch.y) if self.training else None
        return Output(embedding, self.classify(embedding), attention, aux_loss=aux)

    def _tier1_loss(self, z: Tensor, counts: Sequence[int], y: Tensor | None) -> Tensor | None:
        if self.tier1_head is None or y is None:
            return None
        of_bag = y.repeat_interleave(torch.tensor(counts).to(y.device))
        return cross_entropy(self.tier1_head(z), of_bag)

    def _dealt(self, batch: Packed) -> _Dealt:
        device = batch.x.device
        if self.training:  # torch's generator, as dropout
            ranks = [torch.randperm(n).to(device) for n in batch.sizes]
        else:
            ranks = content_ranks(batch)
        order, sizes, counts, start = [], [], [], 0
        for rank, n in zip(ranks, batch.sizes, strict=True):
            count = min(self.pseudo_bags, n)
            order.append((rank % count).argsort(stable=True) + start)
            sizes += [n // count + (m < n % count) for m in range(count)]
            counts.append(count)
            start += n
        return _Dealt(torch.cat(order), tuple(sizes), tuple(counts))

    def _picked(self, h: Tensor, a: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the rows (M C,) of the tiles that `maxmin` keeps, C for each pseudo-bag."""
        assert self.tier1_head is not None
        with torch.no_grad():  # which tile it is has no slope
            p = (a * (h @ self.tier1_head.weight.T)).softmax(1)
            best, start = [], 0
            for part in p.split(list(sizes)):
                best.append(part.argmax(0) + start)
                start += len(part)
        return torch.cat(best)


@dataclass(frozen=True, eq=False)
class _Dealt:
    """Tiles in the order of their pseudo-bags.

    Attributes:
        order: (sum N,) rows of the batch.
        sizes: tiles of each pseudo-bag of all bags.
        counts: pseudo-bags of each bag.
    """

    order: Tensor
    sizes: tuple[int, ...]
    counts: tuple[int, ...]


def _shares(a: Tensor, b: Tensor, picked: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """Return each tile's weight (sum N, 1) in its bag's embedding, in the order of a."""
    if picked is None:
        return a * b.repeat_interleave(torch.tensor(sizes).to(b.device), 0)
    return torch.zeros_like(a).index_add(0, picked, b.to(a.dtype))
