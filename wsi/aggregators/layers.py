"""Layers shared by aggregators: attention scores, and softmax and sums within packed bags.

Large bags are cut out as views and reduced one by one: matrix products per bag are as fast as the
machine allows. Of many small bags the calls would cost more than the sums, so these are laid into
one matrix (B, sum N) whose entries of other bags count nothing. The two ways differ by rounding,
and in the matrix a feature that is not a number breaks the bags beside its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_MANY = 1024  # tiles from which both halves of gated attention are one product
_SMALL = 1 << 17  # entries of that matrix; above, a view per bag is quicker


def _is_small(sizes: Sequence[int]) -> bool:
    return len(sizes) > 1 and len(sizes) * sum(sizes) <= _SMALL


def _places(sizes: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the bag of each tile and the tile's number, both (sum N,)."""
    counts = torch.tensor(sizes)
    owner = torch.arange(len(sizes)).repeat_interleave(counts)
    return owner.to(device), torch.arange(len(owner), device=device)


def segment_softmax(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the softmax of scores (sum N, H) within each bag and head."""
    if not _is_small(sizes):
        return torch.cat([part.softmax(0) for part in scores.split(list(sizes))])
    owner, tile = _places(sizes, scores.device)
    laid = scores.new_full((len(sizes), len(scores), scores.shape[1]), -torch.inf)
    return laid.index_put((owner, tile), scores).softmax(1)[owner, tile]


def segment_weighted_sum(h: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return (B, E): sum_i w_ih h_i^h per bag, E cut into H equal parts, one per head.

    Args:
        h: tile features (sum N, E).
        weights: (sum N, H), H a divisor of E.
        sizes: tiles per bag.
    """
    heads = weights.shape[1]
    if _is_small(sizes):
        owner, tile = _places(sizes, h.device)
        laid = weights.new_zeros((len(sizes), len(h), heads)).index_put((owner, tile), weights)
        return torch.einsum("bnh,nhe->bhe", laid, h.unflatten(1, (heads, -1))).flatten(1)
    cut = list(sizes)
    if heads == 1:  # the same as below, without what einsum costs beside a small bag
        parts = zip(h.split(cut), weights.split(cut), strict=True)
        return torch.cat([w.T @ tiles for tiles, w in parts])
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
        if self.gate is None:
            return self.score(self.content(h).tanh())
        content, gate = self._both(h, self.gate)
        return self.score(content.tanh() * gate.sigmoid())

    def _both(self, h: Tensor, gate: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return V h and U h (sum N, attention_dim), of many tiles by one product.

        Then h, the largest array there is, is read once; for few, joining the weights costs more.
        An exported model has one way for any number of tiles.
        """
        if torch.compiler.is_compiling() or len(h) < _MANY:
            return self.content(h), gate(h)
        weight = torch.cat([self.content.weight, gate.weight])
        bias = torch.cat([self.content.bias, gate.bias])
        both = nn.functional.linear(h, weight, bias)
        return both[:, : len(gate.weight)], both[:, len(gate.weight) :]


def segment_branches(h: Tensor, weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return (B, H, E): sum_i w_ih h_i per bag, every branch over all of E.

    Args:
        h: tile features (sum N, E).
        weights: (sum N, H), one column per branch.
        sizes: tiles per bag.
    """
    if _is_small(sizes):
        owner, tile = _places(sizes, h.device)
        shape = (len(sizes), len(h), weights.shape[1])
        laid = weights.new_zeros(shape).index_put((owner, tile), weights)
        return torch.einsum("bnh,ne->bhe", laid, h)
    parts = zip(h.split(list(sizes)), weights.split(list(sizes)), strict=True)
    return torch.stack([torch.einsum("nh,ne->he", w, tiles) for tiles, w in parts])


class BranchHead(nn.Module):
    """Logits of C embeddings, one per class: logit_c = w_c.z_c + b_c."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.each = nn.Linear(width, n_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, C) of the embeddings laid side by side (B, C E)."""
        branches = z.unflatten(-1, (self.each.out_features, -1))
        return torch.einsum("...ce,ce->...c", branches, self.each.weight) + self.each.bias

    def of_tiles(self, h: Tensor) -> Tensor:
        """Return (sum N, C): w_c.h_i + b_c, the logits of a bag that holds this tile alone."""
        return self.each(h)

    def dense(self) -> tuple[Tensor, Tensor]:
        """Return the same as one matrix: W (C, C E), zero outside its own branch, and b (C,)."""
        return torch.block_diag(*self.each.weight.unsqueeze(1)), self.each.bias
