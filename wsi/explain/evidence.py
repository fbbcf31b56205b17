"""Evidence of single tiles: what each adds to the logits of its bag, exactly.

For a weighted sum of tiles under a linear head, z^h = sum_i a_ih h_i^h and logit_c = w_c.z + b_c,
the logit is a sum over tiles: e_ic = sum_h a_ih (w_c^h.h_i^h + b_c / H). Nothing here is an
approximation; whether a model is of this form is asked elsewhere.

Arrays are NumPy, computed in float64: h (N, E), attention (N, H) with H a divisor of E, w (C, E),
b (C,).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Float64 = NDArray[np.float64]

MOST = 0.5
"""Attention above which a bag without the tile is computed anew: 1 - a would lose digits."""

_ROWS = 8192  # taken to float64 at once


def tile_evidence(h: Array, attention: Array, w: Array, b: Array) -> Float64:
    """Return e (N, C) in nats; its sum over tiles is the logit of the bag.

    One head of attention, several, or 1 / N for each tile, which is mean pooling.
    """
    a = attention.astype(np.float64)
    shared = a.mean(axis=1, keepdims=True) * b  # sum_h a_ih b_c / H
    return np.einsum("nh,nhc->nc", a, head_scores(h, w, a.shape[1])) + shared


def class_attention_evidence(h: Array, attention: Array, w: Array, b: Array) -> Float64:
    """Return e (N, C) = a_ic (w_c.h_i + b_c), where every class has its own attention (N, C)."""
    return attention.astype(np.float64) * tile_logits(h, w, b)


def tile_logits(h: Array, w: Array, b: Array) -> Float64:
    """Return (N, C): the logits of a bag that holds this tile alone."""
    return head_scores(h, w, 1)[:, 0] + b


def head_scores(h: Array, w: Array, heads: int) -> Float64:
    """Return s (N, H, C) = w_c^h.h_i^h, without bias."""
    parts = w.astype(np.float64).reshape(len(w), heads, -1)
    blocks = [
        np.einsum("nhe,che->nhc", block.reshape(len(block), heads, -1), parts, optimize=True)
        for block in _float64(h)
    ]
    return np.concatenate(blocks)


def _float64(h: Array) -> Iterator[Float64]:
    for start in range(0, len(h), _ROWS):
        yield h[start : start + _ROWS].astype(np.float64)


def logits_without(h: Array, attention: Array, w: Array, b: Array) -> Float64:
    """Return (N, C): the logits of the bag without tile i, exact, in O(N C).

    The others' attention is rescaled to sum to 1, as a softmax over them does. NaN where no other
    tile has any attention: of a bag of one tile nothing is left.
    """
    if len(h) == 1:
        return np.full((1, len(w)), np.nan)
    a = attention.astype(np.float64)
    scores = head_scores(h, w, a.shape[1])
    return b + _without(a, scores).sum(axis=1)


def embeddings_without(h: Array, attention: Array) -> Float64:
    """Return (N, E): the embedding of the bag without tile i, for scores that are not linear.

    Memory is that of h in float64. NaN as in `logits_without`.
    """
    if len(h) == 1:
        return np.full(h.shape, np.nan)
    a = attention.astype(np.float64)
    parts = h.astype(np.float64).reshape(len(h), a.shape[1], -1)
    return _without(a, parts).reshape(h.shape)


def _without(a: Float64, values: Float64) -> Float64:
    """Return (N, H, K): the mean of values (N, H, K) weighted by a (N, H), without row i."""
    terms = a[..., None] * values
    rest = a.sum(axis=0) - a
    with np.errstate(invalid="ignore", divide="ignore"):
        left = (terms.sum(axis=0) - terms) / rest[..., None]
        for row, head in np.argwhere(a > MOST):
            others = np.delete(a[:, head], row)
            summed = others @ np.delete(values[:, head], row, axis=0)
            left[row, head] = summed / others.sum()
    return left
