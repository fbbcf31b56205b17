"""CLAM against its equations, written out per bag, class and tile in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from wsi.aggregators.clam import CLAMMB, CLAMSB
from wsi.data import pack
from wsi.errors import ConfigError

D, E, C = 6, 8, 3
SIZES = (1, 2, 3, 5, 9, 40)
BOTH = pytest.mark.parametrize("kind", [CLAMSB, CLAMMB])


def model_of(kind, **settings):
    torch.manual_seed(0)
    return kind(D, C, hidden=E, attention_dim=5, dropout=0.0, **settings)


def bags_of(sizes=SIZES):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, D)) * 2, i % C, str(i), None) for i, n in enumerate(sizes)]


def tiles_of(w, x):
    """Return h (N, E) and attention (N, H) of one bag by eq. 1 of Lu et al. 2021."""
    h = np.maximum(0, x @ w["embed.0.weight"].T + w["embed.0.bias"])
    content = np.tanh(h @ w["attention.content.weight"].T + w["attention.content.bias"])
    gate = expit(h @ w["attention.gate.weight"].T + w["attention.gate.bias"])
    return h, softmax((content * gate) @ w["attention.score.weight"].T, axis=0)


def weights_of(model):
    return {k: v.double().numpy() for k, v in model.state_dict().items()}


def tile_loss(scores, target, loss):
    if loss == "ce":
        return -log_softmax(scores)[target]
    # Berrada et al. 2018, top-1 smoothed with temperature 1 and margin 1
    terms = [np.exp(s + (c != target) - scores[target]) for c, s in enumerate(scores)]
    return np.log(np.sum(terms))


def clustering(w, bags, k, subtyping, loss):
    """Return the instance loss: the mean over bags of the loss on pseudo-labelled tiles."""
    of_bags = []
    for x, y, _, _ in bags:
        h, attention = tiles_of(w, x)
        of_classes = []
        for c in range(C):
            column = attention[:, c % attention.shape[1]]
            ranked = sorted(range(len(x)), key=lambda i, a=column: -a[i])
            top = min(k, max(len(x) // 2, 1))
            low = min(k, len(x) // 2)
            if c == y:
                labelled = [(i, 1) for i in ranked[:top]] + [(i, 0) for i in ranked[-low:] if low]
            elif subtyping:
                labelled = [(i, 0) for i in ranked[:top]]
            else:
                continue
            v, b = w[f"instances.classifiers.{c}.weight"], w[f"instances.classifiers.{c}.bias"]
            of_classes.append(np.mean([tile_loss(v @ h[i] + b, t, loss) for i, t in labelled]))
        of_bags.append(np.mean(of_classes))
    return np.mean(of_bags)


@BOTH
def test_output_is_the_papers_formula(kind):
    model, bags = model_of(kind).eval(), bags_of()
    output, w = model(pack(bags)), weights_of(model)
    for i, (x, *_) in enumerate(bags):
        h, a = tiles_of(w, x)
        z = [a[:, c % a.shape[1]] @ h for c in range(C)]  # the branch of the class, or the one
        head = "head.weight" if kind is CLAMSB else "head.each.weight"
        bias = w[head.replace("weight", "bias")]
        logits = [w[head][c] @ z[c] + bias[c] for c in range(C)]
        np.testing.assert_allclose(output.logits[i].detach(), logits, atol=1e-5)
        expected = z[0] if kind is CLAMSB else np.concatenate(z)
        np.testing.assert_allclose(output.embedding[i].detach(), expected, atol=1e-5)


@BOTH
@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize("loss", ["ce", "svm"])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_instance_loss_is_the_papers_with_k_clamped_to_the_bag(kind, subtyping, loss, k):
    model = model_of(
        kind, k_sample=k, subtyping=subtyping, instance_loss=loss, bag_weight=0.6
    ).train()
    bags = bags_of()
    expected = 0.4 / 0.6 * clustering(weights_of(model), bags, k, subtyping, loss)
    assert model(pack(bags)).aux_loss.item() == pytest.approx(expected, rel=1e-5)


@BOTH
def test_only_the_classifier_of_the_label_learns_without_subtyping(kind):
    model = model_of(kind).train()
    x, *_ = bags_of()[-1]
    model(pack([(x, 1, "s", None)])).aux_loss.backward()
    moved = [bool(c.weight.grad.abs().sum() > 0) for c in model.instances.classifiers]
    assert moved == [False, True, False]


@BOTH
def test_there_is_no_instance_loss_without_labels_or_weight(kind):
    unlabelled = pack([(x, None, s, None) for x, _, s, _ in bags_of()])
    assert model_of(kind).train()(unlabelled).aux_loss is None
    assert model_of(kind, bag_weight=1.0).train()(pack(bags_of())).aux_loss is None


def test_instance_classifiers_learn_which_tiles_make_a_bag_positive():
    rng = np.random.default_rng(1)
    model = model_of(CLAMSB, k_sample=2).train()
    bags = []
    for i in range(12):
        x = rng.normal(size=(12, D)) * 0.3
        if i % 2:
            x[:3, 0] += 3  # three telling tiles
        bags.append((x, i % 2, str(i), None))
    batch = pack(bags)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        output = model(batch)
        loss = torch.nn.functional.cross_entropy(output.logits, batch.y) + output.aux_loss
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        h = model.embed(torch.as_tensor(bags[1][0], dtype=torch.float32))
        p = model.instances.classifiers[1](h).softmax(-1)[:, 1]
    assert p[:3].min() > p[3:].max()


@BOTH
@pytest.mark.parametrize(
    "setting", [{"k_sample": 0}, {"bag_weight": 0.0}, {"bag_weight": 1.5}], ids=str
)
def test_impossible_settings_are_named(kind, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        model_of(kind, **setting)
