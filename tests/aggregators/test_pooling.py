"""Poolings per feature against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from wsi.aggregators.pooling import LSEPooling, MaxPooling, MeanPooling
from wsi.data import pack
from wsi.errors import ConfigError


@pytest.mark.parametrize(("kind", "pool"), [(MeanPooling, np.mean), (MaxPooling, np.max)])
def test_embedding_is_numpys_pooling_of_each_bag(kind, pool):
    torch.manual_seed(0)
    model = kind(5, 2, hidden=7).eval()
    bags = [np.random.default_rng(n).normal(size=(n, 5)) for n in (1, 3, 40)]
    output = model(pack([(x, None, str(i), None) for i, x in enumerate(bags)]))
    w, b = (p.detach().double().numpy() for p in model.embed[0].parameters())
    expected = np.stack([pool(np.maximum(0, x @ w.T + b), axis=0) for x in bags])
    np.testing.assert_allclose(output.embedding.detach(), expected, atol=1e-5)
    logits = expected @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    np.testing.assert_allclose(output.logits.detach(), logits, atol=1e-5)


def lse_of(r, bags):
    """Return (embedding by the model, tile features per bag)."""
    torch.manual_seed(0)
    model = LSEPooling(5, 2, hidden=7, r=r).eval()
    output = model(pack([(x, None, str(i), None) for i, x in enumerate(bags)]))
    w, b = (p.detach().double().numpy() for p in model.embed[0].parameters())
    return output.embedding.detach().numpy(), [np.maximum(0, x @ w.T + b) for x in bags]


@pytest.mark.parametrize("r", [0.1, 1.0, 20.0])
def test_lse_is_the_papers_formula(r):
    bags = [np.random.default_rng(n).normal(size=(n, 5)) for n in (1, 3, 40)]
    embedding, features = lse_of(r, bags)
    expected = [logsumexp(r * h, axis=0, b=1 / len(h)) / r for h in features]
    np.testing.assert_allclose(embedding, np.stack(expected), atol=1e-5)


def test_lse_lies_between_mean_and_maximum_and_reaches_both():
    bags = [np.random.default_rng(1).normal(size=(30, 5))]
    mean, most = lse_of(1e-3, bags), lse_of(1e4, bags)
    np.testing.assert_allclose(mean[0][0], mean[1][0].mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(most[0][0], most[1][0].max(axis=0), atol=1e-3)


def test_lse_of_large_features_does_not_overflow():
    embedding, features = lse_of(5.0, [1e4 * np.random.default_rng(2).normal(size=(30, 5))])
    np.testing.assert_allclose(embedding[0], features[0].max(axis=0), rtol=1e-3, atol=1.0)


@pytest.mark.parametrize("r", [0.0, -1.0, float("inf")])
def test_lse_needs_a_sharpness(r):
    with pytest.raises(ConfigError, match="lse: r="):
        LSEPooling(5, 2, r=r)
