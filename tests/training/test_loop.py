"""The loop against a plain torch loop, scripted scores and held-out digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from wsi.aggregators.base import Aggregator, Output
from wsi.aggregators.pooling import MeanPooling
from wsi.data import from_arrays
from wsi.errors import TrainingError
from wsi.objectives.base import Objective
from wsi.objectives.cross_entropy import CrossEntropy
from wsi.specs import Config, FitSpec
from wsi.training.loop import fit
from wsi.training.model import Model, ModelCard, build
from wsi.training.optimiser import learning_rate
from wsi.training.predict import predict

D = 6


def auc(y, p):
    return roc_auc_score(y, p[:, 1])


def toy(n, seed=0, name="s"):
    """Bags of which the odd ones lie a little higher."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    sizes = rng.integers(1, 9, n)
    bags = [rng.normal(size=(k, D)) + 0.7 * c for k, c in zip(sizes, y, strict=True)]
    return from_arrays({f"{name}{i}": bag.astype(np.float32) for i, bag in enumerate(bags)}, y)


def model_of(objective="ce", **params):
    aggregator = {"name": "abmil", "hidden": 8, "attention_dim": 4, **params}
    config = Config.model_validate({"aggregator": aggregator, "objective": objective})
    return build(config, D, ["no", "yes"], [10, 10])


def trained(seed=0, train=None, val=None, score=auc, on_epoch=None, model=None, **settings):
    model = model_of() if model is None else model
    spec = FitSpec.model_validate({"epochs": 4, "lr": 0.01, "bags_per_step": 4} | settings)
    train = toy(20) if train is None else train
    return model, fit(model, train, val, spec, seed=seed, score=score, on_epoch=on_epoch)


# -- the step ---------------------------------------------------------------------------------


class Nagging(MeanPooling):
    """Mean pooling with an auxiliary loss."""

    def aggregate(self, batch):
        output = super().aggregate(batch)
        return Output(output.embedding, output.logits, aux_loss=output.embedding.square().mean())


@pytest.mark.parametrize("clip", [0.05, None])
def test_steps_are_those_of_a_plain_torch_loop(clip):
    data = toy(6)
    spec = FitSpec(
        epochs=5, lr=0.02, weight_decay=0.1, bags_per_step=6, clip=clip, standardise=False
    )
    torch.manual_seed(0)
    aggregator = Nagging(D, 2, hidden=8, dropout=0.0)
    card = ModelCard(D, ("no", "yes"), (3, 3), "mean", "ce")
    model = Model(card, aggregator, CrossEntropy(2, 8, [3, 3]))

    reference = Nagging(D, 2, hidden=8, dropout=0.0)
    reference.load_state_dict(aggregator.state_dict())
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.02, weight_decay=0.1)
    batch, norms, losses = data.batch(range(6)), [], []
    for epoch in range(5):
        optimizer.param_groups[0]["lr"] = learning_rate(epoch, 1, spec)
        optimizer.zero_grad()
        output = reference(batch)
        loss = torch.nn.functional.cross_entropy(output.logits, batch.y) + output.aux_loss
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in reference.parameters()])
        norms.append(gradient.norm().item())
        losses.append(loss.item())
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(reference.parameters(), clip)
        optimizer.step()

    result = fit(model, data, None, spec, seed=0, score=auc)
    np.testing.assert_allclose([row["train_loss"] for row in result.history], losses, rtol=1e-4)
    np.testing.assert_allclose([row["grad_norm"] for row in result.history], norms, rtol=1e-3)
    for mine, theirs in zip(aggregator.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


# -- features ---------------------------------------------------------------------------------


def test_features_are_standardised_by_the_training_tiles_alone():
    rng = np.random.default_rng(0)
    bags = {f"s{k}": rng.normal(5, [1, 10, 0] + [3] * (D - 3), (4 + k, D)) for k in range(4)}
    model, _ = trained(train=from_arrays(bags, [0, 1, 0, 1]), val=toy(6, 1), epochs=1)
    tiles = np.concatenate(list(bags.values()))
    oracle = StandardScaler().fit(tiles)
    given = (torch.from_numpy(tiles).float() - model.feature_mean) / model.feature_scale
    np.testing.assert_allclose(given.numpy(), oracle.transform(tiles), atol=1e-4)


def test_features_may_be_left_as_they_are():
    model, _ = trained(epochs=1, standardise=False)
    assert torch.equal(model.feature_mean, torch.zeros(D))
    assert torch.equal(model.feature_scale, torch.ones(D))


# -- choosing the epoch -----------------------------------------------------------------------


def scripted(figures):
    remaining = iter(figures)
    return lambda y, p: next(remaining)


def test_the_best_epochs_weights_are_put_back():
    model, snapshots = model_of(), []

    def snapshot(row):
        snapshots.append([p.detach().clone() for p in model.parameters()])

    _, result = trained(
        model=model, val=toy(6, 1), score=scripted([0.5, 0.9, 0.6, 0.9 - 1e-9]), on_epoch=snapshot
    )
    assert result.best_epoch == 1
    assert result.monitor == 0.9
    final = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(final, snapshots[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(final, snapshots[3], strict=True))


def test_ties_go_to_the_smaller_temperature_fitted_nll():
    model, val, fitted = model_of(), toy(16, 1), []

    def measure(row):
        log_p = np.log(predict(model, val).probabilities)
        scaled = [np.exp(log_p / t) for t in np.geomspace(0.05, 20, 60)]
        fitted.append(min(log_loss(val.y, p / p.sum(1, keepdims=True)) for p in scaled))

    _, result = trained(
        model=model, val=val, score=lambda y, p: 0.5, on_epoch=measure, epochs=8, lr=0.05
    )
    assert result.best_epoch == np.argmin(fitted)
    assert 0 < result.best_epoch < 7


def test_monitor_loss_is_the_nll_and_smaller_is_better():
    model, val, nll = model_of(), toy(16, 1), []

    def measure(row):
        nll.append(log_loss(val.y, predict(model, val).probabilities))

    _, result = trained(
        model=model, val=val, score=scripted([]), on_epoch=measure, epochs=6, lr=0.1, monitor="loss"
    )
    np.testing.assert_allclose([row["monitor"] for row in result.history], nll, rtol=1e-6)
    assert result.best_epoch == np.argmin(nll)


def test_stopping_early_never_shortens_the_schedule():
    falling = [0.9, 0.5, 0.4, 0.3, 0.2, 0.1]
    _, stopped = trained(val=toy(6, 1), score=scripted(falling), epochs=6, patience=2)
    _, whole = trained(val=toy(6, 1), score=scripted(falling), epochs=6, patience=50)
    assert len(stopped.history) == 3
    assert len(whole.history) == 6
    for short, long in zip(stopped.history, whole.history, strict=False):
        assert short["lr"] == long["lr"] > 0
        assert short["train_loss"] == long["train_loss"]


def test_without_validation_the_last_epoch_stands():
    model, snapshots = model_of(), []

    def snapshot(row):
        snapshots.append([p.detach().clone() for p in model.parameters()])

    _, result = trained(model=model, on_epoch=snapshot, score=scripted([]), patience=1)
    assert result.best_epoch == 3
    assert result.monitor is None
    assert [row["val_loss"] for row in result.history] == [None] * 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), snapshots[3], strict=True))


def test_an_undefined_monitor_is_an_error():
    with pytest.raises(TrainingError, match=r"fit\.monitor=auc is nan on the 6 validation bags"):
        trained(val=toy(6, 1), score=scripted([float("nan")]))


# -- hooks and what they see ------------------------------------------------------------------


class Recorder(CrossEntropy):
    """Cross-entropy that notes what its hooks are shown."""

    def __init__(self):
        super().__init__(2, 8, [10, 10])
        self.log = []

    def _see(self, name, outputs):
        assert not torch.is_grad_enabled()
        labels = [y for output, y in outputs if not output.embedding.requires_grad]
        self.log.append((name, torch.cat(labels).tolist()))

    def before_fit(self, outputs):
        self._see("before", outputs)

    def after_step(self, output, y):
        assert not output.embedding.requires_grad
        self.log.append(("step", len(y)))

    def after_fit(self, train_outputs, val_outputs):
        self._see("train", train_outputs)
        if val_outputs is not None:
            self._see("val", val_outputs)


@pytest.mark.parametrize("validated", [True, False])
def test_hooks_see_each_bag_once_without_gradient(validated):
    objective: Objective = Recorder()
    card = ModelCard(D, ("no", "yes"), (10, 10), "mean", "ce")
    model = Model(card, MeanPooling(D, 2, hidden=8), objective)
    train, val = toy(10), toy(6, 1) if validated else None
    trained(model=model, train=train, val=val, epochs=2, bags_per_step=4)
    expected = [("before", [0, 1] * 5), *[("step", n) for n in (4, 4, 2)] * 2]
    expected += [("train", [0, 1] * 5)] + ([("val", [0, 1] * 3)] if validated else [])
    assert objective.log == expected


# -- determinism ------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["ce", "ncmi"])
def test_the_same_seed_gives_bit_identical_predictions(objective):
    test, results = toy(8, 2), []
    for seed in (1, 1, 2):
        model = model_of(objective, dropout=0.5)
        _, result = trained(seed=seed, model=model, val=toy(6, 1), max_tiles=3)
        results.append((predict(model, test).probabilities, result.history[0]["train_loss"]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert not np.array_equal(results[0][0], results[2][0])


def test_dropout_follows_the_seed():
    one_bag = from_arrays({"a": np.ones((1, D), np.float32)}, [0])
    losses = []
    for seed in (1, 1, 2):
        model = model_of(dropout=0.5)
        _, result = trained(seed=seed, model=model, train=one_bag)
        losses.append([row["train_loss"] for row in result.history])
    assert losses[0] == losses[1] != losses[2]


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(5)
    expected = torch.randn(2)
    torch.manual_seed(5)
    trained()
    assert torch.equal(torch.randn(2), expected)


# -- bad states -------------------------------------------------------------------------------


def test_divergence_names_epoch_step_and_slide():
    bags = {f"s{i}": np.zeros((2, D), np.float32) for i in range(4)}
    bags["broken"] = np.full((2, D), np.nan, np.float32)
    with pytest.raises(TrainingError, match=r"epoch 0, step \d \(broken\): loss nan"):
        trained(train=from_arrays(bags, [0, 1, 0, 1, 0]), bags_per_step=1, standardise=False)


def test_a_feature_that_is_no_number_is_named_before_training():
    bags = {"sound": np.zeros((2, D), np.float32), "broken": np.full((2, D), np.nan, np.float32)}
    with pytest.raises(TrainingError, match="broken: a feature is not a finite number"):
        trained(train=from_arrays(bags, [0, 1]))


@pytest.mark.parametrize("monitor", ["auc", "loss"])
def test_a_validation_bag_that_is_no_number_is_named(monitor):
    rng = np.random.default_rng(0)
    bags = {f"v{i}": rng.normal(size=(3, D)).astype(np.float32) for i in range(6)}
    bags["v2"][1, 0] = np.nan
    with pytest.raises(TrainingError, match=r"epoch 0: no finite .* validation bags v2 — verify"):
        trained(val=from_arrays(bags, [0, 1] * 3), score=lambda y, p: 0.5, monitor=monitor)


class Late(Aggregator):
    """Gives infinite logits from its 7th batch on."""

    def __init__(self):
        super().__init__(D, 2, 8)
        self.layer, self.calls = torch.nn.Linear(D, 8), 0

    def aggregate(self, batch):
        self.calls += 1
        scale = float("inf") if self.calls > 6 else 1.0
        embedding = torch.stack([t.mean(0) for t in self.layer(batch.x).split(batch.sizes)])
        return Output(embedding, self.classify(embedding) * scale)


def test_the_epoch_and_step_named_are_where_it_happened():
    card = ModelCard(D, ("no", "yes"), (10, 10), "mean", "ce")
    model = Model(card, Late(), CrossEntropy(2, 8, [10, 10]))
    with pytest.raises(TrainingError, match="epoch 1, step 2 "):
        trained(model=model, train=toy(16), bags_per_step=4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (toy(4).unlabelled(), "at least one labelled bag"),
        (from_arrays({}, []), "at least one labelled bag"),
        (from_arrays({"odd": np.zeros((1, D))}, [2]), "odd has class index 2"),
        (from_arrays({"odd": np.zeros((1, D))}, [-1]), "odd has class index -1"),
    ],
)
def test_parts_without_usable_labels_are_refused(data, message):
    with pytest.raises(TrainingError, match=message):
        trained(train=data)
    with pytest.raises(TrainingError, match=message):
        trained(val=data)


# -- the whole, on real digits ----------------------------------------------------------------


def digit_bags(n, digits, seed):
    """Bags of 8-15 handwritten digits, positive iff one or two of them are a 9."""
    X, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    nines, others = (digits[(labels[digits] == 9) == is_nine] for is_nine in (True, False))
    bags, is_nine = {}, []
    for i in range(n):
        rows = rng.choice(others, rng.integers(8, 16))
        if i % 2:
            rows[: rng.integers(1, 3)] = rng.choice(nines)
        rows = rng.permutation(rows)
        bags[f"{seed}-{i}"] = (X[rows] / 16).astype(np.float16)
        is_nine.append(labels[rows] == 9)
    return bags, np.arange(n) % 2, is_nine


@pytest.mark.parametrize("objective", ["ce", "ncmi"])
def test_digit_bags_with_a_nine_are_told_apart_and_the_nine_is_found(objective):
    parts = np.split(np.random.default_rng(0).permutation(1797), [1000, 1300])
    (train, y, _), (val, y_val, _), (test, y_test, is_nine) = (
        digit_bags(n, digits, seed)
        for n, digits, seed in zip((600, 60, 150), parts, (1, 2, 3), strict=True)
    )
    config = Config.model_validate(
        {
            "aggregator": {"name": "abmil", "hidden": 64, "attention_dim": 32},
            "objective": objective,
            "fit": {"epochs": 12, "lr": 3e-3, "bags_per_step": 8},
        }
    )
    model = build(config, 64, ["without", "with"], np.bincount(y).tolist())
    fit(model, from_arrays(train, y), from_arrays(val, y_val), config.fit, seed=0, score=auc)
    predicted = predict(model, from_arrays(test), attention=True)
    assert auc(y_test, predicted.probabilities) > 0.95
    assert predicted.attention is not None
    found = [
        nine[weights[:, 0].argmax()]
        for weights, nine, positive in zip(predicted.attention, is_nine, y_test, strict=True)
        if positive
    ]
    assert np.mean(found) > 0.8  # by chance about one in eight
