"""Top-k pooling against sorting, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi.aggregators.topk import TopK
from wsi.data import pack
from wsi.errors import ConfigError

D, E, C = 5, 7, 3
SIZES = (1, 3, 40)


def model_of(n_classes, k):
    torch.manual_seed(0)
    return TopK(D, n_classes, hidden=E, k=k, dropout=0.0).eval()


def bags_of():
    return [np.random.default_rng(n).normal(size=(n, D)) * 2 for n in SIZES]


def packed(bags):
    return pack([(x, None, str(i), None) for i, x in enumerate(bags)])


def features(model, x):
    w, b = (p.detach().double().numpy() for p in model.embed[0].parameters())
    return np.maximum(0, x @ w.T + b)


@pytest.mark.parametrize("k", [1, 2, 10, 1000])
def test_logits_are_the_mean_of_the_highest_tile_scores_of_each_class(k):
    model = model_of(C, k)
    output = model(packed(bags_of()))
    w, b = (p.detach().double().numpy() for p in model.head.each.parameters())
    for i, x in enumerate(bags_of()):
        h = features(model, x)
        scores = h @ w.T + b
        expected = np.sort(scores, axis=0)[::-1][:k].mean(axis=0)
        np.testing.assert_allclose(output.logits[i].detach(), expected, atol=1e-5)
        chosen = [np.argsort(-scores[:, c])[:k] for c in range(C)]
        z = np.concatenate([h[rows].mean(axis=0) for rows in chosen])
        np.testing.assert_allclose(output.embedding[i].detach(), z, atol=1e-5)


def test_attention_and_evidence_are_of_the_chosen_tiles_alone():
    output = model_of(C, 4)(packed(bags_of()))
    last = output.attention[-40:]
    assert ((last > 0).sum(0) == 4).all()
    assert torch.equal(output.evidence[-40:] != 0, last > 0)


@pytest.mark.parametrize("k", [1, 2, 1000])
def test_without_a_head_each_feature_has_its_own_highest_tiles(k):
    model = model_of(None, k)
    output = model(packed(bags_of()))
    for i, x in enumerate(bags_of()):
        expected = np.sort(features(model, x), axis=0)[::-1][:k].mean(axis=0)
        np.testing.assert_allclose(output.embedding[i].detach(), expected, atol=1e-5)


def test_tiles_that_were_not_chosen_learn_nothing():
    model, batch = model_of(C, 2), packed(bags_of()[-1:])
    batch.x.requires_grad_()
    output = model(batch)
    output.logits.sum().backward()
    chosen = (output.attention > 0).any(1)
    assert torch.equal((batch.x.grad != 0).any(1), chosen)


def test_no_tiles_at_all_is_an_error():
    with pytest.raises(ConfigError, match="k=0"):
        model_of(C, 0)
