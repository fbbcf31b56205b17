"""Curves against scikit-learn's, and their bands against plain resampling."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from wsi.evaluation import Predictions
from wsi.evaluation.curves import (
    GRID,
    precision_at,
    precision_recall_curves,
    roc_curves,
    sensitivity_at,
)
from wsi.evaluation.intervals import draw_weights
from wsi.evaluation.sample import make_sample
from wsi.specs import EvaluateSpec

QUICK = EvaluateSpec(replicates=100)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positives, tied scores and whole weights, some of them 0."""
    rng = np.random.default_rng(seed)
    positive = rng.random(30) < 0.3
    positive[:2] = True, False
    weights = rng.integers(0, 3, 30).astype(float)
    weights[:2] = 1
    return positive, np.round(rng.random(30), 1), weights


def sample_of(n=60, folds=3, seeds=2, skill=1.0, patients=20):
    """Return three classes, the last of them in the first fold only."""
    rng = np.random.default_rng(3)
    fold = np.arange(n) % folds
    y = np.where(fold == 0, np.arange(n) // folds % 3, np.arange(n) // folds % 2)
    tables = []
    for seed in range(seeds):
        z = np.round(rng.normal(size=(n, 3)) + skill * np.eye(3)[y], 1)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        table = {"slide_id": [f"s{k:03}" for k in range(n)], "seed": seed, "fold": fold}
        table |= {"patient_id": [f"p{k % patients:02}" for k in range(n)]}
        table |= {"y_true": [f"c{k}" for k in y]} | {f"p_c{c}": p[:, c] for c in range(3)}
        tables.append(pd.DataFrame(table))
    return make_sample(Predictions(("c0", "c1", "c2"), pd.concat(tables, ignore_index=True)))


def each_part(sample, c):
    """Yield positives and scores of a class in each seed and fold that has others too."""
    for rows in sample.runs:
        for fold in sorted(set(rows.fold)):
            inside = rows.fold == fold
            positive = rows.y[inside] == c
            if 0 < positive.sum() < len(positive):
                yield positive, rows.p[inside, c]


@pytest.mark.parametrize("seed", range(5))
def test_sensitivity_lies_on_the_line_between_the_thresholds_of_scikit_learn(seed):
    positive, score, weights = drawn(seed)
    fpr, tpr, _ = roc_curve(positive, score, sample_weight=weights, drop_intermediate=False)
    found = sensitivity_at(positive, score, weights[:, None], GRID)[:, 0]
    for at, value in zip(GRID, found, strict=True):
        before = np.flatnonzero(fpr <= at + 1e-12)[-1]  # of equal rates the last, the highest
        after = min(before + 1, len(fpr) - 1)
        run = fpr[after] - fpr[before]
        rise = (tpr[after] - tpr[before]) * (at - fpr[before]) / run if run > 0 else 0.0
        assert value == pytest.approx(tpr[before] + max(rise, 0.0))


@pytest.mark.parametrize("seed", range(5))
def test_precision_is_that_of_the_highest_threshold_that_reaches_the_recall(seed):
    positive, score, weights = drawn(seed)
    precision, recall, _ = precision_recall_curve(positive, score, sample_weight=weights)
    found = precision_at(positive, score, weights[:, None], GRID)[:, 0]
    for at, value in zip(GRID[1:], found[1:], strict=True):
        assert value == pytest.approx(precision[np.flatnonzero(recall >= at - 1e-12)[-1]])


def test_a_column_without_a_positive_or_a_negative_is_undefined():
    positive, score, _ = drawn(0)
    weights = np.stack([positive * 1.0, ~positive * 1.0, np.ones(30)], axis=1)
    for at in (sensitivity_at, precision_at):
        undefined = np.isnan(at(positive, score, weights, GRID)).all(axis=0)
        assert undefined.tolist() == [True, True, False]


def test_the_area_drawn_is_the_mean_area_over_folds_and_seeds():
    sample = sample_of()
    roc, found = roc_curves(sample, QUICK), precision_recall_curves(sample, QUICK)
    for c in range(3):
        parts = list(each_part(sample, c))
        aucs = [roc_auc_score(*part) for part in parts]
        averages = [average_precision_score(*part) for part in parts]
        for curve, areas in ((roc[c], aucs), (found[c], averages)):
            assert curve.area == pytest.approx(np.mean(areas))
            assert np.trapezoid(curve.y, curve.x) == pytest.approx(np.mean(areas))
            assert (np.diff(curve.x) >= 0).all()
            assert curve.share == pytest.approx(np.mean([positive.mean() for positive, _ in parts]))
    assert [curve.defined for curve in roc] == [3, 3, 1]


def test_a_class_without_slides_has_no_curve():
    sample = sample_of(folds=2)
    lone = sample.where(sample.runs[0].fold == 1)
    for curves in (roc_curves(lone, QUICK), precision_recall_curves(lone, QUICK)):
        assert [curve is None for curve in curves] == [False, False, True]


def test_bands_are_percentiles_of_curves_over_resampled_patients():
    sample = sample_of(patients=45)
    spec = EvaluateSpec(replicates=100, level=0.9)
    weights = draw_weights(sample.strata, spec)
    values = []
    for k in range(100):
        drawn_again = []
        for rows in sample.runs:
            for fold in range(3):
                inside = rows.fold == fold
                w, y = weights[rows.patient[inside], k], rows.y[inside] == 0
                if not 0 < w @ y < w.sum():
                    continue  # undefined in this replicate
                fpr, tpr, _ = roc_curve(y, rows.p[inside, 0], sample_weight=w)
                drawn_again.append(max(tpr[fpr <= 0]))
        values.append(np.mean(drawn_again))
    curve = roc_curves(sample, spec)[0]
    m = np.bincount(sample.runs[0].patient)
    n, S = m.sum() ** 2 / (m**2).sum(), len(set(sample.strata))
    tail = norm.sf(student.ppf(0.95, n - S) * np.sqrt(n / (n - S)))
    bounds = tuple(np.quantile(values, [tail, 1 - tail]))
    assert (curve.low[0], curve.high[0]) == pytest.approx(bounds)
    assert (curve.low <= curve.high).all()
    assert (np.diff(curve.low) >= 0).all()


def test_one_patient_has_no_band():
    (curve, *_) = roc_curves(sample_of(patients=1), QUICK)
    assert np.isnan([curve.low, curve.high]).all()


def test_a_long_table_is_drawn_with_few_corners_and_the_same_area():
    curve = roc_curves(sample_of(n=3000, folds=1, seeds=1, patients=300), QUICK)[0]
    assert len(curve.x) < 1000
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(curve.area, abs=2e-3)
