"""Cosine softmax with learned vectors against scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity

from wsi.objectives.cosine_ce import CosineCE


def test_loss_and_probabilities_are_those_of_the_formula(outputs):
    torch.manual_seed(0)
    objective, output, y = (
        CosineCE(3, 6, [4, 2, 2], temperature=0.2).double(),
        outputs(),
        np.arange(9) % 3,
    )
    u = cosine_similarity(output.embedding.numpy(), objective.vectors.detach().numpy())
    p = softmax(u / 0.2, axis=1)
    np.testing.assert_allclose(objective.probabilities(output).detach(), p, rtol=1e-10)
    loss = objective(output, torch.from_numpy(y)).item()
    np.testing.assert_allclose(loss, log_loss(y, p), rtol=1e-10)


def test_the_length_of_an_embedding_does_not_matter(outputs):
    objective, output = CosineCE(3, 6, [4, 2, 2]).double(), outputs()
    before = objective.own_scores(output)
    output.embedding = output.embedding * torch.linspace(0.01, 100, 9)[:, None]
    torch.testing.assert_close(objective.own_scores(output), before, rtol=1e-9, atol=1e-9)


def test_an_embedding_of_zeros_is_finite(outputs):
    objective, output = CosineCE(3, 6, [4, 2, 2]).double(), outputs(B=1)
    output.embedding = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    objective(output, torch.tensor([1])).backward()
    assert output.embedding.grad.isfinite().all()
