"""DTFD against its equations, with pseudo-bags dealt by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from wsi.aggregators.dtfd import DTFD
from wsi.data import pack
from wsi.errors import ConfigError

D, E, C = 5, 8, 3
SIZES = (1, 3, 40)


def made(n_classes=C, **settings):
    torch.manual_seed(0)
    settings = {"pseudo_bags": 4, "dropout": 0.0, **settings}
    model = DTFD(D, n_classes, hidden=E, attention_dim=6, **settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def packed(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    return pack(
        [(rng.normal(size=(n, D)).astype(np.float32), i % C, str(i), None)
         for i, n in enumerate(sizes)]
    )  # fmt: skip


def scores(w, tier, h):
    content = np.tanh(h @ w[f"{tier}.content.weight"].T + w[f"{tier}.content.bias"])
    gate = expit(h @ w[f"{tier}.gate.weight"].T + w[f"{tier}.gate.bias"])
    return (content * gate) @ w[f"{tier}.score.weight"].T


def paper(model, x, of, distill):
    """Return (embedding, attention (N,), z of pseudo-bags) of a bag dealt as `of` (N,) says."""
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    h = np.maximum(0, x @ w["embed.0.weight"].T + w["embed.0.bias"])
    z, distilled, weights = [], [], []  # weights: what each distilled feature is made of
    for m in range(of.max() + 1):
        rows = np.flatnonzero(of == m)
        a = softmax(scores(w, "tier1", h[rows]), axis=0)
        z.append(a[:, 0] @ h[rows])
        if distill == "afs":
            distilled.append(z[-1])
            weights.append(np.zeros(len(x)))
            weights[-1][rows] = a[:, 0]
        else:
            p = softmax((a * h[rows]) @ w["tier1_head.weight"].T, axis=1)
            for c in range(p.shape[1]):
                distilled.append(h[rows[p[:, c].argmax()]])
                weights.append(np.eye(len(x))[rows[p[:, c].argmax()]])
    b = softmax(scores(w, "tier2", np.array(distilled)), axis=0)[:, 0]
    return b @ np.array(distilled), b @ np.array(weights), np.array(z)


def dealt_by_rank(x, pseudo_bags=4):
    direction = np.random.default_rng(0).standard_normal(D)
    rank = np.argsort(np.argsort(x.astype(np.float64) @ direction))
    return rank % min(pseudo_bags, len(x))


@pytest.mark.parametrize("distill", ["afs", "maxmin"])
def test_output_is_the_papers_equations(distill):
    model, batch = made(distill=distill).eval(), packed()
    output = model(batch)
    bags = np.split(batch.x.numpy(), np.cumsum(SIZES)[:-1])
    parts = [paper(model, x, dealt_by_rank(x), distill) for x in bags]
    np.testing.assert_allclose(
        output.embedding.detach(), np.stack([z for z, *_ in parts]), atol=1e-5
    )
    attention = np.concatenate([a for _, a, _ in parts])
    np.testing.assert_allclose(output.attention.detach()[:, 0], attention, atol=1e-6)


def test_of_two_classes_the_distilled_tiles_are_the_most_and_the_least_probable():
    model, batch = made(2, distill="maxmin", pseudo_bags=1).eval(), packed((40,))
    w = {k: v.double().numpy() for k, v in model.state_dict().items()}
    h = np.maximum(0, batch.x.numpy() @ w["embed.0.weight"].T + w["embed.0.bias"])
    a = softmax(scores(w, "tier1", h), axis=0)
    p = softmax((a * h) @ w["tier1_head.weight"].T, axis=1)[:, 1]
    shown = model(batch).attention[:, 0].detach().numpy()
    assert set(np.flatnonzero(shown)) == {p.argmax(), p.argmin()}


def test_in_training_tiles_are_dealt_anew_in_nearly_equal_parts():
    model, batch, seen = made().train(), packed((10,)), set()
    for seed in range(20):
        torch.manual_seed(seed)
        dealt = model._dealt(batch)
        assert sorted(dealt.order.tolist()) == list(range(10))
        assert sorted(dealt.sizes) == [2, 2, 3, 3]
        seen.add(tuple(dealt.order.tolist()))
    assert len(seen) == 20


def test_the_auxiliary_loss_is_the_mean_cross_entropy_of_the_pseudo_bags():
    model, batch = made().train(), packed()
    torch.manual_seed(3)
    dealt = model._dealt(batch)
    torch.manual_seed(3)
    got = model(batch).aux_loss.item()
    w, b = (p.detach().double().numpy() for p in model.tier1_head.parameters())
    rows, losses, m = np.split(dealt.order.numpy(), np.cumsum(dealt.sizes)[:-1]), [], 0
    for i, count in enumerate(dealt.counts):
        for row in rows[m : m + count]:
            x = batch.x.numpy()[row]
            z = paper(model, x, np.zeros(len(x), int), "afs")[2][0]
            losses.append(-log_softmax(w @ z + b)[i % C])
        m += count
    assert got == pytest.approx(np.mean(losses), rel=1e-5)


def test_every_pseudo_bag_is_a_sample_of_the_whole_bag_in_evaluation():
    x = np.random.default_rng(0).normal(size=(4000, D))
    x[:40] += 8  # one tile in a hundred
    model = made(pseudo_bags=5).eval()
    dealt = model._dealt(pack([(x, None, "s", None)]))
    parts = np.split(dealt.order.numpy(), np.cumsum(dealt.sizes)[:-1])
    assert all(4 <= (part < 40).sum() <= 12 for part in parts)


def test_without_a_head_tier_1_learns_from_tier_2():
    model = made(None).train()
    output = model(packed())
    assert output.aux_loss is None
    output.embedding.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_picking_by_class_needs_a_classifier():
    with pytest.raises(ConfigError, match=r"maxmin.*distill=afs"):
        made(None, distill="maxmin")
    with pytest.raises(ConfigError, match="pseudo_bags=0"):
        made(pseudo_bags=0)
