from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from wsi.evaluation import Predictions, by_patient, evaluate, read_predictions, write_predictions
from wsi.evaluation.validated import Calibration, Thresholds, fit_name
from wsi.specs import EvaluateSpec

QUICK = EvaluateSpec(replicates=300)
TEMPERATURES = {(0, 0): 0.5, (0, 1): 2.0, (1, 0): 3.0, (1, 1): 1.0}


def settled(t: float, cut: float | None, positives: int = 40) -> Calibration:
    found = {
        name: Thresholds(cut, None if cut is None else cut / 2, positives, 60, "" if cut else "why")
        for name in "abc"
    }
    return Calibration(t, found, 100, "")


@pytest.fixture(scope="module")
def predictions(toy) -> Predictions:
    """Two folds, two seeds; a temperature and a threshold for each."""
    calibration = {
        fit_name(fold, seed): settled(t, 0.2 + 0.1 * fold + 0.05 * seed)
        for (fold, seed), t in TEMPERATURES.items()
    }
    return replace(toy(n=160, C=3, folds=2, seeds=2), calibration=calibration)


@pytest.fixture(scope="module")
def metrics(predictions) -> dict:
    return evaluate(predictions, QUICK)


def test_calibrated_figures_are_those_of_each_folds_own_temperature(predictions, metrics):
    found, table = metrics["calibrated"], predictions.table
    assert found["temperatures"] == {fit_name(*key): t for key, t in TEMPERATURES.items()}
    losses = []
    for (fold, seed), t in TEMPERATURES.items():
        rows = ((table["fold"] == fold) & (table["seed"] == seed)).to_numpy()
        p = predictions.p[rows] ** (1 / t)
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(len(p)), predictions.y[rows]]).mean())
    assert found["nll"]["value"] == pytest.approx(np.mean(losses))
    assert found["nll"]["low"] < found["nll"]["value"] < found["nll"]["high"]
    assert found["nll"]["value"] != metrics["nll"]["value"]
    assert found["reason"] == ""


def test_sensitivity_and_specificity_are_counted_at_each_fits_threshold(predictions, metrics):
    table, c = predictions.table, 1
    cut = 0.2 + 0.1 * table["fold"] + 0.05 * table["seed"]
    for rule, t in (("youden", cut), ("sensitivity_95", cut / 2)):
        point = metrics["operating_points"]["b"][rule]
        positive, called = predictions.y == c, predictions.p[:, c] >= t
        hits = [called[positive & (table["seed"] == s)].mean() for s in (0, 1)]
        spared = [1 - called[~positive & (table["seed"] == s)].mean() for s in (0, 1)]
        assert point["sensitivity"]["value"] == pytest.approx(np.mean(hits))
        assert point["specificity"]["value"] == pytest.approx(np.mean(spared))
        assert point["sensitivity"]["n"] == positive.sum() / 2
        assert point["specificity"]["n"] == (~positive).sum() / 2
        low, high = point["specificity"]["low"], point["specificity"]["high"]
        assert low < point["specificity"]["value"] < high
        assert point["note"] == ""
    assert point["thresholds"]["fold1-seed1"] == pytest.approx(0.35 / 2)


def test_rows_of_a_fit_without_a_threshold_are_left_out_and_told(predictions):
    calibration = dict(predictions.calibration)
    for seed in (0, 1):
        calibration[fit_name(1, seed)] = settled(1.0, None)
    point = evaluate(replace(predictions, calibration=calibration), QUICK)["operating_points"]
    first = predictions.table[predictions.table["fold"] == 0]
    expected = (first["y_true"] == "a").sum() / 2
    assert point["a"]["youden"]["sensitivity"]["n"] == expected
    told = "no threshold in 2 of 4 fits (why): fold1-seed0, fold1-seed1"
    assert told in point["a"]["youden"]["note"]


def test_without_any_threshold_the_rates_are_null_with_a_reason(predictions):
    nothing = {fit: settled(1.0, None) for fit in predictions.calibration}
    found = evaluate(replace(predictions, calibration=nothing), QUICK)
    rate = found["operating_points"]["a"]["youden"]["sensitivity"]
    assert (rate["value"], rate["low"], rate["n"]) == (None, None, 0)
    assert "undefined" in rate["note"]


def test_few_validation_rows_of_a_class_are_told(predictions):
    few = {fit: settled(1.0, 0.4, positives=k + 4) for k, fit in enumerate(predictions.calibration)}
    point = evaluate(replace(predictions, calibration=few), QUICK)["operating_points"]
    assert (
        "4 of 4 thresholds rest on few validation rows of c: 4 to 7" in point["c"]["youden"]["note"]
    )


def test_a_fit_without_a_temperature_leaves_no_calibrated_figure_and_says_which(predictions):
    calibration = dict(predictions.calibration) | {fit_name(1, 0): Calibration()}
    found = evaluate(replace(predictions, calibration=calibration), QUICK)["calibrated"]
    assert (found["nll"], found["brier"], found["ece"]) == (None, None, None)
    assert found["note"] == ""
    assert found["reason"] == "1 of 4 fits have no temperature: fold1-seed0, no validation part"


def test_a_temperature_at_an_end_of_its_range_is_told(predictions):
    calibration = dict(predictions.calibration) | {fit_name(0, 1): settled(19.9999, 0.3)}
    found = evaluate(replace(predictions, calibration=calibration), QUICK)["calibrated"]
    assert found["note"].startswith("1 of 4 temperatures are at an end of their range")
    assert "fold0-seed1" in found["note"]


def test_tables_from_elsewhere_have_neither(toy):
    found = evaluate(toy(n=40, C=2, folds=1, seeds=1), QUICK)
    assert found["operating_points"] == {}
    assert found["calibrated"]["nll"] is None
    assert found["calibrated"]["reason"] == "the predictions come without temperatures"


def test_what_validation_settled_travels_with_the_table(predictions, tmp_path):
    write_predictions(replace(predictions, ordered=True, of_patients=True), tmp_path / "p.csv")
    again = read_predictions(tmp_path / "p.csv")
    assert again.calibration == predictions.calibration
    assert again.ordered
    assert again.unit == "patient"


def test_patients_made_of_slides_have_no_temperature(toy, predictions):
    table = predictions.table.assign(y_true="a")
    patients = by_patient(replace(predictions, table=table, ordered=True))
    assert patients.calibration == {}
    assert patients.ordered


def test_kappa_is_scored_where_classes_are_ordered_by_site_too(predictions, metrics):
    assert "quadratic_kappa" not in metrics
    found = evaluate(replace(predictions, ordered=True), QUICK)
    assert found["ordered"] is True
    score = found["quadratic_kappa"]
    assert score["low"] < score["value"] < score["high"]
    assert "quadratic_kappa" in found["by"]["site"]["c0"]
    assert "quadratic_kappa" in found["worst_site"]
