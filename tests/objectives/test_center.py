"""Center loss against the direct formula and its rule for the centres."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss

from wsi.errors import ConfigError
from wsi.objectives.center import Center

Y = np.array([0, 1, 0, 0, 1, 0, 0])  # class 2 is absent


def moved(centres, z, y, alpha):
    after = centres.copy()
    for c in range(len(centres)):
        own = z[y == c]
        after[c] -= alpha * (centres[c] - own).sum(0) / (1 + len(own))
    return after


def test_loss_and_centres_follow_the_formulas_over_steps(outputs):
    objective = Center(3, 6, [4, 2, 2], weight=0.2, alpha=0.3).double()
    centres = np.zeros((3, 6))
    for seed in range(3):
        output = outputs(B=7, seed=seed)
        z, p = output.embedding.numpy(), softmax(output.logits.numpy(), axis=1)
        expected = log_loss(Y, p, labels=[0, 1, 2])
        expected += 0.1 * np.mean([np.sum((z[i] - centres[c]) ** 2) for i, c in enumerate(Y)])
        loss = objective(output, torch.from_numpy(Y)).item()
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        objective.after_step(output, torch.from_numpy(Y))
        centres = moved(centres, z, Y, 0.3)
        np.testing.assert_allclose(objective.centres, centres, rtol=1e-12)
    assert not centres[2].any()


def test_centres_are_no_parameters_but_are_saved():
    objective = Center(3, 6, [4, 2, 2])
    assert not list(objective.parameters())
    assert "centres" in objective.state_dict()


def test_a_rate_above_one_is_refused():
    with pytest.raises(ConfigError, match="center: alpha=2 must be within 0 and 1"):
        Center(3, 6, [4, 2, 2], alpha=2)
