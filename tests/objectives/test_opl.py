"""Orthogonal projection loss against a loop over pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from torch.nn import functional

from wsi.objectives.opl import OPL

Y = [0, 1, 2, 0, 1, 0, 0]


def pair_means(z, y):
    same, different = [], []
    for i, j in combinations(range(len(y)), 2):
        (same if y[i] == y[j] else different).append(1 - cosine(z[i], z[j]))
    return np.mean(same), np.mean(different)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_is_that_of_the_pairs(outputs, sign):
    output, y = outputs(B=7), torch.tensor(Y)
    if sign < 0:  # opposite classes: d is negative, and costs as much as a positive one
        output.embedding = output.embedding * 0.1 + torch.tensor([1.0, -1.0, -1.0])[y][:, None]
    s, d = pair_means(output.embedding.numpy(), Y)
    assert sign > 0 or d < 0
    expected = functional.cross_entropy(output.logits, y).item() + 0.3 * (1 - s + 0.7 * abs(d))
    loss = OPL(3, 6, [4, 2, 2], weight=0.3, gamma=0.7)(output, y)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)


def test_aligned_classes_at_right_angles_cost_nothing(outputs):
    output, y = outputs(B=7), torch.tensor(Y)
    output.embedding = 3 * torch.eye(6, dtype=torch.float64)[y]
    loss = OPL(3, 6, [4, 2, 2])(output, y)
    torch.testing.assert_close(loss, functional.cross_entropy(output.logits, y))


def test_without_a_kind_of_pair_its_term_is_zero(outputs):
    output = outputs(B=3)
    z = output.embedding.numpy()
    for y, pairs in (([1, 1, 1], "same"), ([0, 1, 2], "different")):
        labels = torch.tensor(y)
        u = [1 - cosine(z[i], z[j]) for i, j in combinations(range(3), 2)]
        term = 1 - np.mean(u) if pairs == "same" else 0.5 * abs(np.mean(u))
        expected = functional.cross_entropy(output.logits, labels).item() + term
        loss = OPL(3, 6, [4, 2, 2])(output, labels)
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
