"""Cross-entropy against scikit-learn and torch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from wsi.errors import ConfigError, TrainingError
from wsi.objectives.cross_entropy import CrossEntropy


def outputs(n=9, C=3):
    logits = torch.randn(n, C, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(embedding=torch.zeros(n, 4), logits=logits)


def test_loss_and_probabilities_are_those_of_scikit_learn():
    objective, output = CrossEntropy(3, 4, [1, 1, 1]), outputs()
    y = np.arange(9) % 3
    p = objective.probabilities(output).numpy()
    loss = objective(output, torch.from_numpy(y)).item()
    np.testing.assert_allclose(loss, log_loss(y, p, labels=[0, 1, 2]), rtol=1e-5)


def test_balanced_weights_multiply_each_bag_and_the_mean_stays_plain():
    labels = np.array([0] * 6 + [1] * 2 + [2] * 4)
    objective, output = CrossEntropy(3, 4, [6, 2, 4], weight="balanced"), outputs(12)
    weights = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    p = torch.softmax(output.logits.double(), -1).numpy()
    expected = np.mean(weights[labels] * -np.log(p[np.arange(12), labels]))
    np.testing.assert_allclose(
        objective(output, torch.from_numpy(labels)).item(), expected, rtol=1e-5
    )


def test_the_weight_does_not_cancel_for_a_single_bag():
    output, y = outputs(1), torch.tensor([1])
    balanced = CrossEntropy(3, 4, [6, 2, 4], weight="balanced")(output, y)
    plain = torch.nn.functional.cross_entropy(output.logits, y)
    np.testing.assert_allclose((balanced / plain).item(), 12 / (3 * 2), rtol=1e-5)


def test_an_output_without_logits_is_refused():
    with pytest.raises(TrainingError, match="needs class logits"):
        CrossEntropy(3, 4, [1, 1, 1])(
            SimpleNamespace(embedding=torch.zeros(1, 4), logits=None), torch.tensor([0])
        )


def test_label_smoothing_is_that_of_torch():
    output, y = outputs(), torch.arange(9) % 3
    loss = CrossEntropy(3, 4, [1, 1, 1], label_smoothing=0.2)(output, y)
    t = 0.8 * np.eye(3)[y.numpy()] + 0.2 / 3
    log_p = np.log(torch.softmax(output.logits.double(), -1).numpy())
    np.testing.assert_allclose(loss.item(), -(t * log_p).sum(1).mean(), rtol=1e-5)


def test_weights_may_be_given_per_class():
    output, y = outputs(), np.arange(9) % 3
    weights = np.array([1.0, 5.0, 0.5])
    log_p = np.log(torch.softmax(output.logits.double(), -1).numpy())
    loss = CrossEntropy(3, 4, [1, 1, 1], weight=[1.0, 5.0, 0.5])(output, torch.from_numpy(y))
    expected = np.mean(weights[y] * -log_p[np.arange(9), y])
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "prior"),
    [
        ({}, "training"),
        ({"weight": "balanced"}, "uniform"),
        ({"weight": [1.0, 2.0, 3.0]}, None),
        ({"label_smoothing": 0.1}, None),
    ],
)
def test_it_says_under_which_prior_its_probabilities_are_meant(settings, prior):
    assert CrossEntropy(3, 4, [6, 2, 4], **settings).own_prior == prior


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"weight": [1.0, 2.0]}, "2 weights for 3 classes"),
        ({"weight": [1.0, 0.0, 2.0]}, "every weight must be above 0"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5 must be within 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        CrossEntropy(3, 4, [1, 1, 1], **settings)
