"""Tile evidence: every invariant of a sum over tiles, against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.explain.evidence import (
    class_attention_evidence,
    embeddings_without,
    logits_without,
    tile_evidence,
    tile_logits,
)

N, E, C = 9, 12, 4


def softmax(scores):
    e = np.exp(scores - scores.max(axis=0))
    return e / e.sum(axis=0)


def draw(heads=1, n=N, seed=0, sharp=1.0):
    """Return h, attention, w, b and the attention scores."""
    rng = np.random.default_rng(seed)
    scores = sharp * rng.normal(size=(n, heads))
    return (
        rng.normal(size=(n, E)),
        softmax(scores),
        rng.normal(size=(C, E)),
        rng.normal(size=C),
        scores,
    )


def pooled_logits(h, attention, w, b):
    """Return logits (C,) by pooling first: z^h = sum_i a_ih h_i^h, then w.z + b."""
    heads = attention.shape[1]
    width = h.shape[1] // heads
    z = np.concatenate(
        [
            sum(attention[i, k] * h[i, k * width : (k + 1) * width] for i in range(len(h)))
            for k in range(heads)
        ]
    )
    return np.array([w[c] @ z + b[c] for c in range(len(w))])


heads_ = pytest.mark.parametrize("heads", [1, 2, 3])


@heads_
def test_tiles_sum_to_the_logit_of_the_bag(heads):
    h, a, w, b, _ = draw(heads)
    np.testing.assert_allclose(
        tile_evidence(h, a, w, b).sum(axis=0), pooled_logits(h, a, w, b), atol=1e-12
    )


@heads_
def test_each_tile_gets_the_terms_of_the_formula(heads):
    h, a, w, b, _ = draw(heads)
    width = E // heads
    expected = np.zeros((N, C))
    for i in range(N):
        for c in range(C):
            for k in range(heads):
                part = slice(k * width, (k + 1) * width)
                expected[i, c] += a[i, k] * (w[c, part] @ h[i, part] + b[c] / heads)
    np.testing.assert_allclose(tile_evidence(h, a, w, b), expected, atol=1e-12)


def test_mean_pooling_is_attention_of_one_over_n():
    h, _, w, b, _ = draw()
    e = tile_evidence(h, np.full((N, 1), 1 / N), w, b)
    np.testing.assert_allclose(e.sum(axis=0), w @ h.mean(axis=0) + b, atol=1e-12)


def test_class_specific_attention_sums_to_logits_pooled_per_class():
    rng = np.random.default_rng(3)
    h, a = rng.normal(size=(N, E)), softmax(rng.normal(size=(N, C)))
    w, b = rng.normal(size=(C, E)), rng.normal(size=C)
    pooled = [w[c] @ np.average(h, axis=0, weights=a[:, c]) + b[c] for c in range(C)]
    e = class_attention_evidence(h, a, w, b)
    np.testing.assert_allclose(e.sum(axis=0), pooled, atol=1e-12)
    for i in range(N):
        for c in range(C):
            assert e[i, c] == pytest.approx(a[i, c] * (w[c] @ h[i] + b[c]), abs=1e-12)


@heads_
def test_a_permutation_moves_the_map_along(heads):
    h, a, w, b, _ = draw(heads)
    order = np.random.default_rng(1).permutation(N)
    for of in (tile_evidence, logits_without):
        np.testing.assert_allclose(
            of(h[order], a[order], w, b), of(h, a, w, b)[order], rtol=1e-10, atol=1e-12
        )


@heads_
def test_duplicates_get_equal_shares(heads):
    h, _, w, b, scores = draw(heads)
    h, scores = np.concatenate([h, h[:1]]), np.concatenate([scores, scores[:1]])
    e = tile_evidence(h, softmax(scores), w, b)
    np.testing.assert_allclose(e[0], e[-1], rtol=1e-12)


@heads_
def test_a_tile_of_no_attention_changes_nothing(heads):
    h, a, w, b, _ = draw(heads)
    more_h = np.concatenate([h, np.full((1, E), 1e3)])
    more_a = np.concatenate([a, np.zeros((1, heads))])
    e = tile_evidence(more_h, more_a, w, b)
    np.testing.assert_allclose(e[:-1], tile_evidence(h, a, w, b), atol=1e-12)
    np.testing.assert_array_equal(e[-1], 0)
    without = logits_without(more_h, more_a, w, b)
    np.testing.assert_allclose(without[-1], pooled_logits(h, a, w, b), atol=1e-9)
    np.testing.assert_allclose(without[:-1], logits_without(h, a, w, b), atol=1e-9)


@heads_
def test_a_tile_alone_has_the_logits_of_a_bag_of_it(heads):
    h, _, w, b, _ = draw(heads)
    for i, logits in enumerate(tile_logits(h, w, b)):
        np.testing.assert_allclose(
            logits, pooled_logits(h[i : i + 1], np.ones((1, heads)), w, b), atol=1e-12
        )


# -- leave one out ---------------------------------------------------------------------------


def recomputed(h, scores, w, b):
    """Return (N, C) by taking each tile out and pooling the rest anew."""
    rows = [np.arange(len(h)) != i for i in range(len(h))]
    return np.stack([pooled_logits(h[keep], softmax(scores[keep]), w, b) for keep in rows])


@heads_
@pytest.mark.parametrize("sharp", [0.0, 1.0, 4.0, 20.0])
def test_leaving_a_tile_out_equals_computing_the_rest_anew(heads, sharp):
    h, a, w, b, scores = draw(heads, sharp=sharp)
    expected = recomputed(h, scores, w, b)
    np.testing.assert_allclose(logits_without(h, a, w, b), expected, atol=1e-9)
    z = embeddings_without(h, a)
    np.testing.assert_allclose(z @ w.T + b, expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10_000), st.floats(0, 30), st.sampled_from([1, 2, 4]))
def test_leave_one_out_is_exact_for_any_bag(n, seed, sharp, heads):
    h, a, w, b, scores = draw(heads, n, seed, sharp)
    np.testing.assert_allclose(
        logits_without(h, a, w, b), recomputed(h, scores, w, b), atol=1e-8, rtol=1e-8
    )


def test_a_tile_with_nearly_all_attention_is_left_out_without_losing_digits():
    h, _, w, b, scores = draw()
    scores[2] = scores.max() + 28  # 1 - a is 1e-12: a difference would keep 4 digits
    a = softmax(scores)
    assert 1 - a[2, 0] < 1e-11
    without = logits_without(h, a, w, b)
    np.testing.assert_allclose(without[2], recomputed(h, scores, w, b)[2], rtol=1e-10)


def test_a_bag_of_one_tile_has_all_the_evidence_and_nothing_without_it():
    h, a, w, b, _ = draw(n=1)
    np.testing.assert_allclose(tile_evidence(h, a, w, b)[0], w @ h[0] + b, atol=1e-12)
    assert np.isnan(logits_without(h, a, w, b)).all()
    assert np.isnan(embeddings_without(h, a)).all()


def test_where_no_other_tile_has_attention_nothing_is_left():
    h, _, w, b, _ = draw(n=3)
    a = np.array([[0.0], [1.0], [0.0]])
    without = logits_without(h, a, w, b)
    assert np.isnan(without[1]).all()
    np.testing.assert_allclose(without[[0, 2]], np.stack([w @ h[1] + b] * 2), atol=1e-12)


def test_large_bags_are_worked_through_in_blocks_without_a_seam():
    h, a, w, b, _ = draw(n=20_001, seed=5)
    np.testing.assert_allclose(
        tile_evidence(h.astype(np.float32), a, w, b),
        a * (h.astype(np.float32).astype(np.float64) @ w.T + b),
        atol=1e-12,
    )
