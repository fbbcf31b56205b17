"""Cosine softmax to fixed prototypes against a direct formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.metrics.pairwise import cosine_similarity

from wsi.errors import ConfigError
from wsi.objectives.cosine_pc import CosinePC

COUNTS = [40, 10, 25]


def cosines(objective, output):
    W, b = (p.detach().numpy() for p in objective.head.projection.parameters())
    f = output.embedding.numpy() @ W.T + b
    return cosine_similarity(f, objective.head.prototypes.numpy())


def test_loss_and_probabilities_are_those_of_the_formula(outputs):
    torch.manual_seed(0)
    objective, output, y = CosinePC(3, 6, COUNTS).double(), outputs(), np.arange(9) % 3
    n = cosines(objective, output) / 0.067
    log_p = log_softmax(n + np.log(np.array(COUNTS) / 75), axis=1)
    loss = objective(output, torch.from_numpy(y)).item()
    np.testing.assert_allclose(loss, -log_p[np.arange(9), y].mean(), rtol=1e-9)
    np.testing.assert_allclose(
        objective.probabilities(output).detach(), softmax(n, axis=1), rtol=1e-9
    )


def test_prototypes_are_a_zero_mean_simplex_and_do_not_train():
    objective = CosinePC(4, 6, [3, 3, 3, 3])
    theta = objective.head.prototypes.numpy()
    assert theta.shape == (4, 32)
    np.testing.assert_allclose(theta @ theta.T, (4 * np.eye(4) - 1) / 3, atol=1e-6)
    np.testing.assert_allclose(theta.mean(1), 0, atol=1e-7)
    assert {name for name, _ in objective.named_parameters()} == {
        "head.projection.weight",
        "head.projection.bias",
    }


def test_autocast_changes_nothing(outputs):
    torch.manual_seed(0)
    objective, y = CosinePC(3, 6, COUNTS), torch.arange(9) % 3
    output = outputs(dtype=torch.float32)
    plain = objective(output, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(objective(output, y), plain, rtol=1e-6, atol=0)


def test_a_temperature_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="cosine_pc: temperature=0 must be above 0"):
        CosinePC(3, 6, COUNTS, temperature=0)
