"""Softmax and sums within packed bags, laid small or bag by bag, against one bag at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from wsi.aggregators import layers
from wsi.aggregators.layers import segment_softmax, segment_weighted_sum

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=6)


def drawn(sizes, heads, width, dtype=torch.float64):
    g = torch.Generator().manual_seed(len(sizes) + 10 * heads + 100 * width)
    scores = 3 * torch.randn(sum(sizes), heads, generator=g, dtype=torch.float64)
    h = torch.randn(sum(sizes), heads * width, generator=g, dtype=torch.float64)
    return scores.to(dtype), h.to(dtype)


def by_hand(scores, h, sizes):
    """Return weights (sum N, H) and sums (B, E) with loops over bags and heads."""
    s, x, heads = scores.numpy(), h.numpy(), scores.shape[1]
    width, weights, sums, start = x.shape[1] // heads, [], [], 0
    for n in sizes:
        rows = slice(start, start + n)
        a = softmax(s[rows], axis=0)
        parts = [a[:, k] @ x[rows, k * width : (k + 1) * width] for k in range(heads)]
        weights.append(a)
        sums.append(np.concatenate(parts))
        start += n
    return np.concatenate(weights), np.stack(sums)


@pytest.mark.parametrize("small", [1 << 17, 0], ids=["laid", "per bag"])
@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, heads=st.integers(1, 3), width=st.integers(1, 4))
def test_each_bag_is_reduced_by_itself(small, sizes, heads, width):
    scores, h = drawn(sizes, heads, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_SMALL", small)
        weights = segment_softmax(scores, sizes)
        sums = segment_weighted_sum(h, weights, sizes)
    expected_weights, expected_sums = by_hand(scores, h, sizes)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-12)
    np.testing.assert_allclose(sums, expected_sums, atol=1e-12)


@pytest.mark.parametrize("small", [1 << 17, 0], ids=["laid", "per bag"])
@pytest.mark.parametrize("sizes", [[1, 3, 2], [1, 1, 1], [4]])
def test_gradients_are_those_of_finite_differences(monkeypatch, small, sizes):
    monkeypatch.setattr(layers, "_SMALL", small)
    scores, h = (tensor.requires_grad_() for tensor in drawn(sizes, 2, 2))

    def pooled(s, x):
        return segment_weighted_sum(x, segment_softmax(s, sizes), sizes)

    assert torch.autograd.gradcheck(pooled, (scores, h))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_near_and_of_the_same_type_either_way(monkeypatch, dtype, autocast):
    sizes = [1, 5, 3]
    scores, h = drawn(sizes, 2, 4, dtype)
    _, expected = by_hand(scores.double(), h.double(), sizes)
    types = []
    for small in (1 << 17, 0):
        monkeypatch.setattr(layers, "_SMALL", small)
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            sums = segment_weighted_sum(h, segment_softmax(scores, sizes), sizes)
        np.testing.assert_allclose(sums.double(), expected, atol=0.03)
        types.append(sums.dtype)
    assert types[0] == types[1]
