"""Attention between the tokens of packed bags, in memory that grows with N and never N x N.

Tokens of several bags lie end to end (sum N, E), a class token before its tiles where there is
one. Each bag is cut out as a view, so no mask is needed and no bag sees another.

torch's `scaled_dot_product_attention` takes a kernel that is linear in memory as long as it gets
neither a mask nor dropout, which is why attention has no dropout here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from wsi.aggregators.layers import segment_softmax, segment_weighted_sum
from wsi.errors import ConfigError

Kind = Literal["exact", "nystrom"]
_PINV_STEPS = 6


def check_heads(name: str, hidden: int, heads: int) -> None:
    """Raise ConfigError unless `heads` divides `hidden`."""
    if heads < 1 or hidden % heads:
        fit = [n for n in range(1, hidden + 1) if hidden % n == 0]
        near = sorted(sorted(fit, key=lambda n: abs(n - heads))[:2])
        raise ConfigError(
            f"{name}: heads={heads} does not divide hidden={hidden} — "
            f"take {' or '.join(map(str, near))} heads, or another hidden"
        )


def landmarks_of(name: str, attention: Kind, landmarks: int) -> int | None:
    """Return `landmarks`, or None where attention is exact; ConfigError for less than 1."""
    if attention == "exact":
        return None
    if landmarks < 1:
        raise ConfigError(f"{name}: landmarks={landmarks} must be 1 or more")
    return landmarks


def attend(
    q: Tensor, k: Tensor, v: Tensor, q_sizes: Sequence[int], k_sizes: Sequence[int], heads: int
) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v within each bag, (sum Nq, E), d = E / heads.

    Args:
        q: queries (sum Nq, E).
        k: keys (sum Nk, E).
        v: values (sum Nk, E).
        q_sizes: queries per bag.
        k_sizes: keys per bag.
        heads: H; each attends with its own E / H features.
    """
    cut = list(k_sizes)
    bags = zip(q.split(list(q_sizes)), k.split(cut), v.split(cut), strict=True)
    return torch.cat([_attend_one(*bag, heads) for bag in bags])


def pool_by_query(
    q: Tensor, k: Tensor, v: Tensor, sizes: Sequence[int], heads: int
) -> tuple[Tensor, Tensor]:
    """Return what one query per bag gathers (B, E), and its scores before softmax (sum N, H).

    Args:
        q: queries (B, E).
        k: keys (sum N, E).
        v: values (sum N, E).
        sizes: keys per bag.
        heads: H.
    """
    scale = (q.shape[1] // heads) ** -0.5
    scores = [
        torch.einsum("nhd,hd->nh", tiles.unflatten(1, (heads, -1)), query * scale)
        for tiles, query in zip(k.split(list(sizes)), q.unflatten(1, (heads, -1)), strict=True)
    ]
    packed = torch.cat(scores)
    return segment_weighted_sum(v, segment_softmax(packed, sizes), sizes), packed


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Which tokens each landmark of a Nystrom approximation is the mean of.

    Attributes:
        of: (sum N,) int64, the landmark of each token, counted from 0 in each bag.
        counts: landmarks per bag, none of them empty.
    """

    of: Tensor
    counts: tuple[int, ...]


def nystrom(
    q: Tensor, k: Tensor, v: Tensor, sizes: Sequence[int], marks: Landmarks, heads: int
) -> Tensor:
    """Return attention approximated through landmarks, (sum N, E), in time linear in N.

    softmax(q k~^T) pinv(softmax(q~ k~^T)) softmax(q~ k^T) v, where q~ and k~ are means over the
    tokens of each landmark. With one landmark per token this is softmax(q k^T) v, since
    A pinv(A) A = A; bags with no more tokens than landmarks are computed that way.

    Source: Xiong et al. 2021, *Nystromformer*, arXiv 2102.03902, eq. 13-14, with 6 steps for the
    pseudo-inverse. Ours starts the steps from norms of each head alone: a maximum over heads and
    bags, as is common, makes a result depend on what it is packed with.
    """
    cut = list(sizes)
    bags = zip(
        q.split(cut), k.split(cut), v.split(cut), marks.of.split(cut), marks.counts, strict=True
    )
    return torch.cat([_nystrom_one(*bag, heads) for bag in bags])


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of each bag.

    Args:
        width: E.
        heads: H, a divisor of E.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, sizes: Sequence[int], marks: Landmarks | None) -> Tensor:
        """Return (sum N, E): exact attention, or by landmarks where given."""
        q, (k, v) = self.query(tokens), self.key_value(tokens).chunk(2, dim=1)
        if marks is None:
            return self.out(attend(q, k, v, sizes, sizes, self.heads))
        return self.out(nystrom(q, k, v, sizes, marks, self.heads))

    def of_class_token(self, tokens: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the row of each bag's first token (B, E), and its attention to tiles (sum N, H).

        The row is that of `forward` without landmarks, at a cost of N rather than N x N. The
        attention leaves out what the class token gives itself, and sums to 1 over the tiles.
        """
        first = starts(sizes).to(tokens.device)
        k, v = self.key_value(tokens).chunk(2, dim=1)
        pooled, scores = pool_by_query(self.query(tokens[first]), k, v, sizes, self.heads)
        attention = segment_softmax(without_first(scores, sizes), [n - 1 for n in sizes])
        return self.out(pooled), attention


def starts(sizes: Sequence[int]) -> Tensor:
    """Return the row (B,) of the first token of each bag."""
    return torch.tensor([0, *sizes[:-1]]).cumsum(0)


def with_class_token(tiles: Tensor, token: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return tokens (sum N + B, E): `token` (1, E) before the tiles (sum N, E) of each bag."""
    parts = [part for bag in tiles.split(list(sizes)) for part in (token.to(bag.dtype), bag)]
    return torch.cat(parts)


def without_first(tokens: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the rows that are not the first of their bag."""
    return torch.cat([bag[1:] for bag in tokens.split(list(sizes))])


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(1, (heads, -1)).transpose(0, 1)[None]  # (1, H, N, d), a view


def _attend_one(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    mixed = scaled_dot_product_attention(_by_head(q, heads), _by_head(k, heads), _by_head(v, heads))
    return mixed[0].transpose(0, 1).flatten(1)


def _nystrom_one(q: Tensor, k: Tensor, v: Tensor, of: Tensor, count: int, heads: int) -> Tensor:
    if count >= len(q):
        return _attend_one(q, k, v, heads)
    q_marks, k_marks = _means(q, of, count), _means(k, of, count)
    gathered = _attend_one(q_marks, k, v, heads)
    # The steps of the pseudo-inverse do not converge in half precision.
    with torch.autocast(q.device.type, enabled=False):
        wide_q, wide_k, wide = (_by_head(_wide(x), heads) for x in (q_marks, k_marks, gathered))
        between = (wide_q @ wide_k.mT * (q.shape[1] // heads) ** -0.5).softmax(-1)
        solved = (_pseudo_inverse(between) @ wide)[0].transpose(0, 1).flatten(1)
    return _attend_one(q, k_marks, solved.to(k_marks.dtype), heads)


def _means(x: Tensor, of: Tensor, count: int) -> Tensor:
    wide = _wide(x)
    sums = wide.new_zeros(count, x.shape[1]).index_add(0, of, wide)
    return (sums / torch.bincount(of, minlength=count)[:, None]).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _pseudo_inverse(a: Tensor) -> Tensor:
    """Return nearly the pseudo-inverse of a (..., m, m), rows of which sum to 1."""
    largest_column = a.sum(-2).amax(-1)[..., None, None]
    z = a.mT / largest_column  # times the largest row sum, which is 1
    eye = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
    for _ in range(_PINV_STEPS):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z
