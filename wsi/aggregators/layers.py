"""Layers shared by aggregators: attention scores, and softmax and sums within packed bags.

Bags are cut out as views and reduced one by one: matrix products per bag are as fast as the
machine allows, and a bag's result never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def segment_softmax(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the softmax of scores (sum N, H) within each bag and head."""
    return torch.cat([part.softmax(0) for part in scores.split(list(sizes))])


def segment_weighted_sum(h: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return (B, E): sum_i w_ih h_i^h per bag, E cut into H equal parts, one per head.

    Args:
        h: tile features (sum N, E).
        weights: (sum N, H), H a divisor of E.
        sizes: tiles per bag.
    """
    heads = weights.shape[1]
    cut = list(sizes)
    sums = [
        torch.einsum("nh,nhe->he", w, tiles.unflatten(1, (heads, -1))).flatten()
        for tiles, w in zip(h.split(cut), weights.split(cut), strict=True)
    ]
    return torch.stack(sums)


def segment_mean(h: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the mean (B, E) of tiles (sum N, E) within each bag."""
    return torch.stack([part.mean(0) for part in h.split(list(sizes))])


def segment_max(h: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the maximum (B, E) of tiles (sum N, E) within each bag, per feature."""
    return torch.stack([part.amax(0) for part in h.split(list(sizes))])


class AttentionScores(nn.Module):
    """Unnormalised attention (sum N, H): w^T tanh(V h), or w^T (tanh(V h) * sigmoid(U h)).

    Source: Ilse et al. 2018 (arXiv 1802.04712), eq. 8 and, gated, eq. 9. We keep the biases of V
    and U, which the paper leaves out; a bias of w would cancel in the softmax.
    """

    def __init__(self, dim: int, attention_dim: int, heads: int, *, gated: bool) -> None:
        super().__init__()
        self.content = nn.Linear(dim, attention_dim)
        self.gate = nn.Linear(dim, attention_dim) if gated else None
        self.score = nn.Linear(attention_dim, heads, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Return scores (sum N, H) of tiles (sum N, dim)."""
        content = self.content(h).tanh()
        if self.gate is not None:
            content = content * self.gate(h).sigmoid()
        return self.score(content)
