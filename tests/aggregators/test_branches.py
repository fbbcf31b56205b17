"""ABMIL with a branch per class, against the equations of ABMIL applied class by class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from wsi.aggregators.branches import MultiBranchABMIL
from wsi.aggregators.layers import segment_branches
from wsi.data import pack

D, E, C = 6, 8, 3


@pytest.mark.parametrize("gated", [True, False])
def test_each_class_pools_by_its_own_attention(gated):
    torch.manual_seed(0)
    model = MultiBranchABMIL(D, C, hidden=E, attention_dim=5, gated=gated).eval()
    bags = [np.random.default_rng(n).normal(size=(n, D)) * 2 for n in (1, 4, 90)]
    output = model(pack([(x, None, str(i), None) for i, x in enumerate(bags)]))
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    for i, x in enumerate(bags):
        h = np.maximum(0, x @ w["embed.0.weight"].T + w["embed.0.bias"])
        hidden = np.tanh(h @ w["attention.content.weight"].T + w["attention.content.bias"])
        if gated:
            hidden = hidden * expit(h @ w["attention.gate.weight"].T + w["attention.gate.bias"])
        for c in range(C):
            z = softmax(hidden @ w["attention.score.weight"][c]) @ h
            logit = w["head.each.weight"][c] @ z + w["head.each.bias"][c]
            assert output.logits[i, c].item() == pytest.approx(logit, abs=1e-5)
            part = output.embedding[i, c * E : (c + 1) * E].detach()
            np.testing.assert_allclose(part, z, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 5, 2), (1, 30_000, 4), (6,)], ids=str)
def test_branches_are_summed_within_each_bag(sizes):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(sum(sizes), 4, generator=g, dtype=torch.float64)
    w = torch.rand(sum(sizes), 3, generator=g, dtype=torch.float64)
    rows = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    expected = [w.numpy()[r].T @ h.numpy()[r] for r in rows]
    np.testing.assert_allclose(segment_branches(h, w, sizes), np.stack(expected), rtol=1e-10)
