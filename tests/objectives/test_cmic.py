"""Constrained conditional mutual information against a loop over pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from sklearn.metrics import log_loss

from wsi.objectives.cmic import CMIC

Y = np.array([0, 1, 2, 0, 1, 0, 0])


def looped(p, y, Q, weight, beta):
    concentration = np.mean([rel_entr(p[i], Q[c]).sum() for i, c in enumerate(y)])
    pairs = [
        -(p[u] * np.log(p[v])).sum() if y[u] != y[v] else 0.0
        for u in range(len(y))
        for v in range(len(y))
    ]
    return log_loss(y, p, labels=[0, 1, 2]) + weight * concentration - beta * np.mean(pairs)


def test_the_loss_is_that_of_the_loop_over_pairs(outputs):
    output, start, y = outputs(B=7), outputs(B=7, seed=1), torch.from_numpy(Y)
    objective = CMIC(3, 6, [4, 2, 2], weight=0.7, beta=0.4).double()
    objective.before_fit(iter([(start, y)]))
    p0 = softmax(start.logits.numpy(), axis=1)
    Q = np.stack([p0[c == Y].mean(0) for c in range(3)])
    expected = looped(softmax(output.logits.numpy(), axis=1), Y, Q, 0.7, 0.4)
    np.testing.assert_allclose(objective(output, y).item(), expected, rtol=1e-12)


def test_centroids_move_by_a_tenth_and_only_those_of_classes_present(outputs):
    objective = CMIC(3, 6, [4, 2, 2]).double()
    start, output = outputs(B=7), outputs(B=3, seed=1)
    objective.before_fit(iter([(start, torch.from_numpy(Y))]))
    before = objective.centroids.numpy().copy()
    objective.after_step(output, torch.tensor([1, 1, 1]))
    mean = softmax(output.logits.numpy(), axis=1).mean(0)
    after = objective.centroids.numpy()
    np.testing.assert_allclose(after[1], 0.9 * before[1] + 0.1 * mean, rtol=1e-12)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def test_in_a_plain_loop_a_centroid_starts_at_the_first_mean(outputs):
    """Without before_fit there is no concentration until a class has been seen."""
    output, y = outputs(B=2), torch.tensor([1, 1])
    objective = CMIC(3, 6, [4, 2, 2]).double()
    p = softmax(output.logits.numpy(), axis=1)
    np.testing.assert_allclose(
        objective(output, y).item(), log_loss(y, p, labels=[0, 1, 2]), rtol=1e-12
    )
    objective.after_step(output, y)
    np.testing.assert_allclose(objective.centroids[1], p.mean(0), rtol=1e-12)
    assert objective.seen.tolist() == [False, True, False]


@pytest.mark.parametrize("y", [[0, 0, 0], [0]])
def test_without_pairs_of_different_classes_the_separation_is_zero(outputs, y):
    output = outputs(B=len(y))
    objective = CMIC(3, 6, [4, 2, 2], weight=0.0, beta=5.0).eval()
    p = softmax(output.logits.numpy(), axis=1)
    loss = objective(output, torch.tensor(y)).item()
    np.testing.assert_allclose(loss, log_loss(y, p, labels=[0, 1, 2]), rtol=1e-12)
