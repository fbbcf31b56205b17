"""ACMIL against its equations, and what masking does to the tiles with the most attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from wsi.aggregators.acmil import ACMIL
from wsi.data import pack
from wsi.errors import ConfigError

D, E, M, C = 5, 8, 3, 4
SIZES = (1, 6, 40)


def made(n_classes=C, **settings):
    torch.manual_seed(0)
    model = ACMIL(D, n_classes, hidden=E, attention_dim=6, branches=M, dropout=0.0, **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def packed(sizes=SIZES, y=True):
    rng = np.random.default_rng(0)
    return pack(
        [(rng.normal(size=(n, D)), i % C if y else None, str(i), None) for i, n in enumerate(sizes)]
    )


def paper(model, x):
    """Return h (N, E) and attention (N, M) of one bag."""
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    h = np.maximum(0, x @ w["embed.0.weight"].T + w["embed.0.bias"])
    content = np.tanh(h @ w["attention.content.weight"].T + w["attention.content.bias"])
    gate = expit(h @ w["attention.gate.weight"].T + w["attention.gate.bias"])
    return h, softmax((content * gate) @ w["attention.score.weight"].T, axis=0)


def bags(batch):
    return np.split(batch.x.double().numpy(), np.cumsum(batch.sizes)[:-1])


def test_the_bag_is_pooled_by_the_mean_of_the_branches():
    model, batch = made().eval(), packed()
    output = model(batch)
    parts = [paper(model, x) for x in bags(batch)]
    z = np.stack([a.mean(1) @ h for h, a in parts])
    np.testing.assert_allclose(output.embedding.detach(), z, atol=1e-5)
    attention = np.concatenate([a for _, a in parts])
    np.testing.assert_allclose(output.attention.detach(), attention, atol=1e-6)
    head = model.head
    logits = z @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(output.logits.detach(), logits, atol=1e-4)


def likeness(a):
    unit = a / np.linalg.norm(a, axis=0)
    return np.mean([unit[:, i] @ unit[:, j] for i in range(M) for j in range(i)])


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("n_classes", [C, None])
def test_the_auxiliary_loss_is_likeness_of_branches_and_their_cross_entropy(labelled, n_classes):
    model, batch = made(n_classes, masked_top=0).train(), packed(y=labelled)
    parts = [paper(model, x) for x in bags(batch)]
    expected = np.mean([likeness(a) for _, a in parts])
    if labelled and n_classes is not None:
        losses = []
        for i, (h, a) in enumerate(parts):
            for m, head in enumerate(model.branch_heads):
                w, b = (p.detach().double().numpy() for p in head.parameters())
                losses.append(-log_softmax(w @ (a[:, m] @ h) + b)[i % C])
        expected += np.mean(losses)
    assert model(batch).aux_loss.item() == pytest.approx(expected, rel=1e-5)


def test_masking_takes_a_share_of_the_most_attended_and_the_others_take_their_weight():
    model, batch = made(masked_top=10, masked_share=0.6), packed((40,))
    (whole,) = model.eval()(batch).attention.detach().split([40])
    top = [set(whole[:, m].topk(10).indices.tolist()) for m in range(M)]
    model.train()
    seen = [set() for _ in range(M)]
    for seed in range(30):
        torch.manual_seed(seed)
        a = model(batch).attention.detach()
        for m in range(M):
            masked = set((a[:, m] == 0).nonzero().squeeze(1).tolist())
            assert len(masked) == 6
            assert masked <= top[m]
            seen[m] |= masked
            rest = [i for i in range(40) if i not in masked]
            expected = whole[rest, m] / whole[rest, m].sum()
            torch.testing.assert_close(a[rest, m], expected)
    assert seen == top


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_tile_is_left_however_many_may_be_masked(n):
    model = made(masked_top=10, masked_share=1.0).train()
    output = model(packed((n,)))
    assert ((output.attention > 0).sum(0) == 1).all()
    output.logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_one_branch_has_nothing_to_differ_from():
    torch.manual_seed(0)
    model = ACMIL(D, None, hidden=E, branches=1).train()
    assert model(packed()).aux_loss.item() == 0


@pytest.mark.parametrize(
    "wrong", [{"branches": 0}, {"masked_top": -1}, {"masked_share": 1.5}], ids=str
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ACMIL(D, 2, **wrong)
