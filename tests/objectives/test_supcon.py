"""Supervised contrastive loss against a loop over anchors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from wsi.errors import ConfigError
from wsi.objectives.supcon import SupCon

Y = np.array([0, 1, 2, 0, 1, 0, 0])  # bag 2 is alone in its class


def projected(objective, x):
    first, _, last = objective.projection
    W1, b1, W2, b2 = (p.detach().numpy() for p in (*first.parameters(), *last.parameters()))
    z = np.maximum(x @ W1.T + b1, 0) @ W2.T + b2
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def looped(z, y, T):
    losses = []
    for i in range(len(y)):
        others = [a for a in range(len(y)) if a != i]
        positives = [p for p in others if y[p] == y[i]]
        if positives:
            rest = logsumexp([z[i] @ z[a] / T for a in others])
            losses.append(-np.mean([z[i] @ z[p] / T - rest for p in positives]))
    return np.mean(losses)


def objective(**settings):
    torch.manual_seed(0)
    return SupCon(3, 6, [4, 2, 2], **settings).double()


@pytest.mark.parametrize("T", [0.07, 0.5])
def test_the_loss_is_that_of_the_loop_over_anchors(outputs, T):
    supcon, output = objective(temperature=T), outputs(B=7)
    expected = looped(projected(supcon, output.embedding.numpy()), Y, T)
    loss = supcon(output, torch.from_numpy(Y)).item()
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


def test_two_views_count_as_bags_of_one_class(outputs):
    """Without dropout both views are the same, and every bag has a positive."""
    supcon, output = objective(views=2, dropout=0.0), outputs(B=7)
    z = projected(supcon, output.embedding.numpy())
    expected = looped(np.concatenate([z, z]), np.concatenate([Y, Y]), 0.1)
    loss = supcon(output, torch.from_numpy(Y)).item()
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


def test_dropout_makes_the_views_differ_in_training_only(outputs):
    supcon, output, y = objective(views=2, dropout=0.5), outputs(B=7), torch.from_numpy(Y)
    assert supcon(output, y) != supcon(output, y)
    supcon.eval()
    assert supcon(output, y) == supcon(output, y)


def test_the_own_rule_takes_the_nearest_running_mean_direction(outputs):
    supcon, output = objective(), outputs(B=7)
    assert torch.equal(supcon.own_scores(output), torch.zeros(7, 3))  # nothing was seen
    directions = np.zeros((3, 128))
    for seed in (1, 2):
        seen = outputs(B=7, seed=seed)
        supcon.after_step(seen, torch.from_numpy(Y))
        z = projected(supcon, seen.embedding.numpy())
        for c in range(3):
            directions[c] = 0.9 * directions[c] + 0.1 * z[c == Y].mean(0)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = projected(supcon, output.embedding.numpy()) @ directions.T / 0.1
    np.testing.assert_allclose(supcon.own_scores(output).detach(), expected, rtol=1e-9)


def test_class_means_of_embeddings_decide_by_default():
    assert objective().predict == "class_mean"


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="supcon: temperature=0 must be above 0"):
        objective(temperature=0)
    with pytest.raises(ConfigError, match=r"supcon: dropout=1 must be within 0 and 0\.9"):
        objective(dropout=1)
