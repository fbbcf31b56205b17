"""The ratio per rival against the direct formula."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import expit, rel_entr

from wsi.objectives.ncmi_harmonic import NCMIHarmonic

COUNTS = [40, 10, 25]


def nsf(z):
    s = expit(z)
    return s / s.sum(-1, keepdims=True)


def kl(p, q):
    return rel_entr(p[:, None], q[None]).sum(-1)


def test_loss_and_probabilities_are_those_of_the_ratios_to_each_rival(outputs):
    torch.manual_seed(0)
    objective, output, y = NCMIHarmonic(3, 6, COUNTS).double(), outputs(), np.arange(9) % 3
    W, b = (p.detach().numpy() for p in objective.head.projection.parameters())
    f = output.embedding.numpy() @ W.T + b
    p = nsf(f / np.linalg.norm(f, axis=1, keepdims=True) / 0.5)
    q = nsf(objective.head.prototypes.numpy() / 0.5)
    D = kl(q, q)[~np.eye(3, dtype=bool)].mean()
    d = kl(p, q) + 0.05 * D
    pi = np.array(COUNTS) / 75
    losses = []
    for i, own in enumerate(y):
        rivals = [c for c in range(3) if c != own]
        losses.append(np.log1p(sum(pi[c] / pi[own] * (d[i, own] / d[i, c]) ** 4 for c in rivals)))
    loss = objective(output, torch.from_numpy(y)).item()
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-6)
    share = d**-4
    expected = share / share.sum(1, keepdims=True)
    np.testing.assert_allclose(objective.probabilities(output).detach(), expected, rtol=1e-6)
