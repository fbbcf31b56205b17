"""Centroids, centre and figures of NCMI over steps, and its use in a plain loop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr

from wsi.errors import ConfigError, TrainingError
from wsi.objectives.ncmi import NCMI
from wsi.objectives.ncmi_figures import information
from wsi.objectives.prototypes import unit_prototypes
from wsi.objectives.simplex import log_scaled_nsf

_FILE = Path(__file__).parent / "vectors" / "ncmi_vectors.json"
VECTORS = json.loads(_FILE.read_text())["vectors"]
E, C = 6, 3
Y = torch.tensor([0, 2, 0, 0, 2])


def bags(n=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return SimpleNamespace(embedding=torch.randn(n, E, generator=g), logits=None)


def ncmi(**settings):
    torch.manual_seed(0)
    return NCMI(C, E, [4, 4, 4], **settings)


def direct_nsf(z):
    s = expit(np.asarray(z, dtype=np.float64))
    return s / s.sum(-1, keepdims=True)


def direct_p(objective, output, mu=0.0):
    W = objective.projection.weight.detach().double().numpy()
    f = output.embedding.double().numpy() @ W.T + objective.projection.bias.detach().numpy() - mu
    return direct_nsf(f / np.linalg.norm(f, axis=1, keepdims=True) / 0.5)


# -- learned centroids ------------------------------------------------------------------------


def closed_form_gradient(p, theta, y):
    """d mean_i num_i / (den_i + eps) / d theta, from the derivatives of both divergences.

    dKL(p||q)/dtheta = s(-theta)(q - p); dKL(q||p)/dtheta = s(-theta) q [(b - a) - KL].
    """
    q, B, n = direct_nsf(theta), len(p), len(theta)
    eps = 1e-4 * np.mean([rel_entr(q[i], q[j]).sum() for i in range(n) for j in range(n) if i != j])
    grad = np.zeros_like(theta)
    for row, own in zip(p, y, strict=True):
        num = rel_entr(row, q[own]).sum() + 1e-10
        apart = {c: rel_entr(q[c], row).sum() for c in range(n) if c != own}
        den = sum(apart.values()) / n + eps
        grad[own] += expit(-theta[own]) * (q[own] - row) / den
        for c, kl in apart.items():
            slope = expit(-theta[c]) * q[c] * (np.log(q[c] / row) - kl)
            grad[c] -= num / den**2 * slope / n
    return grad / B


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_learned_centroids_descend_by_the_closed_form_gradient(momentum):
    objective = ncmi(centroids="learned", centroid_lr=0.5, centroid_momentum=momentum)
    theta = 2.0 * unit_prototypes("etf", C, 32).double().numpy()
    start, velocity = theta.copy(), np.zeros_like(theta)
    present = [0, 2]
    for seed in range(3):
        output = bags(seed=seed)
        objective.after_step(output, Y)
        gradient = closed_form_gradient(direct_p(objective, output), theta, Y.numpy())
        velocity[present] = momentum * velocity[present] + gradient[present]
        theta[present] -= 0.5 * velocity[present]
    moved = objective.centroids.theta.double().numpy() - start
    np.testing.assert_allclose(moved, theta - start, atol=1e-4 * np.abs(theta - start).max())
    assert np.abs(moved[present]).max() > 1e-3
    assert (moved[1] == 0).all()  # absent: it would only have been pushed away
    np.testing.assert_allclose(objective.centroids.b.exp() / 32, direct_nsf(theta), rtol=1e-5)


def test_learned_centroids_lower_the_loss_of_their_batch():
    objective, output = ncmi(centroids="learned", centroid_lr=0.1), bags()
    before = objective(output, Y).item()
    objective.after_step(output, Y)
    assert objective(output, Y).item() < before


def test_learning_needs_no_gradient_mode_of_the_caller():
    objective, output = ncmi(centroids="learned", centroid_lr=0.1), bags()
    before = objective.centroids.theta.clone()
    with torch.no_grad():
        objective.after_step(output, Y)
    assert not torch.equal(before, objective.centroids.theta)


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (lambda map_, theta: map_(theta.data), "no gradient"),  # as in the published code
        (lambda map_, theta: map_(theta.data) + 0 * theta, "a gradient of 0"),
        (lambda map_, theta: map_(theta) * float("nan"), "a gradient of nan"),
    ],
)
def test_centroids_without_a_gradient_are_an_error(broken, found):
    objective = ncmi(centroids="learned", centroid_lr=0.1)
    to_simplex = objective.centroids._to_simplex
    objective.centroids._to_simplex = lambda theta: broken(to_simplex, theta)
    with pytest.raises(TrainingError, match=f"{found} .*use centroids=fixed or class_mean"):
        objective.after_step(bags(), Y)


def test_learned_centroids_leave_the_network_without_gradient():
    objective = ncmi(centroids="learned", centroid_lr=0.1)
    objective.after_step(bags(), Y)
    assert all(parameter.grad is None for parameter in objective.parameters())


@pytest.mark.parametrize("change", ["load", "step", "type"])
def test_the_loss_follows_centroids_however_they_change(change):
    """What it keeps of them must not outlive them."""
    settings = {"centroids": "class_mean", "form": "ratio"}
    objective, output = ncmi(**settings), bags()
    with torch.inference_mode():
        before = objective(output, Y).item()
    if change == "load":
        other = ncmi(**settings, prototype_scale=5.0)
        objective.load_state_dict(other.state_dict())
    elif change == "step":
        for seed in range(50):
            objective.after_step(bags(seed=seed), Y)
    else:
        objective.double()
        elsewhere = direct_nsf(np.random.default_rng(0).normal(size=(C, 32)))
        objective.centroids.b.copy_(torch.from_numpy(np.log(32 * elsewhere)))
    q = objective.centroids.b.double().exp().numpy() / 32
    p = direct_p(objective, output)
    num = [rel_entr(row, q[c]).sum() for row, c in zip(p, Y, strict=True)]
    den = [
        sum(rel_entr(q[c], row).sum() for c in range(C) if c != own) / C
        for row, own in zip(p, Y, strict=True)
    ]
    loss = objective(output, Y)
    loss.backward()
    expected = np.mean(num) / (np.mean(den) + objective.eps.item())
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-4)
    assert abs(loss.item() - before) > 1e-3


# -- the centre -------------------------------------------------------------------------------


def test_a_moving_centre_sees_batches_of_two_and_more_only():
    objective, output = ncmi(center="ema", center_momentum=0.9), bags(1)
    objective.after_step(output, Y[:1])
    assert objective.centre.value.abs().max() == 0
    seen = [objective.projection(bags(n, seed=n).embedding).mean(0) for n in (2, 4)]
    for n in (2, 4):
        objective.after_step(bags(n, seed=n), Y[:n])
        objective.after_step(bags(1), Y[:1])
    expected = (0.1 * seen[1] + 0.09 * seen[0]) / 0.19
    np.testing.assert_allclose(objective.centre.value, expected.detach(), atol=1e-6)


def test_the_moving_centre_is_subtracted_and_the_loss_does_not_move_it():
    objective, output = ncmi(center="ema"), bags()
    objective.after_step(bags(8, seed=3), torch.arange(8) % C)
    mu = objective.centre.value.double().numpy().copy()
    assert np.abs(mu).max() > 0.01
    objective(output, Y)
    assert (objective.centre.value.double().numpy() == mu).all()
    np.testing.assert_allclose(
        objective.points(output).detach() / 32, direct_p(objective, output, mu), rtol=1e-4
    )


@pytest.mark.parametrize("center", ["fixed", "ema"])
@pytest.mark.parametrize("form", ["sample", "ratio"])
@pytest.mark.parametrize("n", [1, 3])
def test_an_embedding_at_the_centre_has_a_finite_loss_and_gradient(center, form, n):
    objective = ncmi(center=center, form=form)
    row = bags(1).embedding
    same = SimpleNamespace(embedding=row.repeat(2, 1), logits=None)
    objective.before_fit([(same, Y[:2])])
    objective.after_step(same, Y[:2])
    embedding = row.repeat(n, 1).requires_grad_()
    loss = objective(SimpleNamespace(embedding=embedding, logits=None), Y[:n])
    loss.backward()
    assert loss.isfinite()
    assert embedding.grad.isfinite().all()


def test_a_fixed_centre_that_was_never_set_is_an_error():
    with pytest.raises(TrainingError, match="before_fit"):
        ncmi(center="fixed")(bags(), Y)


# -- resuming ---------------------------------------------------------------------------------

MOVING = {
    "learned": {"centroids": "learned", "centroid_lr": 0.1, "centroid_momentum": 0.9},
    "class_mean": {"centroids": "class_mean"},
    "ema": {"center": "ema", "center_momentum": 0.9},
    "fixed": {"center": "fixed"},
}


@pytest.mark.parametrize("settings", MOVING.values(), ids=MOVING)
def test_a_run_resumed_from_its_state_goes_on_to_the_last_bit(settings):
    whole = ncmi(**settings)
    whole.before_fit([(bags(seed=9), Y)])
    for seed in range(2):
        whole.after_step(bags(seed=seed), Y)
    torch.manual_seed(5)
    resumed = NCMI(C, E, [4, 4, 4], **settings)
    resumed.load_state_dict(whole.state_dict())
    for seed in range(2, 5):
        losses = [o(bags(seed=seed), Y) for o in (whole, resumed)]
        assert torch.equal(*losses)
        for objective in (whole, resumed):
            objective.after_step(bags(seed=seed), Y)
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())
    assert whole.figures([(bags(), Y)]) == resumed.figures([(bags(), Y)])


# -- mathematics of the whole objective -------------------------------------------------------


@pytest.mark.parametrize("center", ["none", "fixed"])
@pytest.mark.parametrize("simplex", ["nsf", "softmax"])
@pytest.mark.parametrize("form", ["sample", "ratio"])
@pytest.mark.parametrize("prototypes", ["etf", "orthonormal", "axis"])
def test_gradient_in_the_embedding_is_that_of_finite_differences(center, simplex, form, prototypes):
    objective = ncmi(center=center, simplex=simplex, form=form, prototypes=prototypes, m=5).double()
    output = bags(4)
    embedding = output.embedding.double().requires_grad_()
    objective.before_fit([(output, Y[:4])])

    def loss(embedding):
        return objective(SimpleNamespace(embedding=embedding, logits=None), Y[:4])

    assert torch.autograd.gradcheck(loss, embedding, rtol=1e-4, fast_mode=True)


@pytest.mark.parametrize("form", ["sample", "ratio"])
def test_half_precision_features_give_the_loss_of_the_same_features_in_float32(form):
    objective = ncmi(form=form)
    half = bags().embedding.bfloat16()
    plain = objective(SimpleNamespace(embedding=half.float(), logits=None), Y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective(SimpleNamespace(embedding=half, logits=None), Y)
    np.testing.assert_allclose(inside.item(), plain.item(), rtol=1e-6)


def test_no_array_of_bags_by_classes_by_dimensions_is_made():
    """Nor one of bags by classes: every tensor of the graph is smaller than either."""
    B, n_classes, m = 48, 40, 256
    objective = NCMI(n_classes, E, [1] * n_classes, m=m)
    sizes = []

    class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple) else (out,)
            sizes.extend(tuple(t.shape) for t in made if isinstance(t, torch.Tensor))
            return out

    embedding = torch.randn(B, E, requires_grad=True)
    with Recorded():
        output = SimpleNamespace(embedding=embedding, logits=None)
        objective(output, torch.arange(B) % n_classes).backward()
    assert (B, m) in sizes
    assert max(np.prod(shape) for shape in sizes) <= max(B, n_classes) * m
    assert (B, n_classes) not in sizes


# -- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [v for v in VECTORS if v["op"] == "dataset_ncmi"],
    ids=lambda v: v["name"],
)
def test_information_matches_the_vectors(case):
    z, y = torch.tensor(case["in"]["z"], dtype=torch.float64), torch.tensor(case["in"]["y"])
    found, expected = information(log_scaled_nsf(z), y, case["in"]["C"]), case["out"]["KL_QP"]
    np.testing.assert_allclose(found["concentration"], expected["cmi"], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found["separation"], expected["gamma"], rtol=1e-9)
    np.testing.assert_allclose(found["ncmi"], expected["ncmi"], rtol=1e-9, atol=1e-15)
    by_class = found["concentration_by_class"]
    for c, value in enumerate(by_class):
        if (y == c).any():
            np.testing.assert_allclose(value, expected["cmi_per_class"][c], rtol=1e-9, atol=1e-15)
        else:
            assert value is None


def test_figures_are_those_of_numpy_and_of_json():
    objective = ncmi()
    output, y = bags(40), torch.arange(40) % 2  # class 2 absent
    halves = [slice(0, 15), slice(15, 40)]
    pairs = [(SimpleNamespace(embedding=output.embedding[h], logits=None), y[h]) for h in halves]
    figures = objective.figures(iter(pairs))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    p, q = direct_p(objective, output), direct_nsf(2 * unit_prototypes("etf", C, 32).double())
    means = np.stack([p[y == c].mean(0) for c in (0, 1)])
    nearest = [
        np.argmin([[rel_entr(row, centroid).sum() for centroid in of] for row in p], axis=1)
        for of in (q, means)
    ]
    assert 0 < (nearest[0] != nearest[1]).mean() < 1
    assert figures["rule_disagreement"] == (nearest[0] != nearest[1]).mean()
    assert figures["concentration_by_class"][2] is None
    W, b = objective.projection.weight.detach().numpy(), objective.projection.bias.detach().numpy()
    f = output.embedding.numpy() @ W.T + b
    z = f / np.linalg.norm(f, axis=1, keepdims=True) / 0.5
    np.testing.assert_allclose(figures["saturation"], expit(-z.max(1)).mean(), rtol=1e-5)
    assert figures["centre_drift"] is None


def test_softmax_has_no_saturation_figure():
    assert ncmi(simplex="softmax").figures([(bags(), Y)])["saturation"] is None


def test_centre_drift_is_relative_to_the_last_call():
    objective, pairs = ncmi(center="ema", center_momentum=0.5), [(bags(), Y)]
    assert objective.figures(pairs)["centre_drift"] is None
    objective.after_step(bags(seed=1), Y)
    assert objective.figures(pairs)["centre_drift"] is None
    first = objective.centre.value.clone()
    for seed in (2, 3):
        objective.after_step(bags(seed=seed), Y)
    now = objective.centre.value
    expected = np.linalg.norm(now - first) / np.linalg.norm(now)
    np.testing.assert_allclose(objective.figures(pairs)["centre_drift"], expected, rtol=1e-5)
    assert objective.figures(pairs)["centre_drift"] == 0


# -- settings and use -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"centroids": "learned"}, "needs centroid_lr"),
        ({"centroid_lr": 0.1}, "does nothing with centroids=fixed"),
        ({"centroid_momentum": 0.1}, "does nothing with centroids=fixed"),
        ({"center_momentum": 0.9}, "does nothing with center=none"),
        ({"center": "ema", "center_momentum": 1.0}, "center_momentum=1.0"),
        ({"centroids": "learned", "centroid_lr": -1.0}, "centroid_lr=-1.0"),
        ({"eps": -1.0}, "eps=-1.0"),
    ],
)
def test_settings_that_are_idle_or_impossible_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ncmi(**settings)


def test_an_embedding_that_is_not_pooled_is_refused():
    maps = SimpleNamespace(embedding=torch.zeros(2, E, 7, 7), logits=None)
    with pytest.raises(TrainingError, match=r"shape \(2, 6, 7, 7\) .* pool it"):
        ncmi()(maps, Y[:2])


def test_a_plain_loop_trains_an_image_classifier():
    """A convolution and NCMI tell stripes from bars; the reference is the label."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 2
    stripe = torch.arange(8).remainder(2).float()
    clean = torch.where(y[:, None, None].bool(), stripe[None, :, None], stripe[None, None, :])
    images = clean[:, None] + 0.3 * torch.randn(64, 1, 8, 8, generator=g)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    objective = NCMI(2, 8, [16, 16])
    optimizer = torch.optim.Adam([*network.parameters(), *objective.parameters()], lr=0.02)
    for _ in range(40):
        output = SimpleNamespace(embedding=network(images[:32]))
        loss = objective(output, y[:32])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(output, y[:32])
    with torch.no_grad():
        objective.after_fit([(SimpleNamespace(embedding=network(images[:32])), y[:32])], None)
        p = objective.probabilities(SimpleNamespace(embedding=network(images[32:])))
    assert (p.argmax(1) == y[32:]).float().mean() > 0.95
