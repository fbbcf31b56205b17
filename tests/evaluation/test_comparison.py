from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from wsi.errors import ConfigError, PredictionsError, UnknownNameError
from wsi.evaluation import Predictions, compare
from wsi.evaluation.comparison import holm
from wsi.evaluation.intervals import draw_weights
from wsi.evaluation.sample import make_sample
from wsi.specs import EvaluateSpec

QUICK = EvaluateSpec(replicates=400)


def test_the_difference_is_that_of_the_same_drawn_patients(toy):
    good, bad = toy(skill=2.0), toy(skill=1.0)
    found = compare([("good", good), ("bad", bad)], "micro_f1", QUICK)
    sample = make_sample(good)
    weights = draw_weights(sample.strata, QUICK)
    place = {patient: k for k, patient in enumerate(sample.patients)}
    values = []
    for predictions in (bad, good):
        of_seeds = []
        for _, rows in predictions.table.groupby("seed"):
            right = (rows["y_true"] == rows["y_pred"]).to_numpy()
            times = weights[rows["patient_id"].map(place)].astype(int)
            of_seeds.append([np.repeat(right, times[:, r]).mean() for r in range(400)])
        values.append(np.mean(of_seeds, axis=0))
    differences = values[0] - values[1]
    (row,) = found["differences"]
    accuracy = [sk.accuracy_score(x.table["y_true"], x.table["y_pred"]) for x in (bad, good)]
    assert row["value"] == pytest.approx(accuracy[0] - accuracy[1])
    spread = np.abs(differences - row["value"])
    share = (1 + (spread >= abs(row["value"])).sum()) / 401
    n, sites = len(sample.patients), 3  # of two slides each
    z = stats.norm.isf(share / 2) / np.sqrt(n / (n - sites))
    assert row["p"] == pytest.approx(2 * stats.t.sf(z, n - sites))
    # BCa shifts the percentiles only a little here.
    plain = np.quantile(differences, [0.025, 0.975])
    assert [row["low"], row["high"]] == pytest.approx(plain, abs=0.02)
    assert row["high"] < 0
    assert row["p"] < 0.02
    json.dumps(found, allow_nan=False)


def test_a_run_against_itself_differs_by_nothing(toy):
    (row,) = compare([("x", toy()), ("y", toy())], "auc", QUICK)["differences"]
    assert (row["value"], row["low"], row["high"], row["p"]) == (0.0, 0.0, 0.0, 1.0)


def test_runs_of_one_skill_are_rarely_told_apart(toy):
    p = []
    for draw in range(40):
        runs = [("x", toy(skill=1.5, draw=draw)), ("y", toy(skill=1.51, draw=draw))]
        p.append(compare(runs, "micro_f1", QUICK)["differences"][0]["p"])
    assert np.mean(np.array(p) < 0.05) <= 0.15
    assert np.median(p) > 0.25


def test_holm_corrects_as_its_definition_says():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(6) ** 3
        corrected = holm(p)
        for alpha in (0.01, 0.05, 0.3):
            # Step down: reject in order of p while p <= alpha / (number not yet rejected).
            rejected = set()
            for k, i in enumerate(np.argsort(p)):
                if p[i] > alpha / (len(p) - k):
                    break
                rejected.add(i)
            assert {i for i in range(6) if corrected[i] <= alpha} == rejected


def test_several_runs_are_corrected_and_the_reference_can_be_chosen(toy):
    runs = [(name, toy(skill=s)) for name, s in (("a", 1.0), ("b", 1.2), ("c", 2.0))]
    found = compare(runs, spec=QUICK, reference="b")
    assert found["reference"] == "b"
    assert [(d["name"], d["minus"]) for d in found["differences"]] == [("a", "b"), ("c", "b")]
    raw = [d["p"] for d in found["differences"]]
    assert [d["p_holm"] for d in found["differences"]] == pytest.approx(holm(raw))
    assert [run["name"] for run in found["runs"]] == ["a", "b", "c"]


def test_different_slides_are_refused_with_their_number_and_names(toy):
    table = toy().table
    fewer = Predictions(tuple("abcd"), table[~table["slide_id"].isin(["s0003", "s0009"])])
    with pytest.raises(PredictionsError, match="different slides for 2 slides: s0003, s0009"):
        compare([("all", toy()), ("fewer", fewer)], spec=QUICK)


def test_different_patients_are_called_patients_where_rows_are_patients(toy):
    table = toy().table
    table["slide_id"] = table["patient_id"]
    table = table.drop_duplicates(["slide_id", "fold", "seed"])
    whole = Predictions(tuple("abcd"), table, of_patients=True)
    gone = sorted(set(table["slide_id"]))[0]
    fewer = Predictions(tuple("abcd"), table[table["slide_id"] != gone], of_patients=True)
    with pytest.raises(PredictionsError) as caught:
        compare([("all", whole), ("fewer", fewer)], spec=QUICK)
    assert f"different patients for 1 patients: {gone} — " in str(caught.value)
    assert "slides" not in str(caught.value)


def test_different_patients_labels_or_classes_are_refused(toy):
    for column, value, what in (("patient_id", "px", "patients"), ("y_true", "d", "labels")):
        table = toy().table
        table.loc[table["slide_id"] == "s0007", column] = value
        with pytest.raises(PredictionsError, match=f"different {what} for 1 slides: s0007"):
            compare([("x", toy()), ("y", Predictions(tuple("abcd"), table))], spec=QUICK)
    with pytest.raises(PredictionsError, match="compare runs of one task"):
        compare([("x", toy(C=4)), ("y", toy(C=3))], spec=QUICK)


def test_what_makes_a_comparison_weak_is_noted(toy):
    notes = " ".join(
        compare([("x", toy(n=40, seeds=1)), ("y", toy(n=40, folds=4))], spec=QUICK)["notes"]
    )
    for piece in ("20 patients", "different folds", "numbers of seeds: x 1, y 2"):
        assert piece in notes


def test_bad_requests_are_refused(toy):
    runs = [("x", toy()), ("y", toy())]
    for wrong in (runs[:1], [], [runs[0], runs[0]]):
        with pytest.raises(ConfigError, match="two or more runs"):
            compare(wrong)
    with pytest.raises(ConfigError, match="'z'"):
        compare(runs, reference="z")
    with pytest.raises(UnknownNameError, match="did you mean 'auc'"):
        compare(runs, "auk")


def test_controls_are_compared_under_the_same_draws_and_corrected_by_themselves(toy):
    runs = [(name, toy(skill=s)) for name, s in (("a", 1.0), ("b", 1.2), ("c", 2.0), ("d", 0.8))]
    found = compare(runs, "auc", QUICK, "a", {"b": ["c", "d"]})["controls"]["b"]
    alone = [
        compare([run for run in runs if run[0] in ("b", name)], "auc", QUICK, "b")["differences"][0]
        for name in ("c", "d")
    ]
    assert [(d["name"], d["minus"]) for d in found] == [("c", "b"), ("d", "b")]
    keys = ("value", "low", "high", "p")
    assert [[d[k] for k in keys] for d in found] == [[d[k] for k in keys] for d in alone]
    assert [d["p_holm"] for d in found] == pytest.approx(holm([d["p"] for d in alone]))
    with pytest.raises(ConfigError, match="cannot compare"):
        compare(runs, "auc", QUICK, "a", {"e": ["c"]})


def test_p_is_near_that_of_a_permutation_test(toy):
    """The oracle swaps the runs within patients, which the null hypothesis allows."""
    from scipy.stats import permutation_test

    x, y = toy(seeds=1, skill=1.5), toy(seeds=1, skill=1.7)
    (row,) = compare([("x", x), ("y", y)], "micro_f1", EvaluateSpec(replicates=2000))["differences"]
    right = [
        (run.table["y_true"] == run.table["y_pred"]).groupby(run.table["patient_id"]).sum()
        for run in (x, y)
    ]
    oracle = permutation_test(
        (right[1].to_numpy(), right[0].to_numpy()),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=5000,
        rng=np.random.default_rng(0),
    )
    assert 0.005 < oracle.pvalue < 0.5
    assert row["p"] == pytest.approx(oracle.pvalue, abs=0.04)


def test_a_comparison_says_what_its_p_is(toy):
    found = compare([("x", toy()), ("y", toy(skill=1.0))], "auc", QUICK)
    assert "two-sided bootstrap test" in found["p_from"]
    assert "BCa" in found["p_from"]


def test_the_same_classes_in_another_order_are_called_that(toy):
    table = toy().table
    with pytest.raises(PredictionsError, match="y the same in another order: d, c, b, a"):
        compare([("x", toy()), ("y", Predictions(tuple("dcba"), table))], "auc", QUICK)


def test_a_comparison_names_the_labels_it_rests_on(toy):
    good, bad = (replace(toy(skill=k), labels_from="version a, accepted") for k in (2.0, 1.0))
    assert (
        "labels: version a, accepted"
        in compare([("good", good), ("bad", bad)], "auc", QUICK)["notes"]
    )
    plain = compare([("good", toy(skill=2.0)), ("bad", toy(skill=1.0))], "auc", QUICK)
    assert not any("labels" in note for note in plain["notes"])
