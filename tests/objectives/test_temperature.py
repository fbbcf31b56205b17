"""The fitted temperature against a grid and scikit-learn's log loss."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.metrics import log_loss

from wsi.objectives.temperature import fit_temperature, mean_nll

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(60, 4))
Y = np.array([RNG.choice(4, p=softmax(row * 0.7)) for row in SCORES])


def loss(t):
    return log_loss(Y, softmax(SCORES / t, axis=1), labels=range(4))


def test_mean_nll_is_scikit_learns_log_loss():
    np.testing.assert_allclose(mean_nll(SCORES, Y), loss(1.0), rtol=1e-9)


def test_no_temperature_of_a_grid_is_better():
    t, nll = fit_temperature(SCORES, Y, low=0.05, high=20)
    np.testing.assert_allclose(nll, loss(t), rtol=1e-9)
    assert nll <= min(loss(u) for u in np.geomspace(0.05, 20, 500)) + 1e-9
    assert 0.06 < t < 19


def test_rightly_ranked_scores_stop_at_the_lower_bound():
    t, _ = fit_temperature(10 * np.eye(4), np.arange(4), low=0.5, high=20)
    np.testing.assert_allclose(t, 0.5, rtol=1e-3)


def test_smoothed_targets_are_laplaces_rule():
    n, C = SCORES.shape
    targets = np.full((n, C), 1 / (n + C))
    targets[np.arange(n), Y] = (n + 1) / (n + C)

    def expected(t):
        return -(targets * np.log(softmax(SCORES / t, axis=1))).sum(axis=1).mean()

    t, nll = fit_temperature(SCORES, Y, low=0.05, high=20, smoothed=True)
    np.testing.assert_allclose(nll, expected(t), rtol=1e-9)
    assert nll <= min(expected(u) for u in np.geomspace(0.05, 20, 500)) + 1e-9


def test_a_few_rightly_ranked_bags_do_not_buy_certainty():
    t, _ = fit_temperature(10 * np.eye(4), np.arange(4), low=1e-3, high=1e3, smoothed=True)
    # At the optimum the label's probability is the (n + 1) / (n + C) that is expected of it.
    np.testing.assert_allclose(softmax(10 * np.eye(4) / t, axis=1).diagonal(), 5 / 8, rtol=1e-4)
