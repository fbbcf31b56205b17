from __future__ import annotations

import json
import time

import numpy as np
import pytest
from sklearn import metrics as sk

from wsi.evaluation import METRICS, Predictions, compare, evaluate
from wsi.evaluation.intervals import bootstrap, draw_weights, interval_of, quantile, resample
from wsi.evaluation.sample import make_sample, statistic
from wsi.specs import EvaluateSpec

QUICK = EvaluateSpec(replicates=200)


def test_metrics_json_has_its_parts_and_no_nan(toy):
    found = evaluate(toy(), QUICK)
    json.dumps(found, allow_nan=False)
    assert found["schema"] == "wsi-metrics/1"
    assert found["classes"] == list("abcd")
    for name in ("macro_f1", "auc", "micro_f1", "balanced_accuracy", "nll", "brier"):
        score = found[name]
        assert (score["n"], score["n_patients"], score["unit"]) == (120, 60, "patient")
        assert score["low"] < score["value"] < score["high"]
    assert set(found["by"]) == {"site"}
    assert set(found["by"]["site"]) == {"c0", "c1", "c2"}
    assert found["coverage"] == {
        "evaluable": 120,
        "total": 120,
        "fraction": 1.0,
        "not_evaluable": {},
    }


def test_seeds_are_listed_and_their_spread_is_not_the_interval(toy):
    predictions = toy(seeds=3)
    found = evaluate(predictions, QUICK)
    tables = [part for _, part in predictions.table.groupby("seed")]
    accuracy = [sk.accuracy_score(part["y_true"], part["y_pred"]) for part in tables]
    assert [found["seeds"][str(k)]["micro_f1"] for k in range(3)] == pytest.approx(accuracy)
    assert found["micro_f1"]["value"] == pytest.approx(np.mean(accuracy))
    assert found["micro_f1"]["seeds_sd"] == pytest.approx(np.std(accuracy, ddof=1))
    assert found["ensemble"]["micro_f1"]["value"] != pytest.approx(np.mean(accuracy))
    alone = evaluate(toy(seeds=1), QUICK)
    assert alone["ensemble"] is None
    assert alone["micro_f1"]["seeds_sd"] is None
    assert any("one seed" in note for note in alone["notes"])


def test_ranking_is_averaged_over_folds_and_decisions_are_pooled(toy):
    """Models of different folds with shifted scores: pooling them would hide a perfect ranking."""
    predictions = toy(C=2, seeds=1, folds=3)
    table = predictions.table
    right = table["y_true"] == "b"
    p = 0.1 + 0.25 * table["fold"] + 0.1 * right
    table["p_b"], table["p_a"] = p, 1 - p
    table = table.drop(columns="y_pred")
    found = evaluate(Predictions(("a", "b"), table), QUICK)
    assert found["auc"]["value"] == pytest.approx(1.0)
    assert (found["auc"]["folds_defined"], found["auc"]["folds"]) == (3, 3)
    assert found["auc"]["pooled"] == pytest.approx(sk.roc_auc_score(right, p)) != 1.0
    expected = sk.f1_score(right, p > 0.5, average="macro")
    assert found["macro_f1"]["value"] == pytest.approx(expected)


def test_a_fold_of_one_class_has_no_auc_and_the_mean_counts_the_others(toy):
    table = toy(C=2, seeds=1, folds=3).table
    table.loc[table["fold"] == 1, "y_true"] = "a"
    found = evaluate(Predictions(("a", "b"), table), QUICK)
    folds = found["folds"]["each"]
    assert folds["1"]["auc"] is None
    assert found["auc"]["folds_defined"] == found["folds"]["summary"]["auc"]["count"] == 2
    assert found["auc"]["value"] == pytest.approx((folds["0"]["auc"] + folds["2"]["auc"]) / 2)


def test_a_site_of_one_class_has_null_auc_with_a_reason(toy):
    table = toy(C=2, seeds=2).table
    table.loc[table["site"] == "c2", "y_true"] = "a"
    found = evaluate(Predictions(("a", "b"), table), QUICK)
    score = found["by"]["site"]["c2"]["auc"]
    assert (score["value"], score["low"], score["high"]) == (None, None, None)
    assert score["note"] == "undefined: only one class present"
    assert score["classes_used"] == 0
    assert score["n"] == 40
    json.dumps(found, allow_nan=False)


def test_a_small_class_marks_a_sites_macro_f1(toy):
    table = toy(seeds=1, n=240).table
    table.loc[(table["site"] == "c0") & (table["y_true"] == "b"), "y_true"] = "a"
    first = table.index[table["site"] == "c0"][0]
    table.loc[first, "y_true"] = "b"
    found = evaluate(Predictions(tuple("abcd"), table), QUICK)["by"]["site"]
    assert "fewer than 5 slides of b (1)" in found["c0"]["macro_f1"]["note"]
    assert "slides of" not in found["c0"]["auc"]["note"]


def test_few_patients_are_flagged_and_a_missing_class_counted(toy):
    found = evaluate(toy(n=24, sites=1), QUICK)
    note = found["macro_f1"]["note"]
    assert "interval expanded: 12 patients" in note
    assert "replicates lack a class" in note
    assert "expanded" not in evaluate(toy(n=120), QUICK)["macro_f1"]["note"]


def test_a_class_nobody_has_stays_in_macro_f1(toy):
    base = toy(C=3, seeds=1)
    table = base.table.assign(p_never=0.0)
    found = evaluate(Predictions((*"abc", "never"), table), QUICK)
    assert found["macro_f1"]["value"] == pytest.approx(
        evaluate(base, QUICK)["macro_f1"]["value"] * 3 / 4
    )
    assert found["auc"]["classes_used"] == 3
    assert found["per_class"]["never"]["recall"] is None
    assert any("no slide of never" in note for note in found["notes"])


def test_slides_that_could_not_be_predicted_are_coverage_and_no_mistake(toy):
    base = toy(seeds=1)
    missing = {"lost": "no bag", "empty": "no tile"}
    found = evaluate(Predictions(base.classes, base.table, not_evaluable=missing), QUICK)
    assert found["micro_f1"] == evaluate(base, QUICK)["micro_f1"]
    assert found["coverage"]["evaluable"] == 120
    assert found["coverage"]["total"] == 122
    assert found["coverage"]["not_evaluable"] == missing


def test_the_worst_site_is_the_worst_in_the_sense_of_the_metric(toy):
    found = evaluate(toy(n=240), QUICK)
    sites = found["by"]["site"]
    for name, pick in (("macro_f1", min), ("nll", max)):
        assert found["worst_site"][name]["value"] == pick(s[name]["value"] for s in sites.values())


def test_equally_bad_sites_are_all_named_and_equal_ones_none(toy):
    base = toy(C=2, seeds=1)
    right = {"a": "a", "b": "b"}
    rows = base.table.assign(y_pred=base.table["y_true"].map(right))
    sites = sorted(set(rows["site"]))
    assert len(sites) > 2
    wrong = rows["site"].isin(sites[1:])
    flipped = rows.assign(
        y_pred=rows["y_pred"].mask(wrong, rows["y_true"].map({"a": "b", "b": "a"}))
    )
    worst = evaluate(Predictions(base.classes, flipped), QUICK)["worst_site"]
    assert worst["macro_f1"] == {"site": sites[1], "value": 0.0, "sites": sites[1:]}
    assert "macro_f1" not in evaluate(Predictions(base.classes, rows), QUICK)["worst_site"]


def test_confusion_rows_are_the_true_classes(toy):
    predictions = toy(seeds=1)
    table = predictions.table
    expected = sk.confusion_matrix(table["y_true"], table["y_pred"], labels=list("abcd"))
    assert evaluate(predictions, QUICK)["confusion"]["mean_over_seeds"] == expected.tolist()


def test_the_same_seed_gives_the_same_bytes_in_any_row_order(toy):
    predictions = toy()
    shuffled = predictions.table.sample(frac=1, random_state=1)
    one = json.dumps(evaluate(predictions, QUICK))
    assert json.dumps(evaluate(Predictions(predictions.classes, shuffled), QUICK)) == one
    other = evaluate(predictions, EvaluateSpec(replicates=200, seed=1))
    assert json.dumps(other) != one


def test_two_thousand_replicates_of_five_hundred_slides_are_quick(toy):
    predictions = toy(n=500, seeds=1, folds=5, sites=5)
    started = time.process_time()
    evaluate(predictions, EvaluateSpec(replicates=2000))
    assert time.process_time() - started < 6  # about 1 s on an idle core


def test_an_interval_of_one_point_says_what_it_rests_on(toy):
    predictions = toy(skill=30.0)
    found = evaluate(predictions, EvaluateSpec(replicates=100), ["auc", "micro_f1"])
    for metric, seen in (("auc", "no misranked pair"), ("micro_f1", "no error")):
        score = found[metric]
        assert (score["value"], score["low"], score["high"]) == (1.0, 1.0, 1.0)
        assert f"degenerate interval: {seen} was seen in {found['n']} slides" in score["note"]
    usual = evaluate(toy(), EvaluateSpec(replicates=100), ["auc"])["auc"]
    assert "degenerate" not in usual["note"]


def test_unequal_patients_widen_the_intervals_of_scores_and_differences(toy):
    """As many slides of as many patients: where one has a third of them, bounds lie farther."""
    even = toy(n=60, per_patient=2, folds=1, seeds=1, sites=1, C=2)
    table = even.table.copy()
    table["patient_id"] = ["big" if k < 20 else f"q{k % 29}" for k in range(60)]
    uneven = Predictions(even.classes, table)
    strata = np.zeros(table["patient_id"].nunique(), int)
    sizes = table["patient_id"].value_counts().to_numpy()
    ratio = quantile(0.95, strata, sizes) / quantile(0.95, strata)
    assert ratio > 1.1
    spec = EvaluateSpec(replicates=4000)
    sample = make_sample(uneven)
    weights = draw_weights(sample.strata, spec)
    accuracy = statistic(METRICS["micro_f1"], sample)
    equal = bootstrap(accuracy, weights, sample.strata, 0.95)
    score = evaluate(uneven, spec, ["micro_f1"])["micro_f1"]
    assert score["high"] - score["low"] > 1.05 * (equal.high - equal.low)
    other = Predictions(even.classes, table.assign(p_a=table["p_b"], p_b=table["p_a"]))
    pair = compare([("x", uneven), ("y", other)], "nll", spec)["differences"][0]
    nll = [resample(statistic(METRICS["nll"], make_sample(p)), weights) for p in (other, uneven)]
    plain = interval_of(nll[0] - nll[1], sample.strata, 0.95)
    assert pair["high"] - pair["low"] > 1.05 * (plain.high - plain.low)
