"""ABMIL against the paper's formulas, written out per bag in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from wsi.aggregators.abmil import ABMIL
from wsi.data import pack
from wsi.errors import ConfigError


def paper(model, x, *, gated, heads):
    """Return (embedding, logits, attention) of one bag by eq. 7-9 of Ilse et al. 2018."""
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    h = np.maximum(0, x @ w["embed.0.weight"].T + w["embed.0.bias"])
    hidden = np.tanh(h @ w["attention.content.weight"].T + w["attention.content.bias"])
    if gated:
        hidden = hidden * expit(h @ w["attention.gate.weight"].T + w["attention.gate.bias"])
    a = softmax(hidden @ w["attention.score.weight"].T, axis=0)
    width = h.shape[1] // heads
    z = np.concatenate([a[:, k] @ h[:, k * width : (k + 1) * width] for k in range(heads)])
    return z, z @ w["head.weight"].T + w["head.bias"], a


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("heads", [1, 4])
def test_output_is_the_papers_formula(gated, heads):
    torch.manual_seed(0)
    model = ABMIL(6, 3, hidden=8, attention_dim=5, gated=gated, heads=heads).eval()
    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(n, 6)) * 2 for n in (1, 4, 90)]
    output = model(pack([(x, None, str(i), None) for i, x in enumerate(bags)]))
    expected = [paper(model, x, gated=gated, heads=heads) for x in bags]
    embedding, logits, attention = (list(parts) for parts in zip(*expected, strict=True))
    np.testing.assert_allclose(output.embedding.detach(), np.stack(embedding), atol=1e-5)
    np.testing.assert_allclose(output.logits.detach(), np.stack(logits), atol=1e-5)
    np.testing.assert_allclose(output.attention.detach(), np.concatenate(attention), atol=1e-6)


def test_heads_must_divide_the_hidden_width():
    with pytest.raises(ConfigError, match="heads=3 does not divide hidden=8 — take 2 or 4 heads"):
        ABMIL(6, 2, hidden=8, heads=3)
