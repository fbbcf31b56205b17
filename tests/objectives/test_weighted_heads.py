"""Class weights of heads with fixed prototypes, against the formula written out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from wsi.objectives import OBJECTIVES

C, E, COUNTS = 3, 5, (8, 2, 5)
Y = torch.tensor([0, 1, 2, 1, 0, 0])


def built(name, **settings):
    torch.manual_seed(0)
    return OBJECTIVES.load(name)(C, E, COUNTS, **settings).double()


def scored(objective):
    output = SimpleNamespace(embedding=torch.randn(6, E, dtype=torch.float64), logits=None)
    return output, objective.own_scores(output).detach().numpy()


@pytest.mark.parametrize("name", ["ncmi_softmax", "cosine_pc"])
def test_balanced_weights_take_the_place_of_the_prior(name):
    objective = built(name, weight="balanced")
    output, scores = scored(objective)
    weights = 15 / (3 * np.array(COUNTS))
    of_label = -log_softmax(scores, axis=1)[np.arange(6), Y]
    assert objective(output, Y).item() == pytest.approx((weights[Y] * of_label).mean(), rel=1e-6)
    assert objective.predicts_prior == "uniform"


@pytest.mark.parametrize("name", ["ncmi_softmax", "cosine_pc"])
def test_without_weights_the_training_prior_is_in_the_loss(name):
    objective = built(name)
    output, scores = scored(objective)
    log_p = log_softmax(scores + np.log(np.array(COUNTS) / 15), axis=1)
    assert objective(output, Y).item() == pytest.approx(-log_p[np.arange(6), Y].mean(), rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"weight": [1.0, 2.0, 3.0]}, {"weight": "balanced", "prior": "training"}],
)
def test_scores_of_a_shifted_prior_are_said_to_have_none(settings):
    assert built("ncmi_softmax", **settings).predicts_prior is None
