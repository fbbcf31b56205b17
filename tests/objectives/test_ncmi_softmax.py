"""The softmax of divergences against a direct formula and its limit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, rel_entr, softmax
from sklearn.metrics.pairwise import cosine_similarity

from wsi.errors import ConfigError
from wsi.objectives.ncmi_softmax import NCMISoftmax

COUNTS = [40, 10, 25]


def nsf(z):
    s = expit(z)
    return s / s.sum(-1, keepdims=True)


def kl(p, q):
    return rel_entr(p[:, None], q[None]).sum(-1)


def identity(objective):
    """Return the objective with f = the embedding itself."""
    with torch.no_grad():
        objective.head.projection.weight.copy_(torch.eye(32))
        objective.head.projection.bias.zero_()
    return objective


def direct_logits(objective, output, T, kappa):
    W, b = (p.detach().numpy() for p in objective.head.projection.parameters())
    f = output.embedding.numpy() @ W.T + b
    p = nsf(f / np.linalg.norm(f, axis=1, keepdims=True) / T)
    q = nsf(objective.head.prototypes.numpy() / T)
    C = len(q)
    D = kl(q, q)[~np.eye(C, dtype=bool)].mean()
    return -kappa * kl(p, q) / D


@pytest.mark.parametrize(("T", "kappa"), [(0.5, 30.0), (0.1, 20.0), (2.0, 40.0)])
def test_loss_and_probabilities_are_those_of_the_formula(outputs, T, kappa):
    torch.manual_seed(0)
    objective = NCMISoftmax(3, 6, COUNTS, temperature=T, kappa=kappa).double()
    output, y = outputs(), np.arange(9) % 3
    n = direct_logits(objective, output, T, kappa)
    log_p = log_softmax(n + np.log(np.array(COUNTS) / 75), axis=1)
    loss = objective(output, torch.from_numpy(y)).item()
    np.testing.assert_allclose(loss, -log_p[np.arange(9), y].mean(), rtol=1e-6)
    p = objective.probabilities(output).detach().numpy()
    np.testing.assert_allclose(p, softmax(n, axis=1), rtol=1e-5)


def test_the_default_settings_are_those_of_the_method():
    objective = NCMISoftmax(3, 6, COUNTS)
    assert objective.head.prototypes.shape == (3, 32)
    assert NCMISoftmax(10, 6, [1] * 10).head.prototypes.shape == (10, 40)
    assert objective.own_prior == "uniform"


def test_autocast_changes_nothing(outputs):
    torch.manual_seed(0)
    objective, y = NCMISoftmax(3, 6, COUNTS), torch.arange(9) % 3
    output = outputs(dtype=torch.float32)
    plain = objective(output, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(objective(output, y), plain, rtol=1e-6, atol=0)


def test_float32_keeps_its_digits_at_a_prototype(outputs):
    """Where p is q_y the divergence is 0 and every other one D, to float32's digits."""
    objective = identity(NCMISoftmax(4, 32, [1, 1, 1, 1]))
    output = outputs(B=4)
    output.embedding = 5 * objective.head.prototypes
    n = objective.own_scores(output).detach().numpy()
    np.testing.assert_allclose(np.diag(n), 0, atol=1e-4)
    np.testing.assert_allclose(n[~np.eye(4, dtype=bool)].mean(), -30, rtol=1e-5)


@pytest.mark.parametrize("C", [2, 3, 4, 8])
def test_a_hot_projection_makes_it_a_cosine_softmax(outputs, C):
    """Temperature C / (kappa (C - 1)), up to a term that all classes share."""
    kappa, misfit = 30.0, []
    f = outputs(B=1000, E=32).embedding
    f = f - f.mean(1, keepdim=True)  # the normalised sigmoid is blind to the mean
    for T in (1.0, 2.0, 4.0):
        objective = identity(NCMISoftmax(C, 32, [1] * C, temperature=T, kappa=kappa).double())
        u = cosine_similarity(f, objective.head.prototypes)
        n = objective.own_scores(SimpleNamespace(embedding=f, logits=None)).detach().numpy()
        x, y = (v - v.mean(1, keepdims=True) for v in (kappa * (C - 1) / C * u, n))
        slope = (x * y).sum() / (x * x).sum()
        misfit.append(((y - slope * x) ** 2).sum() / (y**2).sum())
        if T >= 2:
            assert slope == pytest.approx(1, abs=0.01)
            assert 1 - misfit[-1] > 0.995
    assert misfit[0] > misfit[1] > misfit[2]


@pytest.mark.parametrize("setting", ["kappa", "temperature"])
def test_settings_of_nothing_are_refused(setting):
    with pytest.raises(ConfigError, match=f"ncmi_softmax: {setting}=0 must be above 0"):
        NCMISoftmax(3, 6, COUNTS, **{setting: 0})
