"""Additive MIL against its equations, one tile at a time in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from wsi.aggregators.additive import AdditiveMIL
from wsi.data import pack

D, E, G, C = 6, 8, 7, 3


def model_of(n_classes: int | None = C, **settings):
    torch.manual_seed(0)
    return AdditiveMIL(D, n_classes, hidden=E, scored=G, attention_dim=5, **settings).eval()


def bags_of(sizes=(1, 4, 90)):
    return [np.random.default_rng(n).normal(size=(n, D)) * 3 for n in sizes]


def packed(bags):
    return pack([(x, None, str(i), None) for i, x in enumerate(bags)])


def paper(model, x):
    """Return (contribution of each tile (N, C), attention) of one bag, eq. 4-5.

    The score of a tile is a network of what attention leaves of it; its value at nothing is
    taken off, and the last bias is shared out by attention.
    """
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    h = np.maximum(0, x @ w["embed.0.weight"].T + w["embed.0.bias"])
    content = np.tanh(h @ w["attention.content.weight"].T + w["attention.content.bias"])
    gate = expit(h @ w["attention.gate.weight"].T + w["attention.gate.bias"])
    a = softmax((content * gate) @ w["attention.score.weight"].T, axis=0)[:, 0]

    def score(v):
        hidden = np.maximum(0, w["score.weight"] @ v + w["score.bias"])
        return w["head.weight"] @ hidden

    tiles = [score(a[i] * h[i]) - score(0 * h[i]) + a[i] * w["head.bias"] for i in range(len(x))]
    return np.stack(tiles), a


def test_evidence_and_logits_are_the_papers_formula():
    model, bags = model_of(), bags_of()
    output = model(packed(bags))
    evidence, attention = zip(*(paper(model, x) for x in bags), strict=True)
    np.testing.assert_allclose(output.evidence.detach(), np.concatenate(evidence), atol=1e-6)
    np.testing.assert_allclose(output.attention.detach()[:, 0], np.concatenate(attention), 1e-4)
    sums = [part.sum(axis=0) for part in evidence]
    np.testing.assert_allclose(output.logits.detach(), np.stack(sums), atol=1e-5)


def test_logits_are_additive_but_no_weighted_mean_of_single_tiles():
    model, (_, x, _) = model_of(), bags_of()
    output = model(packed([x]))
    alone = model(packed([x[i : i + 1] for i in range(len(x))])).logits
    weighted = (output.attention * alone).sum(0)
    assert (weighted - output.logits[0]).abs().max() > 1e-3


def test_tiles_without_attention_add_nothing_however_many():
    model = model_of()
    with torch.no_grad():
        model.embed[0].weight.zero_()
        model.embed[0].bias.zero_()
        model.embed[0].weight[0, 0] = 1.0  # h_1 = max(x_1, 0)
        model.attention.content.weight.zero_()
        model.attention.content.bias.zero_()
        model.attention.content.weight[:, 0] = 1.0
        model.attention.score.weight.fill_(100.0)
    telling, blank = np.eye(D)[:1] * 3, np.zeros((5000, D))
    alone = model(packed([telling])).logits
    among = model(packed([np.concatenate([telling, blank])])).logits
    torch.testing.assert_close(among, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n", [100, 20_000])
def test_half_precision_keeps_what_single_tiles_of_a_large_bag_add(n):
    model = model_of()
    batch = packed([np.random.default_rng(0).normal(size=(n, D)) * 3])
    with torch.no_grad():
        full = model(batch).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(batch).logits
    torch.testing.assert_close(half.float(), full, atol=0.02, rtol=0.05)


def test_there_is_no_evidence_without_a_head_or_under_dropout():
    assert model_of(None)(packed(bags_of())).evidence is None
    assert model_of().train()(packed(bags_of())).evidence is None
