from __future__ import annotations

import numpy as np
import pytest

from wsi.evaluation import evaluate
from wsi.evaluation.calibration import reliability
from wsi.evaluation.intervals import draw_weights
from wsi.evaluation.sample import make_sample
from wsi.specs import EvaluateSpec

QUICK = EvaluateSpec(replicates=300)


def test_reliability_bins_are_counted_by_hand_and_add_up_to_the_calibration_error(toy):
    predictions = toy(n=150, C=3, folds=3, seeds=2)
    metrics = evaluate(predictions, QUICK)
    confidence = predictions.p.max(axis=1)
    right = predictions.p.argmax(axis=1) == predictions.y
    told = {(one["low"], one["high"]): one for one in metrics["reliability"]}
    seen = 0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if not inside.any():
            assert (b / 15, (b + 1) / 15) not in told
            continue
        one = told[b / 15, (b + 1) / 15]
        assert one["n"] == inside.sum()
        assert one["n_patients"] == predictions.table["patient_id"][inside].nunique()
        assert one["confidence"] == pytest.approx(confidence[inside].mean())
        assert one["accuracy"] == pytest.approx(right[inside].mean())
        seen += one["n"]
    assert seen == len(confidence)


def test_the_interval_of_a_bin_is_of_drawn_patients(toy):
    predictions = toy(n=200, C=2, skill=0.5, folds=1, seeds=1, sites=1)
    sample = make_sample(predictions)
    weights = draw_weights(sample.strata, EvaluateSpec(replicates=2000))
    bins = reliability(sample, weights, 0.95)
    largest = max(bins, key=lambda one: one["n"])
    confidence = predictions.p.max(axis=1)
    inside = (confidence > largest["low"]) & (confidence <= largest["high"])
    right = (predictions.p.argmax(axis=1) == predictions.y) & inside
    codes = [sample.patients.index(patient) for patient in predictions.table["patient_id"]]
    drawn = weights[codes]
    rates = (right[:, None] * drawn).sum(axis=0) / (inside[:, None] * drawn).sum(axis=0)
    # BCa shifts the percentiles only a little here.
    plain = np.quantile(rates, [0.025, 0.975])
    assert [largest["accuracy_low"], largest["accuracy_high"]] == pytest.approx(plain, abs=0.03)


def test_a_bin_where_nothing_varies_has_no_interval(toy):
    predictions = toy(n=100, C=2, skill=8.0, folds=1, seeds=1)
    (last,) = [one for one in evaluate(predictions, QUICK)["reliability"] if one["high"] == 1.0]
    assert last["accuracy"] == 1.0
    assert (last["accuracy_low"], last["accuracy_high"]) == (None, None)
