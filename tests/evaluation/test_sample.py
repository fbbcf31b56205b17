from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from wsi.errors import PredictionsError
from wsi.evaluation import METRICS, Predictions
from wsi.evaluation.intervals import draw_weights
from wsi.evaluation.sample import lacking_a_class, make_sample, point, statistic
from wsi.specs import EvaluateSpec


def by_hand(name: str, table, classes) -> float:
    """A metric of the rows of one table by scikit-learn, decisions pooled and the rest by fold."""
    index = {c: k for k, c in enumerate(classes)}
    columns = [f"p_{c}" for c in classes]
    y = table["y_true"].map(index).to_numpy()
    decided = table["y_pred"].map(index).to_numpy()
    if name == "macro_f1":
        return sk.f1_score(y, decided, labels=range(len(classes)), average="macro", zero_division=0)
    if name == "micro_f1":
        return sk.accuracy_score(y, decided)
    if name == "balanced_accuracy":
        return float(np.mean([(decided[y == c] == c).mean() for c in set(y)]))
    if name == "quadratic_kappa":
        labels = range(len(classes))
        return sk.cohen_kappa_score(y, decided, labels=labels, weights="quadratic")
    folds = []
    for _, part in table.groupby("fold"):
        y, p = part["y_true"].map(index).to_numpy(), part[columns].to_numpy()
        separable = [c for c in range(len(classes)) if 0 < (y == c).sum() < len(y)]
        if name == "auc" and separable:
            folds.append(np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in separable]))
        elif name == "average_precision" and separable:
            scores = [sk.average_precision_score(y == c, p[:, c]) for c in separable]
            folds.append(np.mean(scores))
        elif name == "nll":
            folds.append(sk.log_loss(y, p, labels=range(len(classes))))
        elif name == "brier":
            labels = range(len(classes))
            folds.append(sk.brier_score_loss(y, p, labels=labels, scale_by_half=False))
        elif name == "ece":
            top, right = p.max(axis=1), p.argmax(axis=1) == y
            bins = np.digitize(top, np.arange(1, 15) / 15, right=True)
            gaps = [abs((right[bins == b] - top[bins == b]).sum()) for b in set(bins)]
            folds.append(sum(gaps) / len(y))
    return float(np.mean(folds))


@pytest.mark.parametrize("name", METRICS)
def test_a_weighted_replicate_is_the_metric_of_rows_repeated_as_patients_are_drawn(toy, name):
    predictions = toy(n=90, per_patient=3, folds=3, seeds=2, sites=3)
    sample = make_sample(predictions)
    weights = draw_weights(sample.strata, EvaluateSpec(replicates=100, seed=3))[:, :12]
    found = statistic(METRICS[name], sample)(weights)
    table = predictions.table
    for r in range(weights.shape[1]):
        times = dict(zip(sample.patients, weights[:, r].astype(int)))
        repeated = table.loc[table.index.repeat(table["patient_id"].map(times))]
        by_seed = [by_hand(name, part, sample.classes) for _, part in repeated.groupby("seed")]
        assert found[r] == pytest.approx(np.mean(by_seed), abs=1e-10)


@pytest.mark.parametrize("name", METRICS)
def test_the_headline_is_the_mean_over_seeds(toy, name):
    predictions = toy(seeds=3)
    tables = [part for _, part in predictions.table.groupby("seed")]
    expected = np.mean([by_hand(name, part, predictions.classes) for part in tables])
    assert point(METRICS[name], make_sample(predictions)) == pytest.approx(expected)


def test_the_ensemble_is_the_mean_of_probabilities(toy):
    predictions = toy(seeds=3)
    mean = predictions.table.groupby("slide_id")[[f"p_{c}" for c in "abcd"]].mean().to_numpy()
    y = predictions.table.groupby("slide_id")["y_true"].first().map("abcd".index).to_numpy()
    found = point(METRICS["micro_f1"], make_sample(predictions).ensemble())
    assert found == pytest.approx(sk.accuracy_score(y, mean.argmax(axis=1)))


def test_a_part_of_a_sample_keeps_its_own_patients_only(toy):
    predictions = toy()
    sample = make_sample(predictions)
    part = sample.where(sample.sites == "c1")
    rows = predictions.table[predictions.table["site"] == "c1"]
    assert set(part.patients) == set(rows["patient_id"])
    assert part.n == rows["slide_id"].nunique()
    owner = dict(zip(rows["slide_id"], rows["patient_id"]))
    owners = [part.patients[k] for k in part.runs[0].patient]
    assert owners == [owner[slide] for slide in part.slides]


def test_replicates_without_a_class_are_counted(toy):
    predictions = toy(n=40, C=3, folds=1, seeds=1, sites=1)
    sample = make_sample(predictions)
    weights = draw_weights(sample.strata, EvaluateSpec(replicates=500))
    table = predictions.table
    expected = 0
    for r in range(500):
        drawn = {p for p, w in zip(sample.patients, weights[:, r]) if w}
        present = set(table.loc[table["patient_id"].isin(drawn), "y_true"])
        expected += present != set(table["y_true"])
    assert lacking_a_class(sample, weights) == expected > 0


def test_only_test_rows_are_scored(toy):
    table = toy(seeds=1).table
    table["split"] = ["val" if k % 3 == 0 else "test" for k in range(len(table))]
    sample = make_sample(Predictions(tuple("abcd"), table))
    assert sample.n == (table["split"] == "test").sum()
    table["split"] = "train"
    with pytest.raises(PredictionsError, match="no test rows"):
        make_sample(Predictions(tuple("abcd"), table))


def test_rows_without_labels_cannot_be_scored(toy):
    table = toy(seeds=1).table
    table.loc[[3, 5], "y_true"] = ""
    with pytest.raises(PredictionsError, match="2 slides have no label: s0003, s0005"):
        make_sample(Predictions(tuple("abcd"), table))


def test_seeds_over_different_slides_are_refused(toy):
    table = toy(seeds=2).table
    with pytest.raises(PredictionsError, match=r"seeds 0 and 1 differ in 1 slides.*s0119"):
        make_sample(Predictions(tuple("abcd"), table.iloc[:-1]))


def test_patients_are_drawn_within_their_sites(toy):
    sample = make_sample(toy(sites=3))
    site_of = {sample.patients[k]: s for k, s in zip(sample.runs[0].patient, sample.sites)}
    pairs = {(site_of[p], stratum) for p, stratum in zip(sample.patients, sample.strata)}
    assert len(pairs) == len(set(sample.strata)) == 3
    (part,) = {len(set(sample.where(sample.sites == s).strata)) for s in ("c0", "c1")}
    assert part == 1


def test_a_patient_of_several_sites_belongs_to_the_one_of_most_slides(toy):
    table = toy(n=120, per_patient=4, sites=3).table
    table.loc[table["slide_id"] == "s0000", "site"] = "c2"  # its patient has three slides in c0
    sample = make_sample(Predictions(tuple("abcd"), table))
    stratum = dict(zip(sample.patients, sample.strata))
    assert stratum["p0000"] == stratum["p0003"] != stratum["p0002"]
