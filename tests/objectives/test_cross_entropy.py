"""Cross-entropy against scikit-learn and torch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from wsi.errors import TrainingError
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
