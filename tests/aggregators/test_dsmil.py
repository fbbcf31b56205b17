"""DSMIL against the paper's equations, one bag and class at a time in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from wsi.aggregators.dsmil import DSMIL
from wsi.data import pack
from wsi.errors import ConfigError

D, E, Q, C = 6, 8, 5, 3


def model_of(**settings):
    torch.manual_seed(0)
    return DSMIL(D, C, hidden=E, query_dim=Q, dropout=0.0, **settings)


def bags_of(sizes=(1, 4, 60)):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, D)) * 2, i % C, str(i), None) for i, n in enumerate(sizes)]


def paper(model, x):
    """Return (max logits, bag logits, embedding, attention) of one bag, eq. 4-7."""
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    h = np.maximum(0, x @ w["embed.0.weight"].T + w["embed.0.bias"])
    scores = h @ w["instance.weight"].T + w["instance.bias"]
    q = h @ w["query.0.weight"].T + w["query.0.bias"]
    if "query.2.weight" in w:
        q = np.tanh(np.maximum(0, q) @ w["query.2.weight"].T + w["query.2.bias"])
    highest, z, a = [], [], []
    for c in range(C):
        m = int(np.argmax(scores[:, c]))
        u = softmax([q[i] @ q[m] / np.sqrt(Q) for i in range(len(x))])
        highest.append(scores[m, c])
        z.append(sum(u[i] * h[i] for i in range(len(x))))
        a.append(u)
    z = np.concatenate(z)
    return np.array(highest), w["bag.weight"] @ z + w["bag.bias"], z, np.stack(a, axis=1)


@pytest.mark.parametrize("nonlinear", [True, False])
def test_output_is_the_papers_formula(nonlinear):
    model, bags = model_of(nonlinear=nonlinear).eval(), bags_of()
    output = model(pack(bags))
    highest, bag, z, a = zip(*(paper(model, x) for x, *_ in bags), strict=True)
    mean = (np.stack(highest) + np.stack(bag)) / 2
    np.testing.assert_allclose(output.logits.detach(), mean, atol=1e-5)
    np.testing.assert_allclose(output.embedding.detach(), np.stack(z), atol=1e-5)
    np.testing.assert_allclose(output.attention.detach(), np.concatenate(a), atol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_loss_is_the_mean_over_both_streams(weight):
    model, bags = model_of(stream_weight=weight).train(), bags_of()
    losses = []
    for x, y, *_ in bags:
        highest, bag, *_ = paper(model, x)
        losses.append(-(log_softmax(highest)[y] + log_softmax(bag)[y]) / 2)
    expected = weight * np.mean(losses)
    assert model(pack(bags)).aux_loss.item() == pytest.approx(expected, rel=1e-5)


def test_there_is_no_loss_without_labels_or_weight():
    unlabelled = pack([(x, None, s, None) for x, _, s, _ in bags_of()])
    assert model_of().train()(unlabelled).aux_loss is None
    assert model_of(stream_weight=0.0).train()(pack(bags_of())).aux_loss is None


def test_a_negative_weight_is_named():
    with pytest.raises(ConfigError, match="stream_weight=-1"):
        model_of(stream_weight=-1.0)
