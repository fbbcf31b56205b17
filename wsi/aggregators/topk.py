"""Top-k pooling: a bag is what its most telling tiles are.

Source: the k = 1 form is Campanella et al. 2019 (Nature Medicine 25) and the max of the standard
MIL assumption; k > 1 as in Courtiol et al. 2018, arXiv 1802.02212.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsi.aggregators.base import Aggregator, Output, Packed
from wsi.aggregators.layers import BranchHead, segment_branches
from wsi.errors import ConfigError


class TopK(Aggregator):
    """The mean of the k highest tile scores of each class.

    Every tile is scored, s_ic = w_c.h_i + b_c with h_i = ReLU(W x_i), and logit_c is the mean of
    the k largest s_ic of the bag, of all its tiles if it has fewer. A mean of scores is the score
    of a mean, so the embedding is the mean h of these tiles, for each class: (B, C E). Without a
    head there are no scores: each feature stands for itself, and the embedding (B, E) has the mean
    of its k largest values.

    Args:
        dim: features per tile, D.
        n_classes: C, or None for no head.
        hidden: E, features per tile after the first layer.
        k: tiles per class.
        dropout: share of the bag embedding dropped in training.
        instance_dropout: share of tiles left out in training, at least one kept per bag.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int | None,
        *,
        hidden: int = 512,
        k: int = 10,
        dropout: float = 0.25,
        instance_dropout: float = 0.0,
    ) -> None:
        width = hidden * (n_classes or 1)
        super().__init__(dim, None, embedding_dim=width, instance_dropout=instance_dropout)
        if k < 1:
            raise ConfigError(f"topk: k={k} tiles are none — give 1 or more")
        self.k = k
        self.embed = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.head = BranchHead(hidden, n_classes) if n_classes is not None else None

    def aggregate(self, batch: Packed) -> Output:
        """Return embedding (B, C E), logits (B, C), attention and evidence (sum N, C).

        Attention is 1 / k for the k tiles of a class and 0 for others. Without a head there is
        only an embedding (B, E).
        """
        h = self.embed(batch.x)
        if not isinstance(self.head, BranchHead):
            return Output(embedding=self.dropout(self._largest(h, batch.sizes)))
        scores = self.head.of_tiles(h)
        attention = self._shares(scores.detach(), batch.sizes)
        z = self.dropout(segment_branches(h, attention.to(h), batch.sizes).flatten(1))
        evidence = None if self.training else attention * scores
        return Output(z, self.classify(z), attention=attention, evidence=evidence)

    def _largest(self, h: Tensor, sizes: tuple[int, ...]) -> Tensor:
        parts = h.split(sizes)
        return torch.stack([part.topk(min(self.k, len(part)), 0).values.mean(0) for part in parts])

    def _shares(self, scores: Tensor, sizes: tuple[int, ...]) -> Tensor:
        shares = torch.zeros_like(scores)
        for part, share in zip(scores.split(sizes), shares.split(sizes), strict=True):
            k = min(self.k, len(part))
            share.scatter_(0, part.topk(k, 0).indices, 1 / k)
        return shares
