"""The information block of metrics.json, against scikit-learn, Bayes' rule and repeated rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy, norm, spearmanr
from sklearn.metrics import accuracy_score, log_loss

from pipelines.scoring import information_line
from wsi.evaluation import Head, Predictions, compare, evaluate
from wsi.evaluation.information import ncmi
from wsi.evaluation.information_scores import accuracy_ncmi, information_statistic
from wsi.evaluation.sample import make_sample
from wsi.specs import EvaluateSpec

QUICK = EvaluateSpec(replicates=200)
COUNTS = {0: (30, 20, 6, 14), 1: (60, 5, 5, 10), 2: (11, 22, 33, 44)}


def block(predictions):
    return evaluate(predictions, QUICK, ["macro_f1"])["information"]


def entropy_of(table):
    return entropy(table["y_true"].value_counts())


def log_losses(predictions):
    """Return the cross-entropy of each seed."""
    return [
        log_loss(part["y_true"], part[[f"p_{c}" for c in predictions.classes]])
        for _, part in predictions.table.groupby("seed")
    ]


def test_without_a_prior_information_is_label_entropy_less_cross_entropy(toy):
    predictions = toy(seeds=2)
    found, H = block(predictions), entropy_of(predictions.table)
    expected = H - np.array(log_losses(predictions))
    assert found["label_entropy"] == pytest.approx(H)
    assert found["mi"]["value"] == pytest.approx(expected.mean())
    assert found["mi"]["seeds_sd"] == pytest.approx(expected.std(ddof=1))
    assert [v["mi"] for v in found["seeds"].values()] == pytest.approx(expected)
    assert found["share"]["value"] == pytest.approx(expected.mean() / H)
    assert found["mi"]["low"] < found["mi"]["value"] < found["mi"]["high"]
    assert "unknown training frequencies" in found["mi"]["note"]
    assert found["as_predicted"] is None
    of_scores = block(replace(predictions, head=Head(None, COUNTS)))
    assert of_scores["mi"]["value"] == pytest.approx(expected.mean())
    assert "the probabilities are scores of the decision rule" in of_scores["mi"]["note"]


def by_bayes(predictions, prior_of_fold):
    """Return the mean over seeds of log p'(y | x) / pi'(y), p' re-targeted row by row."""
    table, classes = predictions.table, predictions.classes
    target = table["y_true"].value_counts(normalize=True).reindex(classes).to_numpy()
    gains = []
    for _, row in table.iterrows():
        p = row[[f"p_{c}" for c in classes]].to_numpy(float)
        p = p / prior_of_fold[row["fold"]] * target
        y = classes.index(row["y_true"])
        gains.append(np.log(p[y] / p.sum() / target[y]))
    return float(np.mean(gains))


@pytest.mark.parametrize("kind", ["training", "uniform"])
def test_heads_are_retargeted_from_the_prior_of_their_fold(toy, kind):
    predictions = replace(toy(seeds=2), head=Head(kind, COUNTS))
    priors = {f: np.full(4, 0.25) for f in COUNTS}
    if kind == "training":
        priors = {f: np.array(n) / sum(n) for f, n in COUNTS.items()}
    found = block(predictions)
    assert found["mi"]["value"] == pytest.approx(by_bayes(predictions, priors))
    table = predictions.table
    own = [priors[f]["abcd".index(y)] for f, y in zip(table["fold"], table["y_true"])]
    assert found["as_predicted"]["bound"] == pytest.approx(-np.log(own).mean())
    expected = -np.mean(log_losses(predictions)) - np.log(own).mean()
    assert found["as_predicted"]["mi"] == pytest.approx(expected)
    assert "unknown" not in found["mi"]["note"]


def mixture(prior, n=300, head=None):
    """Return exact posteriors, at a prior, of slides whose labels come at another."""
    rng = np.random.default_rng(0)
    y = rng.choice(3, n, p=[0.2, 0.3, 0.5])
    x = rng.normal(np.array([-1.0, 0.5, 2.0])[y], 1.0)
    joint = norm.pdf(x[:, None], [-1.0, 0.5, 2.0], 1.0) * prior
    ids = [f"s{k:03}" for k in range(n)]
    table = pd.DataFrame(
        {"slide_id": ids, "patient_id": ids, "y_true": [*map("abc".__getitem__, y)]}
    )
    table[["p_a", "p_b", "p_c"]] = joint / joint.sum(axis=1, keepdims=True)
    return Predictions(("a", "b", "c"), table, head=head)


def test_the_same_likelihoods_tell_the_same_whatever_prior_they_were_trained_at():
    rare = block(mixture([0.8, 0.15, 0.05], head=Head("training", {0: (80, 15, 5)})))
    even = block(mixture([1 / 3] * 3, head=Head("uniform")))
    for name in ("mi", "share"):
        for key in ("value", "low", "high"):
            assert rare[name][key] == pytest.approx(even[name][key], rel=1e-9)
    assert abs(rare["as_predicted"]["mi"] - even["as_predicted"]["mi"]) > 0.05
    # Told nothing of the prior, the same predictions are worth less.
    assert block(mixture([0.8, 0.15, 0.05]))["mi"]["value"] < rare["mi"]["value"] - 0.05


@pytest.mark.parametrize("name", ["mi", "share"])
def test_patient_weights_are_repeated_patients(toy, name):
    predictions = replace(toy(n=24, seeds=2), head=Head("training", COUNTS))
    sample = make_sample(predictions)
    weights = np.random.default_rng(3).integers(0, 4, (12, 8)).astype(float)
    found = information_statistic(sample, predictions.head, name)(weights)
    for r in range(8):
        parts = []
        for patient, times in zip(sample.patients, weights[:, r].astype(int), strict=True):
            own = predictions.table[predictions.table["patient_id"] == patient]
            parts += [own.assign(slide_id=own["slide_id"] + f"-{k}") for k in range(times)]
        again = Predictions(tuple("abcd"), pd.concat(parts), head=predictions.head)
        assert found[r] == pytest.approx(block(again)[name]["value"], rel=1e-10)


def test_one_class_has_no_information_and_says_why(toy):
    table = toy(seeds=2).table.assign(y_true="a")
    found = evaluate(Predictions(tuple("abcd"), table), QUICK)
    json.dumps(found, allow_nan=False)
    found = found["information"]
    assert found["mi"]["value"] is found["share"]["value"] is found["ncmi"]["ncmi"] is None
    assert "one class" in found["mi"]["note"]
    assert "one class" in found["ncmi"]["note"]
    assert found["label_entropy"] == 0
    assert found["per_class"]["b"] == {"cmi": None, "n": 0}


def test_certain_mistakes_are_finite_negative_and_counted(toy):
    table = toy(C=2, seeds=1).table
    wrong = table["y_true"] == "b"
    table["p_a"], table["p_b"] = wrong.astype(float), (~wrong).astype(float)
    found = evaluate(Predictions(("a", "b"), table.drop(columns="y_pred")), QUICK)
    json.dumps(found, allow_nan=False)
    found = found["information"]
    assert found["mi"]["value"] < -30
    assert "120 true classes of probability 0" in found["mi"]["note"]
    assert "surer than right" in found["mi"]["note"]
    assert "exactly 0" in found["ncmi"]["note"]


def test_a_class_without_slides_changes_no_figure_but_its_own(toy):
    head = Head("training", {f: n[:3] for f, n in COUNTS.items()})
    predictions = toy(C=3, seeds=1)
    table = predictions.table[predictions.table["y_true"] != "c"]
    found = block(Predictions(tuple("abc"), table, head=head))
    q = table[["p_a", "p_b"]].to_numpy() / table[["p_a", "p_b"]].sum(axis=1).to_numpy()[:, None]
    two = Predictions(
        ("a", "b"),
        table.drop(columns=["p_c", "y_pred"]).assign(p_a=q[:, 0], p_b=q[:, 1]),
        head=Head("training", {f: n[:2] for f, n in COUNTS.items()}),
    )
    assert found["mi"]["value"] == pytest.approx(block(two)["mi"]["value"])
    assert found["per_class"]["c"] == {"cmi": None, "n": 0}


def test_ncmi_pools_folds_and_is_the_mean_over_seeds(toy):
    predictions = toy(seeds=3)
    found = block(predictions)
    tables = [part for _, part in predictions.table.groupby("seed")]
    columns = [f"p_{c}" for c in "abcd"]
    codes = [part["y_true"].map("abcd".index).to_numpy() for part in tables]
    each = [ncmi(part[columns].to_numpy(), y, 4) for part, y in zip(tables, codes)]
    assert found["ncmi"]["ncmi"] == pytest.approx(np.mean([s.ncmi for s in each]))
    assert found["ncmi"]["seeds_sd"] == pytest.approx(np.std([s.ncmi for s in each], ddof=1))
    assert found["ncmi"]["cmi"] == pytest.approx(np.mean([s.cmi for s in each]))
    assert found["per_class"]["b"]["n"] == int((codes[0] == 1).sum())
    even = [ncmi(t[columns].to_numpy(), y, 4, "KL_QP", "balanced") for t, y in zip(tables, codes)]
    assert found["ncmi_balanced"]["ncmi"] == pytest.approx(np.mean([s.ncmi for s in even]))
    assert found["ncmi_balanced"]["ncmi"] != pytest.approx(found["ncmi"]["ncmi"], rel=1e-3)


def test_accuracy_and_ncmi_of_every_run_and_seed(toy):
    runs = {f"r{k}": toy(seeds=2, skill=skill) for k, skill in enumerate((0.5, 1.0, 2.0))}
    found = accuracy_ncmi({name: make_sample(run) for name, run in runs.items()})
    assert [(p["run"], p["seed"]) for p in found["points"]] == [
        (name, seed) for name in runs for seed in (0, 1)
    ]
    for point in found["points"]:
        table = runs[point["run"]].table
        mine = table[table["seed"] == point["seed"]]
        assert point["accuracy"] == pytest.approx(accuracy_score(mine["y_true"], mine["y_pred"]))
    pairs = [(p["accuracy"], p["ncmi"]) for p in found["points"]]
    assert found["spearman"] == pytest.approx(spearmanr(*zip(*pairs)).statistic)
    assert found["spearman"] < -0.5
    compared = compare(list(runs.items()), spec=QUICK)
    assert compared["accuracy_ncmi"] == found


def test_few_models_have_no_rank_correlation(toy):
    found = accuracy_ncmi({"a": make_sample(toy(seeds=2)), "b": make_sample(toy(seeds=2, skill=1))})
    assert (found["ranked"], found["spearman"]) == (4, None)


def test_an_estimate_below_0_says_that_no_information_is_shown(toy):
    found = block(toy(skill=0.0))
    assert found["mi"]["value"] < 0
    assert "below 0 no information is shown" in found["mi"]["note"]
    assert "(below 0 no information is shown)" in information_line(found)
    assert "below 0" not in block(toy())["mi"]["note"]


def one_sided(n: int, spread: float, right: bool) -> Predictions:
    """Two thirds are a, and all are decided a, or each as it is."""
    y = np.arange(n) % 3 == 0
    p_b = np.where(y, 0.5 + spread, 0.5 - spread) if right else 0.3 + spread * y
    table = pd.DataFrame({"p_a": 1 - p_b, "p_b": p_b})
    table["slide_id"] = table["patient_id"] = [f"s{k}" for k in range(n)]
    table["y_true"] = np.where(y, "b", "a")
    return Predictions(("a", "b"), table)


@pytest.mark.parametrize(
    ("predictions", "apart", "better"),
    [
        (one_sided(30, 0.3, right=True), True, True),
        (one_sided(30, 0.001, right=True), False, True),
        (one_sided(30, 0.19, right=False), True, False),
        (one_sided(30, 0.001, right=False), False, False),
    ],
)
def test_a_small_ncmi_of_a_useless_model_is_no_praise(predictions, apart, better):
    found = block(predictions)
    assert found["ncmi"]["ncmi"] == pytest.approx(0, abs=1e-6)
    for key in ("ncmi", "ncmi_balanced"):
        assert ("predictions hardly differ" in found[key]["note"]) is not apart
        assert ("accuracy is not above" in found[key]["note"]) is not better
    assert ("means nothing" in information_line(found)) is not (apart and better)
