"""Every alarm is raised by a fit that goes wrong, and by none that goes well."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from wsi.aggregators.pooling import MeanPooling
from wsi.data import from_arrays
from wsi.objectives.cross_entropy import CrossEntropy
from wsi.objectives.ncmi import NCMI
from wsi.specs import FitSpec
from wsi.training.alarms import Raised, alarms, raised_over
from wsi.training.loop import fit
from wsi.training.model import Model, ModelCard
from wsi.training.predict import predict

D, E = 8, 16
CLASSES = ("benign", "low", "high")


def bags(counts, seed):
    """Bags of 2-6 tiles, those of class c shifted along axis c."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(counts)), counts)
    shift = 2 * np.eye(len(counts), D)
    tiles = [rng.normal(size=(rng.integers(2, 7), D)) + shift[c] for c in y]
    return from_arrays({f"{seed}-{i}": bag.astype(np.float32) for i, bag in enumerate(tiles)}, y)


def score(y, p):
    return float((p.argmax(1) == y).mean())


def trained(objective, counts=(20, 20, 20), val=(15, 15, 15), seed=0, **settings):
    """Return the model and result of a fit."""
    torch.manual_seed(seed)
    card = ModelCard(D, CLASSES, tuple(counts), "mean", "of the test")
    logits = 3 if objective is CrossEntropy else None
    model = Model(card, MeanPooling(D, logits, hidden=E), objective(3, E, list(counts)))
    spec = FitSpec.model_validate({"epochs": 12, "lr": 0.01, "bags_per_step": 8} | settings)
    validation = bags(val, seed + 100) if val else None
    result = fit(model, bags(counts, seed), validation, spec, seed=seed, score=score)
    return model, result


def ncmi(kind=NCMI, **params):
    return lambda *args: kind(*args, **params)


def names(row):
    return [alarm["name"] for alarm in row["alarms"]]


def message(history, name):
    (found,) = (raised.message for raised in raised_over(history) if raised.name == name)
    return found


# -- fits that go well ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "seed"),
    [
        (ncmi(), 0),
        (ncmi(center="ema"), 1),
        (ncmi(centroids="class_mean", form="ratio"), 2),
        (ncmi(centroids="learned", centroid_lr=1e-3), 3),
        (CrossEntropy, 0),
    ],
    ids=["fixed", "ema", "class_mean", "learned", "ce"],
)
def test_a_healthy_fit_raises_none(objective, seed):
    _, result = trained(objective, seed=seed)
    assert result.monitor is not None
    assert result.monitor > 0.9
    assert [row["alarms"] for row in result.history] == [[]] * len(result.history)


# -- fits that go wrong ---------------------------------------------------------------------------


def test_a_centre_copied_from_one_bag_raises_the_gradient_norm():
    objective = ncmi(official=True)
    _, result = trained(objective, (4, 4, 4), None, bags_per_step=1, clip=None, epochs=2)
    assert result.history[0]["grad_norm"] > 1e10
    assert names(result.history[0]) == ["gradient-norm"]
    assert "since epoch 0 — lower fit.lr" in message(result.history, "gradient-norm")
    assert "gradient-norm" not in names(result.history[1])


def test_a_centre_that_follows_single_batches_drifts():
    objective = ncmi(center="ema", center_momentum=0.1)
    _, result = trained(objective, lr=0.1, bags_per_step=2, epochs=6)
    moved = [row["figures"]["centre_drift"] for row in result.history]
    assert moved[0] is None
    assert min(moved[1:]) > 0.2
    assert [k for k, row in enumerate(result.history) if "centre-drift" in names(row)] == [5]
    assert "since epoch 1 — set objective.center" in message(result.history, "centre-drift")


class Pulling(NCMI):
    """Draws all bags together and nothing apart."""

    def forward(self, output, y):
        points = self.points(output)
        return (points - points.mean(0)).square().sum(-1).mean().sqrt()


def test_a_loss_without_separation_collapses():
    _, result = trained(ncmi(Pulling), lr=0.05)
    figures = [row["figures"] for row in result.history]
    for key in ("concentration", "separation"):
        assert figures[-1][key] < 1e-3 * max(row[key] for row in figures)
    assert "collapse" in names(result.history[-1])
    assert "collapse" not in names(result.history[0])


@cache
def runaway():
    """NCMI whose learned centroids move far faster than the network."""
    objective = ncmi(centroids="learned", centroid_lr=30.0, centroid_momentum=0.9)
    return trained(objective, lr=0.03, epochs=8, clip=None)[1].history


def test_centroids_that_run_away_lower_ncmi_and_accuracy():
    history = runaway()
    best, *_, last = sorted((row["figures"] for row in history[2:]), key=lambda f: -f["accuracy"])
    assert last["ncmi"] < history[0]["figures"]["ncmi"]
    assert last["accuracy"] < best["accuracy"] - 0.2
    assert "runaway-centroids" in names(history[-1])
    assert "runaway-centroids" not in names(history[2])
    assert "accuracy too" in message(history, "runaway-centroids")


def test_rules_that_disagree_are_told():
    history = runaway()
    assert all(row["figures"]["rule_disagreement"] > 0.1 for row in history)
    told = ["rule-disagreement" in names(row) for row in history]
    assert told == [False] * 4 + [True] * 4  # from the fifth epoch in a row
    assert "since epoch 0" in message(history, "rule-disagreement")


def test_prototypes_of_great_length_saturate_the_sigmoid():
    _, result = trained(ncmi(temperature=0.005), epochs=1)
    assert result.history[0]["figures"]["saturation"] < 1e-3
    assert names(result.history[0]) == ["saturation"]


@pytest.mark.parametrize("objective", [ncmi(balanced=False), CrossEntropy], ids=["ncmi", "ce"])
def test_a_rare_class_that_is_never_predicted_is_named(objective):
    _, result = trained(objective, (40, 20, 2), (20, 10, 5), epochs=6, lr=3e-3)
    never = [row["figures"]["predicted"][2] == 0 for row in result.history]
    told = ["class-never-predicted" in names(row) for row in result.history]
    assert told == [False] * 4 + [all(never[:5]), all(never[1:])]
    assert told[-1]
    assert result.history[0]["figures"]["bags_by_class"] == [20, 10, 5]
    since = never.index(True)
    assert f"of class high, since epoch {since}" in message(result.history, "class-never-predicted")


def test_a_class_absent_from_validation_is_not_missed():
    _, result = trained(CrossEntropy, (20, 20, 2), (10, 10, 0), epochs=6)
    assert result.history[-1]["figures"]["predicted"][2] == 0
    assert [row["alarms"] for row in result.history] == [[]] * 6


def test_a_class_that_spreads_far_more_than_the_others_is_named():
    outputs = []
    rng = np.random.default_rng(0)
    for c, spread in enumerate((0.01, 0.01, 1.0)):
        points = 10 * np.eye(3, E)[c] + spread * rng.normal(size=(8, E))
        outputs += [(MeanOutput(torch.tensor(points).float()), torch.full((8,), c))]
    figures = NCMI(3, E, [1, 1, 1]).figures(outputs)
    rows = [{"epoch": k, "grad_norm": 1.0, "figures": figures} for k in range(5)]
    (alarm,) = (a for a in alarms(rows, CLASSES) if a.name == "class-far-spread")
    assert alarm.message.startswith("class high spreads ")
    assert "since epoch 0 — look at its bags" in alarm.message
    assert [a.name for a in alarms(rows[:4], CLASSES) if a.name == alarm.name] == []


class MeanOutput:
    """An embedding without logits."""

    def __init__(self, embedding):
        self.embedding, self.logits = embedding, None


# -- what is logged -------------------------------------------------------------------------------


def test_accuracy_is_that_of_the_rule_in_validation():
    model, result = trained(CrossEntropy, epochs=1)
    val = bags((15, 15, 15), 100)
    decided = predict(model, val).probabilities.argmax(1)
    figures = result.history[0]["figures"]
    assert figures["accuracy"] == accuracy_score(val.y, decided)
    assert figures["bags"] == 45
    assert figures["predicted"] == [int((decided == c).sum()) for c in range(3)]


class Watching(CrossEntropy):
    """Notes what it is shown, and has figures that JSON lacks."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []

    def figures(self, outputs):
        assert not torch.is_grad_enabled()
        assert not self.training
        for output, y in outputs:
            assert output.logits is not None
            assert len(output.embedding) == len(output.logits) == len(y)
            self.seen.append(y.tolist())
        return {"a": float("nan"), "b": torch.tensor([1.0, float("inf")]), "c": np.int64(3)}


@pytest.mark.parametrize("val", [(2, 1, 1), None])
def test_figures_are_of_all_validation_bags_or_else_of_the_training_bags(val):
    objective = Watching(3, E, [3, 3, 3])
    _, result = fitted(objective, val)
    expected = [0, 0, 1, 2] if val else [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert objective.seen == [expected] * 2
    figures = result.history[1]["figures"]
    assert {key: figures[key] for key in "abc"} == {"a": None, "b": [1.0, None], "c": 3}
    assert ("accuracy" in figures) == (val is not None)
    json.dumps(result.history, allow_nan=False)


def fitted(objective, val=None):
    """Return the model and result of two epochs with logits."""
    torch.manual_seed(0)
    card = ModelCard(D, CLASSES, (3, 3, 3), "mean", "of the test")
    model = Model(card, MeanPooling(D, 3, hidden=E), objective)
    spec = FitSpec(epochs=2, lr=0.01, bags_per_step=4)
    parts = bags((3, 3, 3), 0), bags(val, 1) if val else None
    return model, fit(model, *parts, spec, seed=0, score=score)


def test_figures_change_no_prediction():
    plain, watched = (fitted(kind(3, E, [3, 3, 3]), (2, 1, 1)) for kind in (CrossEntropy, Watching))
    test = bags((4, 4, 4), 9)
    p, q = (predict(model, test).probabilities for model, _ in (plain, watched))
    np.testing.assert_array_equal(p, q)


def test_without_figures_or_validation_no_bag_is_looked_at_again():
    model, _ = fitted(CrossEntropy(3, E, [3, 3, 3]))
    calls = []
    model.aggregator.register_forward_hook(lambda *_: calls.append(1))
    spec = FitSpec(epochs=3, bags_per_step=4)
    fit(model, bags((3, 3, 3), 0), None, spec, seed=0, score=score)
    assert len(calls) == 3 * 3  # three epochs of three steps


def test_raised_alarms_are_gathered_by_name():
    def row(epoch, **since):
        found = [{"name": n, "since": s, "message": f"{n} {epoch}"} for n, s in since.items()]
        return {"epoch": epoch, "alarms": found}

    rows = [row(0), row(1, x=1), row(2, x=1, y=2), row(3, x=1), row(4), row(5, x=5), {"epoch": 6}]
    x, y = raised_over(rows)
    assert x == Raised("x", "x 5", (1, 2, 3, 5))
    assert x.text == "x 5 (it held in epochs 1-3, 5)"
    assert y.text == "y 2 (it held in epoch 2)"


def test_the_epochs_of_a_lasting_alarm_begin_where_its_message_says():
    figures = {"rule_disagreement": 0.5, "bags": 10}
    history = []
    for k in range(6):
        history.append({"epoch": k, "grad_norm": 1.0, "figures": figures})
        history[-1]["alarms"] = [alarm.to_json() for alarm in alarms(history)]
    assert [bool(row["alarms"]) for row in history] == [False] * 4 + [True] * 2
    (raised,) = raised_over(history)
    assert "since epoch 0 — " in raised.message
    assert raised.text.endswith("(it held in epochs 0-5)")


def test_a_class_of_one_validation_bag_makes_no_other_spread_far() -> None:
    figures = {
        "concentration_by_class": [1e-17, 2e-17, 0.3],
        "bags_by_class": [1, 1, 4],
        "predicted": [1, 1, 4],
    }
    alone = [{"epoch": k, "grad_norm": 1.0, "figures": figures} for k in range(8)]
    assert alarms(alone) == []
    several = [row | {"figures": figures | {"bags_by_class": [2, 2, 4]}} for row in alone]
    assert [alarm.name for alarm in alarms(several)] == ["class-far-spread"]
