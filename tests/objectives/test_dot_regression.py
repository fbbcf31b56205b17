"""Regression of the cosine against the direct formula."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.utils.class_weight import compute_class_weight

from wsi.objectives.dot_regression import DotRegression

Y = np.array([0] * 5 + [1] + [2] * 3)


def test_the_loss_is_the_balanced_square_of_what_the_cosine_lacks(outputs):
    torch.manual_seed(0)
    objective, output = DotRegression(3, 6, [5, 1, 3]).double(), outputs()
    W, b = (p.detach().numpy() for p in objective.head.projection.parameters())
    u = cosine_similarity(output.embedding.numpy() @ W.T + b, objective.head.prototypes.numpy())
    w = compute_class_weight("balanced", classes=np.arange(3), y=Y)[Y]
    expected = np.mean(w * (1 - u[np.arange(9), Y]) ** 2 / 2)
    loss = objective(output, torch.from_numpy(Y)).item()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    order = objective.probabilities(output).detach().numpy().argsort(1)
    np.testing.assert_array_equal(order, u.argsort(1))
