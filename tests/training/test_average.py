"""The moving average of weights against the recursion written out, and its place in a fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi.data import from_arrays
from wsi.specs import Config, FitSpec
from wsi.training.average import WeightAverage
from wsi.training.loop import fit
from wsi.training.model import build

D = 6


def toy(n, seed=0):
    rng = np.random.default_rng(seed)
    bags = {f"{seed}-{i}": rng.normal(i % 2, 1, (5, D)).astype(np.float32) for i in range(n)}
    return from_arrays(bags, np.arange(n) % 2)


def model_of(objective="ce"):
    aggregator = {"name": "abmil", "hidden": 8, "attention_dim": 4, "dropout": 0.0}
    config = Config.model_validate({"aggregator": aggregator, "objective": objective})
    return build(config, D, ["no", "yes"], [10, 10])


def weights(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


def moved(model, seed):
    """Change every weight as a step would."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g))


def test_the_average_is_the_recursion():
    model, decay = model_of(), 0.5
    average, expected = WeightAverage(model, decay), weights(model)
    for t in range(12):
        moved(model, t)
        average.update(model)
        kept = min(decay, (1 + t) / (10 + t))  # 1/10, 2/11, ... until it is the decay
        expected = kept * expected + (1 - kept) * weights(model)
    np.testing.assert_allclose(weights(average.model), expected, rtol=1e-4, atol=1e-5)


def test_buffers_are_those_of_the_model_even_when_replaced():
    model = model_of("ncmi")
    average = WeightAverage(model, 0.9)
    model.feature_mean.fill_(3.0)
    model.feature_scale = torch.full((D,), 7.0)
    average.update(model)
    for (name, mine), theirs in zip(average.model.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(mine, theirs), name
    assert average.model.feature_mean[0] == 3.0


def test_it_goes_on_from_its_state_bit_by_bit():
    whole, cut = model_of(), model_of()
    through, before = WeightAverage(whole, 0.9), WeightAverage(cut, 0.9)
    for t in range(3):
        moved(whole, t)
        moved(cut, t)
        through.update(whole)
        before.update(cut)
    after = WeightAverage(cut, 0.9)
    after.load_state_dict(before.state_dict())
    for t in range(3, 6):
        moved(whole, t)
        moved(cut, t)
        through.update(whole)
        after.update(cut)
    np.testing.assert_array_equal(weights(through.model), weights(after.model))
    assert after.updates == 6


@pytest.mark.parametrize("validated", [True, False])
def test_a_fit_ends_with_averaged_weights_of_the_same_training(validated):
    """Training itself is the same with an average and without."""
    last, losses = {}, {}
    for ema in (None, 0.6):
        model = model_of()
        spec = FitSpec(epochs=3, lr=0.05, bags_per_step=4, ema=ema, patience=50)
        val = toy(6, 1) if validated else None
        # The score rises, so the last epoch stands.
        scores = iter(range(3))
        result = fit(model, toy(12), val, spec, seed=0, score=lambda y, p, s=scores: float(next(s)))
        last[ema], losses[ema] = weights(model), [row["train_loss"] for row in result.history]
        assert result.best_epoch == 2
    assert losses[None] == losses[0.6]
    start = weights(model_of())
    assert 0 < np.abs(last[0.6] - last[None]).max() < np.abs(last[None] - start).max()


def test_what_is_validated_is_the_average():
    from wsi.training.predict import predict

    val, seen, model = toy(6, 1), [], model_of()

    def score(y, p):
        seen.append(p)
        return float(len(seen))

    spec = FitSpec(epochs=2, lr=0.05, bags_per_step=4, ema=0.9)
    fit(model, toy(12), val, spec, seed=0, score=score)
    np.testing.assert_allclose(predict(model, val).probabilities, seen[-1], atol=1e-6)
