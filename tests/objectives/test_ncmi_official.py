"""NCMI as published, composed from the reference vectors and numpy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr

from wsi.errors import ConfigError
from wsi.objectives.centre import Centre
from wsi.objectives.ncmi import NCMI
from wsi.objectives.simplex import log_nsf, project

_FILE = Path(__file__).parent / "vectors" / "ncmi_vectors.json"
VECTORS = {v["name"]: v for v in json.loads(_FILE.read_text())["vectors"]}
TYPES = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


@pytest.fixture(params=TYPES, ids=["float64", "float32"])
def kind(request):
    """The type of everything made in the test, and the tolerance asked of it."""
    dtype, rtol = request.param
    torch.set_default_dtype(dtype)
    yield dtype, rtol
    torch.set_default_dtype(torch.float32)


def close(actual, expected, rtol):
    expected = np.asarray(expected, dtype=np.float64)
    actual = actual.detach().double().numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


def bags(f):
    return SimpleNamespace(embedding=f, logits=None)


def nsf(z):
    s = expit(np.asarray(z, dtype=np.float64))
    return s / s.sum(-1, keepdims=True)


def published_loss(z, theta, y):
    """The sample form, bag by bag and class by class."""
    p, q, C = nsf(z), nsf(theta), len(theta)
    ratios = []
    for row, own in zip(p, y, strict=True):
        apart = sum(rel_entr(q[c], row).sum() for c in range(C) if c != own) / C
        ratios.append((rel_entr(row, q[own]).sum() + 1e-10) / apart)
    return np.mean(ratios)


def axes(C, m):
    return 10 * np.eye(C, m) + 1e-6


@pytest.mark.parametrize("name", ["project_zero_vector", "project_center", "project_temperature"])
def test_projection_matches_the_vectors(name, kind):
    dtype, rtol = kind
    given = VECTORS[name]["in"]
    mu = None if given["mu"] is None else torch.tensor(given["mu"], dtype=dtype)
    z = project(torch.tensor(given["f"], dtype=dtype), mu, given["T"])
    expected = VECTORS[name]["out"]
    if np.abs(expected["z"]).max() > 0:
        close(z, expected["z"], rtol)
    close(log_nsf(z), expected["log_nsf"], rtol)


@pytest.mark.parametrize("name", ["ema_center_0.9", "ema_center_0.999"])
@pytest.mark.parametrize("first_copy", [True, False])
def test_moving_centre_matches_the_vectors(name, first_copy, kind):
    dtype, rtol = kind
    given, out = VECTORS[name]["in"], VECTORS[name]["out"]
    centre = Centre(3, "ema", momentum=given["decay"], first_copy=first_copy)
    expected = out["first_copy" if first_copy else "bias_corrected"]
    for batch, mu in zip(given["batches"], expected, strict=True):
        centre.average(torch.tensor(batch, dtype=dtype).double().mean(0))
        close(centre(), mu, rtol)


@pytest.mark.parametrize("name", ["ncmi_T02", "ncmi_m512", "ncmi_bs1"])
def test_official_loss_on_embeddings_of_the_vectors(name, kind):
    """The objective is handed z as embedding; its centre is the first batch's mean."""
    dtype, rtol = kind
    z, y = np.array(VECTORS[name]["in"]["z"]), VECTORS[name]["in"]["y"]
    C, m = len(VECTORS[name]["in"]["theta"]), z.shape[1]
    objective = NCMI(C, m, [1] * C, official=True)
    first = np.array(VECTORS["ncmi_T02"]["in"]["z"])[:, :m] if m == 8 else z + 1.0
    objective(bags(torch.tensor(first, dtype=dtype)), torch.zeros(len(first), dtype=torch.int64))
    objective.eval()  # the centre stays
    loss = objective(bags(torch.tensor(z, dtype=dtype)), torch.tensor(y))
    centred = z - first.mean(0)
    direction = centred / np.linalg.norm(centred, axis=1, keepdims=True) / 0.2
    close(loss, published_loss(direction, axes(C, m), y), rtol)


@pytest.mark.parametrize("name", ["ncmi_T02", "ncmi_m512", "ncmi_bs1"])
def test_official_terms_are_those_of_the_vectors(name, kind):
    """With the vector's z and theta in place of ours, the loss is the vector's."""
    dtype, rtol = kind
    case = VECTORS[name]
    C, m = np.shape(case["in"]["theta"])
    objective = NCMI(C, m, [1] * C, official=True).eval()
    theta = torch.tensor(case["in"]["theta"], dtype=dtype)
    objective.centroids.b.copy_(objective._log_scaled(theta))
    norm = np.linalg.norm(case["in"]["z"], axis=1, keepdims=True)
    objective._temperature = torch.tensor(1 / norm, dtype=dtype)  # undoes the normalisation
    z = torch.tensor(case["in"]["z"], dtype=dtype)
    close(objective(bags(z), torch.tensor(case["in"]["y"])), case["out"]["loss_sample"], rtol)


def test_official_centre_moves_before_it_is_used(kind):
    dtype, rtol = kind
    batches = VECTORS["ema_center_0.9"]["in"]["batches"]
    mus = VECTORS["ema_center_0.9"]["out"]["first_copy"]
    objective = NCMI(3, 3, [1, 1, 1], official=True, center_momentum=0.9)
    for batch, mu in zip(batches, mus, strict=True):
        y = np.arange(len(batch)) % 3
        loss = objective(bags(torch.tensor(batch, dtype=dtype)), torch.from_numpy(y))
        objective.after_step(bags(torch.tensor(batch, dtype=dtype)), torch.from_numpy(y))
        close(objective.centre(), mu, rtol)
        centred = np.array(batch) - mu
        z = centred / np.linalg.norm(centred, axis=1, keepdims=True) / 0.2
        close(loss, published_loss(z, axes(3, 3), y), rtol)


def test_official_centroids_never_train():
    objective = NCMI(4, 8, [1] * 4, official=True)
    expected = np.log(8 * nsf(axes(4, 8)))
    f, y = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    for _ in range(3):
        objective(bags(f), y)
        objective.after_step(bags(f), y)
    np.testing.assert_allclose(objective.centroids.b, expected, atol=1e-5)
    assert list(objective.parameters()) == []


def test_official_first_batch_of_one_explodes_as_published_and_ours_does_not():
    f, y = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1])
    norms = {}
    for official in (True, False):
        objective = NCMI(4, 8, [1] * 4, official=official, center="ema")
        embedding = f.clone().requires_grad_()
        loss = objective(bags(embedding), y)
        loss.backward()
        assert loss.isfinite()
        norms[official] = embedding.grad.norm().item()
    assert 1e11 < norms[True] < 1e14
    assert norms[False] < 10


def test_official_on_a_zero_vector_is_uniform_and_finite():
    """Uniform p is the vector project_zero_vector."""
    objective = NCMI(3, 4, [1] * 3, official=True).eval()
    f = torch.zeros(1, 4, requires_grad=True)
    np.testing.assert_allclose(objective.points(bags(f)).detach() / 4, [[0.25] * 4], rtol=1e-6)
    loss = objective(bags(f), torch.tensor([2]))
    loss.backward()
    np.testing.assert_allclose(
        loss.item(), published_loss(np.zeros((1, 4)), axes(3, 4), [2]), rtol=1e-5
    )
    assert f.grad.isfinite().all()


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.5},
        {"form": "ratio"},
        {"prototypes": "etf"},
        {"centroids": "learned", "centroid_lr": 1e-3},
        {"center": "none"},
        {"balanced": True},
        {"eps": 1e-4},
        {"m": 32},
        {"simplex": "softmax"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_official_refuses_settings_that_contradict_it(setting):
    with pytest.raises(ConfigError, match=f"official=true .* {next(iter(setting))}="):
        NCMI(4, 8, [1] * 4, official=True, **setting)


def test_official_takes_its_own_values_when_spelt_out():
    spelt = {"temperature": 0.2, "prototype_scale": 10.0, "balanced": False, "m": 8}
    assert NCMI(4, 8, [1] * 4, official=True, **spelt).projection(torch.ones(1, 8)).shape == (1, 8)
