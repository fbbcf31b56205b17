"""The hybrid of a head and NCMI against both parts by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from wsi.errors import ConfigError
from wsi.objectives.hybrid import Hybrid
from wsi.objectives.ncmi import NCMI

Y = torch.tensor([0, 2, 1, 0, 2, 1])


def output():
    g = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        embedding=torch.randn(6, 8, generator=g, requires_grad=True),
        logits=torch.randn(6, 3, generator=g, requires_grad=True),
    )


def test_loss_is_cross_entropy_plus_weighted_ncmi():
    bags, losses = output(), {}
    for weight in (0.0, 1.0, 3.0):
        torch.manual_seed(0)
        losses[weight] = Hybrid(3, 8, [2, 2, 2], weight=weight, form="ratio")(bags, Y).item()
    ce = -log_softmax(bags.logits.detach().numpy(), axis=1)[np.arange(6), Y].mean()
    torch.manual_seed(0)
    ncmi = NCMI(3, 8, [2, 2, 2], form="ratio")(bags, Y).item()
    assert ncmi > 0.1
    np.testing.assert_allclose(losses[0.0], ce, rtol=1e-6)
    np.testing.assert_allclose(losses[1.0], ce + ncmi, rtol=1e-6)
    np.testing.assert_allclose(losses[3.0], ce + 3 * ncmi, rtol=1e-6)


def test_both_parts_reach_the_network():
    bags = output()
    Hybrid(3, 8, [2, 2, 2])(bags, Y).backward()
    assert bags.embedding.grad.abs().sum() > 0
    assert bags.logits.grad.abs().sum() > 0


def test_the_head_decides():
    bags = output()
    p = Hybrid(3, 8, [2, 2, 2]).probabilities(bags).detach()
    np.testing.assert_allclose(p, softmax(bags.logits.detach().double().numpy(), axis=1))


def test_its_ncmi_moves_and_reports_as_ncmi_does():
    objective = Hybrid(3, 8, [2, 2, 2], centroids="learned", centroid_lr=0.1, center="fixed")
    bags = output()
    objective.before_fit(iter([(bags, Y)]))
    expected = objective.ncmi.projection(bags.embedding).mean(0).detach()
    np.testing.assert_allclose(objective.ncmi.centre.value, expected, atol=1e-6)
    before = objective.ncmi.centroids.b.clone()
    objective.after_step(bags, Y)
    assert not torch.equal(before, objective.ncmi.centroids.b)
    assert objective.figures([(bags, Y)]) == objective.ncmi.figures([(bags, Y)]) != {}


def test_a_head_without_logits_is_refused():
    with pytest.raises(ConfigError, match="head=ncmi has no logits — take one of ce"):
        Hybrid(3, 8, [2, 2, 2], head="ncmi")
    with pytest.raises(ConfigError, match="head=hybrid"):
        Hybrid(3, 8, [2, 2, 2], head="hybrid")
    with pytest.raises(ConfigError, match=r"unknown objective 'cee' \(did you mean 'ce'\?\)"):
        Hybrid(3, 8, [2, 2, 2], head="cee")


def test_errors_of_its_parts_name_hybrid():
    with pytest.raises(ConfigError, match=r"hybrid: ncmi: temperature=-1\.0 must be above 0"):
        Hybrid(3, 8, [2, 2, 2], temperature=-1.0)
