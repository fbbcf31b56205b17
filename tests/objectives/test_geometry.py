"""What NCMI and its neighbours are as functions of the cosine u to the own prototype."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from wsi.objectives.ncmi import ncmi_terms
from wsi.objectives.prototypes import unit_prototypes
from wsi.objectives.simplex import log_scaled_nsf, project

M = 32


def ncmi(f, y, C, T):
    """Return num / den (B,) of f (B, M) for fixed ETF prototypes of scale 1 / T."""
    theta = unit_prototypes("etf", C, M).double() / T
    prior = torch.full((C,), 1 / C, dtype=torch.float64)
    num, den = ncmi_terms(log_scaled_nsf(project(f, None, T)), log_scaled_nsf(theta), y, prior)
    return num / den


def agreement(f, C, T):
    """Return R2 of log NCMI against log C (1 - u) / (C - 1 + u), over bags f (B, M)."""
    y = torch.arange(len(f)) % C
    u = functional.cosine_similarity(f, unit_prototypes("etf", C, M).double()[y]).numpy()
    expected, found = np.log(C * (1 - u) / (C - 1 + u)), ncmi(f, y, C, T).log().numpy()
    return 1 - ((found - expected) ** 2).sum() / ((found - found.mean()) ** 2).sum()


def bags(C, n=2000):
    """Return bags at random angles to their prototypes, from far off to near."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(n, M, generator=g, dtype=torch.float64)
    length = 3 * torch.rand(n, 1, generator=g, dtype=torch.float64)
    return noise / M**0.5 + length * unit_prototypes("etf", C, M).double()[torch.arange(n) % C]


@pytest.mark.parametrize("C", [3, 4, 8])
def test_ncmi_is_a_function_of_the_cosine_for_zero_mean_features(C):
    f = bags(C)
    f = f - f.mean(1, keepdim=True)
    fits = [agreement(f, C, T) for T in (0.2, 0.5, 2.0, 8.0)]
    assert min(fits) >= 0.95
    assert fits[1] < fits[2] < fits[3]
    assert fits[3] > 0.9999


def test_features_of_one_sign_break_the_identity_until_their_mean_is_removed():
    """The normalised sigmoid does not see the mean, but the length by which f is divided does."""
    f = bags(4).relu()
    assert agreement(f, 4, 2.0) < 0.75
    assert agreement(f - f.mean(1, keepdim=True), 4, 2.0) > 0.99


def path(C):
    """Return f (n, M) on the arc from a wrong prototype to the right one, that of class 0."""
    theta = unit_prototypes("etf", C, M).double()
    share = torch.linspace(0.0, 0.995, 400, dtype=torch.float64)[:, None]
    f = functional.normalize((1 - share) * theta[1] + share * theta[0], dim=-1)
    return f, f @ theta.T


def slopes(loss, u):
    """Return -d loss / d u (n - 1,) between points, and u halfway."""
    return -(loss.diff() / u.diff()).numpy(), ((u[1:] + u[:-1]) / 2).numpy()


@pytest.mark.parametrize("C", [3, 4, 8])
def test_the_slope_of_ncmi_hardly_tells_wrong_bags_from_right_ones(C):
    """(C / (C - 1 + u))^2: from 2.25 at a wrong prototype to 1 at the right one for C = 4."""
    f, u = path(C)
    slope, at = slopes(ncmi(f, torch.zeros(len(f), dtype=torch.int64), C, T=8.0), u[:, 0])
    np.testing.assert_allclose(slope, (C / (C - 1 + at)) ** 2, rtol=0.02)
    if C == 4:
        assert slope[0] == pytest.approx(2.25, abs=0.05)
        assert slope[-1] == pytest.approx(1, abs=0.05)


def test_the_slope_of_a_softmax_looks_at_wrong_bags_alone():
    """From 1 / T at a wrong prototype to nothing at the right one."""
    T = 0.067
    _, u = path(4)
    y = torch.zeros(len(u), dtype=torch.int64)
    slope, _ = slopes(functional.cross_entropy(u / T, y, reduction="none"), u[:, 0])
    assert slope[0] == pytest.approx(1 / T, rel=0.02)
    assert slope[-1] < 0.01
