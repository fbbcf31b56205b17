"""Contrasts between classes: what they are invariant to, and what they sum to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from wsi.explain.evidence import tile_evidence, tile_logits
from wsi.explain.infocam import contrast, pmi_evidence, rival_weights, tile_pmi

N, E, C = 8, 6, 4
P = np.array([0.5, 0.3, 0.05, 0.15])
PRIOR = np.array([0.6, 0.2, 0.1, 0.1])


def draw(seed=0):
    rng = np.random.default_rng(seed)
    a = rng.dirichlet(np.ones(N))[:, None]
    return rng.normal(size=(N, E)), a, rng.normal(size=(C, E)), rng.normal(size=C)


def pair(e, c, k):
    return contrast(e, c, rival_weights(P, c, k))


def test_infocam_is_held_against_the_mean_of_the_others():
    e = tile_evidence(*draw())
    got = contrast(e, 1, rival_weights(P, 1, "others"))
    np.testing.assert_allclose(got, e[:, 1] - e[:, [0, 2, 3]].mean(axis=1))


def test_infocam_plus_is_held_against_the_least_likely_class():
    e = tile_evidence(*draw())
    np.testing.assert_array_equal(contrast(e, 0, rival_weights(P, 0, "least")), e[:, 0] - e[:, 2])
    np.testing.assert_array_equal(contrast(e, 2, rival_weights(P, 2, "least")), e[:, 2] - e[:, 3])


def test_the_runner_up_is_the_likeliest_other_class():
    e = tile_evidence(*draw())
    for target, other in ((0, 1), (1, 0), (3, 0)):
        weights = rival_weights(P, target, "runner-up")
        np.testing.assert_array_equal(contrast(e, target, weights), e[:, target] - e[:, other])


def test_a_class_against_itself_is_an_error():
    with pytest.raises(ValueError, match="itself"):
        rival_weights(P, 1, 1)


def test_contrasts_are_antisymmetric_and_transitive():
    e = pmi_evidence(tile_evidence(*draw()), draw()[1][:, 0], np.log(PRIOR))
    np.testing.assert_allclose(pair(e, 0, 2), -pair(e, 2, 0))
    np.testing.assert_allclose(pair(e, 0, 1) + pair(e, 1, 3), pair(e, 0, 3), atol=1e-12)


@pytest.mark.parametrize("against", ["others", "least", "runner-up", 3])
def test_a_shift_of_all_logits_leaves_contrasts_and_not_evidence_unchanged(against):
    h, a, w, b = draw()
    direction = np.random.default_rng(9).normal(size=E)
    before, after = tile_evidence(h, a, w, b), tile_evidence(h, a, w + direction, b + 7.0)
    weights = rival_weights(P, 1, against)
    np.testing.assert_allclose(contrast(after, 1, weights), contrast(before, 1, weights))
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize(("c", "k"), [(0, 1), (2, 3), (3, 0)])
def test_a_cross_entropy_head_sums_to_the_difference_of_pmi(c, k):
    h, a, w, b = draw()
    logits = w @ (a[:, 0] @ h) + b
    pmi = log_softmax(logits) - np.log(PRIOR)
    m = pmi_evidence(tile_evidence(h, a, w, b), a[:, 0], np.log(PRIOR))
    assert pair(m, c, k).sum() == pytest.approx(pmi[c] - pmi[k], abs=1e-12)
    e = tile_evidence(h, a, w, b)
    by_hand = e[:, c] - e[:, k] - a[:, 0] * np.log(PRIOR[c] / PRIOR[k])
    np.testing.assert_allclose(pair(m, c, k), by_hand, atol=1e-12)


@pytest.mark.parametrize(("c", "k"), [(0, 1), (2, 3), (3, 0)])
def test_a_pc_softmax_head_sums_to_the_difference_of_pmi_as_it_is(c, k):
    h, a, w, b = draw()
    logits = w @ (a[:, 0] @ h) + b
    pmi = logits - np.log(PRIOR @ np.exp(logits))  # log p_c / pi_c of the rule n + log pi
    e = tile_evidence(h, a, w, b)
    m = pmi_evidence(e, a[:, 0], np.log(PRIOR), offset=np.log(PRIOR))
    np.testing.assert_allclose(m, e)
    assert pair(m, c, k).sum() == pytest.approx(pmi[c] - pmi[k], abs=1e-12)


def test_the_pmi_of_a_tile_is_that_of_a_bag_of_it_and_bounded_by_the_prior():
    h, _, w, b = draw()
    got = tile_pmi(tile_logits(50 * h, w, b), np.log(PRIOR))
    np.testing.assert_allclose(got, log_softmax(50 * h @ w.T + b, axis=1) - np.log(PRIOR))
    assert (got <= -np.log(PRIOR) + 1e-12).all()
    assert got.max() == pytest.approx(-np.log(PRIOR[got.max(axis=0).argmax()]), abs=1e-6)
