"""Square loss against the direct formula and least squares."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics import mean_squared_error

from wsi.errors import ConfigError
from wsi.objectives.square import Square

Y = np.arange(9) % 3


def test_by_default_it_is_the_mean_squared_error_to_the_label(outputs):
    output = outputs()
    expected = mean_squared_error(np.eye(3)[Y], output.logits.numpy())
    loss = Square(3, 6, [1, 1, 1])(output, torch.from_numpy(Y))
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)


def test_its_settings_weigh_and_move_the_label(outputs):
    output = outputs()
    losses = []
    for n, y in zip(output.logits.numpy(), Y, strict=True):
        others = sum(n[j] ** 2 for j in range(3) if j != y)
        losses.append((15 * (n[y] - 30) ** 2 + others) / 3)
    loss = Square(3, 6, [1, 1, 1], k=15, M=30)(output, torch.from_numpy(Y))
    np.testing.assert_allclose(loss.item(), np.mean(losses), rtol=1e-12)


def test_the_temperature_of_its_probabilities_is_fitted_on_validation():
    """Logits near 0 and 1 would otherwise give flat probabilities."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    n = torch.from_numpy(np.eye(3)[y] + 0.4 * rng.normal(size=(200, 3)))
    output = SimpleNamespace(embedding=torch.zeros(200, 6), logits=n)
    objective = Square(3, 6, [1, 1, 1])
    objective.after_fit(iter([]), iter([(output, torch.from_numpy(y))]))
    p = objective.probabilities(output).numpy()
    tau = objective.tau.item()
    np.testing.assert_allclose(p, softmax(n.numpy() / tau, axis=1), rtol=1e-9)
    target = np.full((200, 3), 1 / 203) + np.eye(3)[y] * 200 / 203  # Platt's
    nll = [
        -(target * log_softmax(n.numpy() / (tau * f), axis=1)).sum(1).mean()
        for f in (0.97, 1.0, 1.03)
    ]
    assert nll[1] < min(nll[0], nll[2])


def test_a_target_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="square: M=0 must be above 0"):
        Square(3, 6, [1, 1, 1], M=0)
