"""PC-softmax against the reference vectors, torch and Bayes' rule."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from torch.nn import functional

from wsi.errors import ConfigError, TrainingError
from wsi.objectives.pc_softmax import PCSoftmax
from wsi.objectives.prior import log_prior, retargeted

COUNTS = [636, 72, 116, 176]


def of(logits):
    return SimpleNamespace(embedding=torch.zeros(len(logits), 2), logits=logits)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_the_loss_is_that_of_the_vectors(vectors, dtype, tolerance):
    cases = vectors("pc")
    assert len(cases) >= 4
    for case in cases:
        prior, y = case["in"]["prior"], torch.tensor(case["in"]["y"])
        objective = PCSoftmax(len(prior), 2, [1] * len(prior), prior=prior)
        loss = objective(of(torch.tensor(case["in"]["logits"], dtype=dtype)), y)
        assert loss.dtype == dtype
        np.testing.assert_allclose(loss.item(), case["out"]["pc_loss"], rtol=tolerance)


def test_the_prior_is_that_of_the_training_bags_unless_given(outputs):
    output, y = outputs(C=4), torch.arange(9) % 4
    share = np.array(COUNTS) / 1000
    n = output.logits.numpy()
    expected = -(log_softmax(n + np.log(share), axis=1) - np.log(share))[np.arange(9), y].mean()
    np.testing.assert_allclose(PCSoftmax(4, 6, COUNTS)(output, y).item(), expected, rtol=1e-12)


def test_gradients_are_those_of_balanced_softmax(outputs):
    output, y = outputs(C=4), torch.arange(9) % 4
    n = output.logits.requires_grad_()
    (ours,) = torch.autograd.grad(PCSoftmax(4, 6, COUNTS)(output, y), n)
    balanced = functional.cross_entropy(n + torch.tensor(COUNTS).double().log(), y)
    (theirs,) = torch.autograd.grad(balanced, n)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_half_precision_logits_lose_nothing_more_in_the_loss(outputs):
    n = outputs(C=4).logits.bfloat16()
    y = torch.arange(9) % 4
    objective = PCSoftmax(4, 6, COUNTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective(of(n), y)
    torch.testing.assert_close(half, objective(of(n.float()), y), rtol=1e-6, atol=0)


def test_the_optimum_read_under_any_prior_is_bayes_rule():
    """Two normal classes, whose log densities are what the minimiser has for logits."""
    x = np.linspace(-3, 4, 15)
    density = np.stack([norm.pdf(x, 0), norm.pdf(x, 1)], axis=1)
    n = torch.from_numpy(np.log(density) + np.sin(x)[:, None])  # a term of x is left open
    for prior in ([0.5, 0.5], [0.9, 0.1]):
        joint = density * prior
        p = PCSoftmax(2, 2, [3, 17], target_prior=prior).probabilities(of(n)).numpy()
        np.testing.assert_allclose(p, joint / joint.sum(1, keepdims=True), rtol=1e-12)


def test_training_finds_log_densities_whatever_the_mix_of_classes():
    """A linear logit is exact for two normal classes: n_1 - n_0 = x - 1/2."""
    rng = np.random.default_rng(0)
    y = torch.from_numpy(np.repeat([0, 1], [18000, 2000]))
    x = torch.from_numpy(rng.normal(size=20000) + y.numpy())
    weight = torch.zeros(2, requires_grad=True, dtype=torch.float64)
    objective = PCSoftmax(2, 2, [18000, 2000])
    optimizer = torch.optim.LBFGS([weight], max_iter=50)

    def closure():
        optimizer.zero_grad()
        n = torch.stack([torch.zeros_like(x), weight[0] * x + weight[1]], 1)
        loss = objective(of(n), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    np.testing.assert_allclose(weight.detach().numpy(), [1, -0.5], atol=0.08)


def test_own_probabilities_are_under_equal_shares_and_can_be_retargeted(outputs):
    output = outputs(C=4)
    n = output.logits.numpy()
    plain, training = PCSoftmax(4, 6, COUNTS), PCSoftmax(4, 6, COUNTS, target_prior="training")
    assert (plain.own_prior, training.own_prior) == ("uniform", "training")
    np.testing.assert_allclose(plain.probabilities(output), softmax(n, axis=1), rtol=1e-12)
    share = np.array(COUNTS) / 1000
    expected = softmax(n + np.log(share), axis=1)
    np.testing.assert_allclose(training.probabilities(output), expected, rtol=1e-12)
    log_pi = log_prior("training", COUNTS)
    np.testing.assert_allclose(retargeted(output.logits, log_pi).softmax(-1), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("prior", "problem"),
    [
        ([0.5, 0.5], "2 shares for 4 classes"),
        ([0.5, 0.5, 0.0, 0.0], "every share must be above 0"),
        ([0.5, 0.5, 0.5, 0.5], "sums to 2"),
        ([float("nan")] * 4, "every share must be above 0"),
    ],
)
def test_a_prior_that_is_none_is_refused(prior, problem):
    with pytest.raises(ConfigError, match=problem):
        PCSoftmax(4, 6, COUNTS, prior=prior)
    with pytest.raises(ConfigError, match=f"target_prior.*{problem}"):
        PCSoftmax(4, 6, COUNTS, target_prior=prior)


def test_a_class_without_training_bags_is_an_error_not_minus_infinity():
    with pytest.raises(TrainingError, match="class 2 has no training bag"):
        PCSoftmax(3, 6, [4, 2, 0])
