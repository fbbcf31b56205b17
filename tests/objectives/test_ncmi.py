"""NCMI against the reference vectors, direct float64 formulas and finite differences."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr

from wsi.errors import ConfigError, TrainingError
from wsi.objectives.ncmi import NCMI, ncmi_terms, ratio_form, sample_form
from wsi.objectives.prototypes import unit_prototypes
from wsi.objectives.simplex import (
    divergences,
    log_nsf,
    log_scaled_nsf,
    log_scaled_softmax,
    nearest,
    project,
)

_FILE = Path(__file__).parent / "vectors" / "ncmi_vectors.json"
VECTORS = json.loads(_FILE.read_text())["vectors"]


def cases(op, having=None):
    chosen = [v for v in VECTORS if v["op"] == op and (having is None or having in v["out"])]
    return pytest.mark.parametrize("case", chosen, ids=[v["name"] for v in chosen])


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, rtol=1e-9):
    """Tolerance relative to the largest element, as the vectors ask."""
    actual = np.asarray(actual.detach() if isinstance(actual, torch.Tensor) else actual)
    expected = np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=rtol * np.abs(expected).max() + 1e-300
    )


def direct_nsf(z):
    s = expit(np.asarray(z, dtype=np.float64))
    return s / s.sum(-1, keepdims=True)


def direct_terms(p, q, y, prior):
    num = np.array([rel_entr(p[i], q[c]).sum() for i, c in enumerate(y)])
    den = np.array(
        [
            sum(prior[c] * rel_entr(q[c], p[i]).sum() for c in range(len(q)) if c != own)
            for i, own in enumerate(y)
        ]
    )
    return num, den


# -- the vectors ------------------------------------------------------------------------------


@cases("log_nsf")
def test_log_nsf_matches_the_vectors(case):
    log_p = log_nsf(f64(case["in"]["z"]))
    close(log_p, case["out"]["log_nsf"])
    close(log_p.exp(), case["out"]["nsf"])


@cases("log_nsf")
def test_the_scaled_form_is_the_logarithm_of_m_p(case):
    z = f64(case["in"]["z"])
    expected = np.array(case["out"]["log_nsf"]) + np.log(z.shape[-1])
    close(log_scaled_nsf(z), expected + 0.0, rtol=1e-9 if np.abs(expected).max() else 0)


@cases("project")
def test_project_matches_the_vectors(case):
    given = case["in"]
    mu = None if given["mu"] is None else f64(given["mu"])
    z = project(f64(given["f"]), mu, given["T"])
    close(z, case["out"]["z"])
    close(log_nsf(z), case["out"]["log_nsf"])


@cases("nearest")
def test_nearest_matches_the_vectors(case):
    p, q = f64(case["in"]["p"]), f64(case["in"]["q"])
    a, b = (p * p.shape[-1]).log(), (q * q.shape[-1]).log()
    close(divergences(a, b), case["out"]["kl"])
    assert nearest(a, b).tolist() == case["out"]["nearest"]


def tensors(case):
    given = case["in"]
    z, theta = f64(given["z"]).requires_grad_(), f64(given["theta"]).requires_grad_()
    y = torch.tensor(given["y"])
    return z, theta, y, f64(given["prior"]), f64(given["sample_weight"])


def uniform(theta):
    return torch.full((len(theta),), 1 / len(theta), dtype=theta.dtype)


@cases("ncmi")
def test_terms_and_losses_match_the_vectors(case):
    z, theta, y, prior, weight = tensors(case)
    a, b = log_scaled_nsf(z), log_scaled_nsf(theta)
    num, den = ncmi_terms(a, b, y, uniform(theta))
    _, den_prior = ncmi_terms(a, b, y, prior)
    out = case["out"]
    close(num, out["cmi"])
    close(den, out["sep"])
    close(sample_form(num, den), out["loss_sample"])
    close(ratio_form(num, den), out["loss_ratio"])
    close(sample_form(num, den, weight), out["loss_sample_weighted"])
    close(ratio_form(num, den_prior, weight), out["loss_ratio_weighted_prior"])
    assert nearest(a, b).tolist() == out["nearest"]


@cases("ncmi", having="grad_z_sample")
@pytest.mark.parametrize("form", ["sample", "ratio"])
def test_gradients_match_the_vectors(case, form):
    z, theta, y, _, _ = tensors(case)
    terms = ncmi_terms(log_scaled_nsf(z), log_scaled_nsf(theta), y, uniform(theta))
    loss = {"sample": sample_form, "ratio": ratio_form}[form](*terms)
    grad_z, grad_theta = torch.autograd.grad(loss, (z, theta))
    close(grad_z, case["out"][f"grad_z_{form}"])
    close(grad_theta, case["out"][f"grad_theta_{form}"])


# -- mathematics ------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [log_scaled_nsf, log_scaled_softmax])
@pytest.mark.parametrize("form", [sample_form, ratio_form])
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])  # 20 reaches both branches of both forms
def test_gradients_match_finite_differences(scaled, form, scale):
    g = torch.Generator().manual_seed(1)
    z = (scale * torch.randn(3, 9, generator=g, dtype=torch.float64)).requires_grad_()
    theta = (scale * torch.randn(4, 9, generator=g, dtype=torch.float64)).requires_grad_()
    y = torch.tensor([0, 3, 1])

    def loss(z, theta):
        return form(*ncmi_terms(scaled(z), scaled(theta), y, uniform(theta)), eps=1e-3)

    assert torch.autograd.gradcheck(loss, (z, theta), rtol=1e-4)


@pytest.mark.parametrize("T", [0.2, 2.0])
def test_float32_keeps_its_digits_near_convergence(T):
    rng = np.random.default_rng(0)
    f, theta = rng.normal(size=(6, 2048)), rng.normal(size=(5, 2048))
    y = np.array([0, 1, 2, 3, 4, 0])
    theta = (theta / np.linalg.norm(theta, axis=1, keepdims=True) / T).astype(np.float32)
    near = theta[y].astype(np.float64)
    z = (near + 0.01 * f * np.linalg.norm(near, axis=1, keepdims=True) / 45).astype(np.float32)
    num, den = ncmi_terms(
        log_scaled_nsf(torch.from_numpy(z)),
        log_scaled_nsf(torch.from_numpy(theta)),
        torch.from_numpy(y),
        torch.full((5,), 0.2),
    )
    p, q = direct_nsf(z), direct_nsf(theta)
    expected_num, expected_den = direct_terms(p, q, y, np.full(5, 0.2))
    assert (num > 0).all()
    np.testing.assert_allclose(num, expected_num, rtol=2e-3)
    np.testing.assert_allclose(den, expected_den, rtol=1e-4)


def test_float32_holds_where_probabilities_underflow():
    z = torch.tensor([[600.0, -600.0, 0.0], [-300.0, 5.0, -200.0]], requires_grad=True)
    theta = torch.tensor([[-400.0, 10.0, 3.0], [2.0, -200.0, 90.0]])
    num, den = ncmi_terms(
        log_scaled_nsf(z), log_scaled_nsf(theta), torch.tensor([0, 1]), torch.full((2,), 0.5)
    )
    expected = direct_terms(direct_nsf(z.detach()), direct_nsf(theta), [0, 1], [0.5, 0.5])
    np.testing.assert_allclose(num.detach(), expected[0], rtol=1e-5)
    np.testing.assert_allclose(den.detach(), expected[1], rtol=1e-5)
    (grad,) = torch.autograd.grad(sample_form(num, den), z)
    assert grad.isfinite().all()


def test_class_means_are_the_centroids_of_least_divergence():
    """sum_y pi_y E KL(p || q_y) exceeds its minimum by exactly sum_y pi_y KL(s_y || q_y)."""
    rng = np.random.default_rng(2)
    z, theta, y = rng.normal(size=(30, 7)), rng.normal(size=(3, 7)), rng.integers(0, 3, 30)
    p, q = direct_nsf(z), direct_nsf(theta)
    s = np.stack([p[y == c].mean(0) for c in range(3)])
    excess = sum((y == c).mean() * rel_entr(s[c], q[c]).sum() for c in range(3))

    def concentration(centroids):
        labels = torch.from_numpy(y)
        b = torch.from_numpy(np.log(7 * centroids))
        a = log_scaled_nsf(torch.from_numpy(z))
        return ncmi_terms(a, b, labels, torch.full((3,), 1 / 3, dtype=torch.float64))[0].mean()

    assert excess > 0.01
    np.testing.assert_allclose(concentration(q) - concentration(s), excess, rtol=1e-9)


# -- prototypes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "m"), [(2, 3), (4, 32), (20, 80)])
def test_etf_prototypes_are_equiangular_and_zero_mean(C, m):
    unit = unit_prototypes("etf", C, m).double().numpy()
    expected = np.where(np.eye(C, dtype=bool), 1.0, -1 / (C - 1))
    np.testing.assert_allclose(unit @ unit.T, expected, atol=1e-6)
    np.testing.assert_allclose(unit.mean(1), 0, atol=1e-7)


def test_orthonormal_and_axis_prototypes_are_orthonormal():
    for kind in ("orthonormal", "axis"):
        unit = unit_prototypes(kind, 5, 9).double().numpy()
        np.testing.assert_allclose(unit @ unit.T, np.eye(5), atol=1e-6)
    np.testing.assert_allclose(unit_prototypes("orthonormal", 5, 9).mean(1), 0, atol=1e-7)


def test_too_few_dimensions_are_refused():
    with pytest.raises(ConfigError, match="m > 4"):
        NCMI(4, 8, [1, 1, 1, 1], m=4)


# -- the objective ----------------------------------------------------------------------------


def bags(n, E=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    return SimpleNamespace(embedding=torch.randn(n, E, generator=g), logits=None)


def direct_p(objective, output, simplex="nsf"):
    """p of every bag, by numpy from the projection's weights alone."""
    W = objective.projection.weight.detach().double().numpy()
    f = output.embedding.double().numpy() @ W.T + objective.projection.bias.detach().numpy()
    f = f - objective.centre.value.double().numpy()
    z = f / np.linalg.norm(f, axis=1, keepdims=True) / 0.5
    return direct_nsf(z) if simplex == "nsf" else np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def direct_q(C, m, simplex="nsf"):
    theta = 2.0 * unit_prototypes("etf", C, m).double().numpy()
    return direct_nsf(theta) if simplex == "nsf" else np.exp(theta) / np.exp(theta).sum(-1)[:, None]


def mean_kl(q):
    C = len(q)
    return sum(rel_entr(q[i], q[j]).sum() for i in range(C) for j in range(C)) / (C * (C - 1))


@pytest.mark.parametrize("simplex", ["nsf", "softmax"])
@pytest.mark.parametrize("form", ["sample", "ratio"])
@pytest.mark.parametrize("balanced", [True, False])
def test_loss_is_the_brute_force_formula(simplex, form, balanced):
    counts = np.array([30, 5, 15])
    objective = NCMI(3, 10, counts.tolist(), simplex=simplex, form=form, balanced=balanced)
    output, y = bags(7), np.array([0, 0, 2, 1, 0, 2, 2])
    q = direct_q(3, 32, simplex)
    num, den = direct_terms(direct_p(objective, output, simplex), q, y, np.full(3, 1 / 3))
    w = (counts.sum() / (3 * counts))[y] if balanced else np.ones(7)
    eps = 1e-4 * mean_kl(q)
    sample = np.mean(w * num / (den + eps))
    ratio = np.mean(w * num) / (np.mean(den) + eps)
    loss = objective(output, torch.from_numpy(y))
    np.testing.assert_allclose(loss.item(), sample if form == "sample" else ratio, rtol=1e-4)


def test_a_rare_class_weighs_more_even_alone_in_its_batch():
    counts, output, y = [90, 10], bags(1), torch.tensor([1])
    torch.manual_seed(0)
    balanced = NCMI(2, 10, counts)
    torch.manual_seed(0)
    plain = NCMI(2, 10, counts, balanced=False)
    ratio = balanced(output, y) / plain(output, y)
    np.testing.assert_allclose(ratio.item(), 100 / (2 * 10), rtol=1e-4)


def test_probabilities_are_a_softmax_of_divergences_from_the_prototypes():
    objective, output = NCMI(3, 10, [1, 1, 1]), bags(5)
    p, q = direct_p(objective, output), direct_q(3, 32)
    kl = np.array([[rel_entr(row, centroid).sum() for centroid in q] for row in p])
    scores = np.exp(-kl / (mean_kl(q) / 20))
    expected = scores / scores.sum(1, keepdims=True)
    np.testing.assert_allclose(objective.probabilities(output).detach(), expected, atol=1e-4)


def one_by_one(output, y):
    rows = range(len(y))
    return [
        (SimpleNamespace(embedding=output.embedding[i : i + 1], logits=None), y[i : i + 1])
        for i in rows
    ]


def direct_means(objective, output, y):
    p = direct_p(objective, output)
    return np.stack([p[y == c].mean(0) for c in range(objective.n_classes)])


def direct_probabilities(p, q, tau):
    kl = np.array([[rel_entr(row, centroid).sum() for centroid in q] for row in p])
    scores = np.exp(-kl / tau)
    return scores / scores.sum(1, keepdims=True)


def test_after_fit_predicts_by_class_means_of_training_p():
    objective, output, y = NCMI(3, 10, [4, 4, 4]), bags(12), np.arange(12) % 3
    before = objective.probabilities(output)
    objective.after_fit(iter(one_by_one(output, torch.from_numpy(y))), None)
    p, means = direct_p(objective, output), direct_means(objective, output, y)
    after = objective.probabilities(output).detach()
    expected = direct_probabilities(p, means, mean_kl(means) / 20)
    np.testing.assert_allclose(after, expected, atol=1e-4)
    assert (after - before.detach()).abs().max() > 0.05


@pytest.mark.parametrize("predict", ["own", "class_mean"])
def test_tau_has_the_least_smoothed_validation_nll_of_a_grid(predict):
    objective, train, val = NCMI(2, 10, [20, 20], predict=predict), bags(40), bags(30, seed=1)
    y_train, y_val = torch.arange(40) % 2, (val.embedding[:, 0] > 0).long()
    objective.after_fit([(train, y_train)], [(val, y_val)])
    p, centroids = direct_p(objective, val), direct_q(2, 32)
    if predict == "class_mean":
        centroids = direct_means(objective, train, y_train.numpy())

    def nll(q):
        of_label, of_other = -np.log(q[np.arange(30), y_val]), -np.log(q[np.arange(30), 1 - y_val])
        return (31 / 32 * of_label + 1 / 32 * of_other).mean()  # Platt's targets, n=30

    grid = np.geomspace(mean_kl(centroids) / 40, mean_kl(centroids) * 100, 400)
    best = min(nll(direct_probabilities(p, centroids, tau)) for tau in grid)
    np.testing.assert_allclose(nll(objective.probabilities(val).detach().numpy()), best, atol=1e-4)


def test_class_mean_centroids_move_as_a_moving_average_of_present_classes():
    objective, output = NCMI(3, 10, [4, 4, 4], centroids="class_mean"), bags(5)
    y = np.array([0, 2, 0, 0, 2])
    objective.after_step(output, torch.from_numpy(y))
    p, q = direct_p(objective, output), direct_q(3, 32)
    expected = q.copy()
    for c in (0, 2):
        expected[c] = 0.99 * q[c] + 0.01 * p[y == c].mean(0)
    moved = objective.centroids.b.double().exp().numpy() / 32
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    assert np.abs(moved - q).max() > 1e-5


def test_fixed_prototypes_do_not_move():
    objective = NCMI(3, 10, [4, 4, 4])
    before = objective.centroids.b.clone()
    objective.after_step(bags(5), torch.tensor([0, 1, 2, 0, 0]))
    assert torch.equal(before, objective.centroids.b)


def test_the_fixed_centre_is_the_mean_feature_of_one_pass():
    objective, output = NCMI(2, 10, [4, 4], center="fixed"), bags(8)
    objective.before_fit([(output, torch.arange(8) % 2)])
    expected = objective.projection(output.embedding).mean(0)
    np.testing.assert_allclose(objective.centre.value, expected.detach(), atol=1e-6)
    loss_p = objective(output, torch.arange(8) % 2)
    num, den = direct_terms(
        direct_p(objective, output), direct_q(2, 32), np.arange(8) % 2, np.full(2, 0.5)
    )
    eps = 1e-4 * mean_kl(direct_q(2, 32))
    np.testing.assert_allclose(loss_p.item(), np.mean(num / (den + eps)), rtol=1e-4)


def test_loss_is_finite_at_the_wrong_prototype_of_two_classes():
    objective = NCMI(2, 32, [1, 1])
    with torch.no_grad():
        objective.projection.weight.copy_(torch.eye(32))
        objective.projection.bias.zero_()
    output = SimpleNamespace(embedding=unit_prototypes("etf", 2, 32)[1:], logits=None)
    loss = objective(output, torch.tensor([0]))
    np.testing.assert_allclose(loss.item(), 1e4, rtol=0.05)  # D / (0 + 1e-4 D)


def test_autocast_leaves_the_loss_alone():
    objective, output, y = NCMI(3, 10, [1, 1, 1]), bags(6), torch.arange(6) % 3
    plain = objective(output, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective(output, y)
    assert inside.dtype == torch.float32
    assert torch.equal(plain, inside)


def test_a_class_missing_from_the_last_pass_is_an_error():
    objective = NCMI(2, 10, [4, 4])
    with pytest.raises(TrainingError, match="class 1"):
        objective.after_fit([(bags(3), torch.zeros(3, dtype=torch.int64))], None)


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"prototype_scale": 0.0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        NCMI(2, 10, [4, 4], **setting)
