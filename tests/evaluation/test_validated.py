from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import roc_curve

from wsi.evaluation.validated import (
    Calibration,
    Thresholds,
    at_temperature,
    fit_calibration,
    thresholds_of,
)

CLASSES = ("a", "b", "c")


def draw(n: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return classes drawn from softmax(z), and probabilities softmax(sharpness z)."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, 3))
    y = (softmax(z, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return y, softmax(sharpness * z, axis=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10**6))
def test_thresholds_do_as_well_as_the_best_point_of_scikit_learns_roc_curve(n, seed):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    positive[:2] = True, False
    score = np.round(np.clip(rng.random(n) * 0.7 + 0.3 * positive, 0, 1), 1)
    found = thresholds_of(positive, score)
    fpr, tpr, _ = roc_curve(positive, score, drop_intermediate=False)

    def at(t: float) -> tuple[float, float]:
        return float((score[positive] >= t).mean()), float((score[~positive] < t).mean())

    assert sum(at(found.youden)) - 1 == pytest.approx((tpr - fpr).max())
    sensitivity, specificity = at(found.sensitivity_95)
    assert sensitivity >= 0.95
    assert specificity == pytest.approx(1 - fpr[tpr >= 0.95].min())
    assert (found.positives, found.negatives) == (positive.sum(), (~positive).sum())
    assert not {found.youden, found.sensitivity_95} & set(score[score > 0])


def test_a_threshold_lies_half_way_to_the_next_lower_score():
    positive = np.array([True, True, False, False])
    found = thresholds_of(positive, np.array([0.9, 0.8, 0.2, 0.1]))
    assert found.youden == found.sensitivity_95 == pytest.approx(0.5)


def test_of_thresholds_as_good_as_each_other_the_lowest_stands():
    positive = np.array([True, True, False, False])
    found = thresholds_of(positive, np.array([0.9, 0.3, 0.5, 0.1]))
    assert found.youden == pytest.approx(0.2)  # as good as 0.7


def test_a_class_that_validation_lacks_has_no_threshold_and_says_why():
    y, p = np.array([0, 1, 0, 1]), np.full((4, 3), 1 / 3)
    found = fit_calibration(y, p, CLASSES).thresholds
    assert found["c"].youden is found["c"].sensitivity_95 is None
    assert found["c"].reason == "no validation row of c"
    alone = fit_calibration(np.zeros(3, int), p[:3], CLASSES).thresholds["a"]
    assert (alone.youden, alone.reason) == (None, "validation rows of a only")


def test_without_validation_nothing_is_settled():
    found = fit_calibration(np.zeros(0, int), np.zeros((0, 3)), CLASSES)
    assert (found.temperature, dict(found.thresholds)) == (None, {})
    assert found.reason == "no validation part"


def test_the_temperature_undoes_a_known_sharpness():
    y, p = draw(6_000, 1, sharpness=2.5)
    assert fit_calibration(y, p, CLASSES).temperature == pytest.approx(2.5, rel=0.05)


def test_the_temperature_is_that_of_a_grid_over_smoothed_labels():
    y, p = draw(30, 2, sharpness=3.0)
    smooth = np.full((30, 3), 1 / 33)
    smooth[np.arange(30), y] = 31 / 33
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 20_001))
    losses = []
    for t in grid:
        q = p ** (1 / t)
        losses.append(-(smooth * np.log(q / q.sum(axis=1, keepdims=True))).sum())
    best = grid[np.argmin(losses)]
    assert fit_calibration(y, p, CLASSES).temperature == pytest.approx(best, rel=1e-3)


def test_probabilities_at_a_temperature_are_powers_scaled_to_sum_to_one():
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    by_hand = p**0.5 / (p**0.5).sum(axis=1, keepdims=True)
    assert at_temperature(p, 2.0) == pytest.approx(by_hand)
    certain = at_temperature(np.array([[1.0, 0.0, 0.0]]), 20.0)
    assert certain.sum() == pytest.approx(1)
    assert np.isfinite(certain).all()


def test_it_is_the_same_after_json():
    y, p = draw(20, 3)
    y[y == 2] = 0
    for found in (fit_calibration(y, p, CLASSES), Calibration()):
        text = json.dumps(found.to_json(), allow_nan=False)
        assert Calibration.from_json(json.loads(text)) == found


@pytest.mark.parametrize(
    ("change", "told"),
    [({"temperature": 0.0}, "temperature of 0"), ({"temperature": -1}, "-1"), ({"n": "x"}, "'x'")],
)
def test_what_cannot_be_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        Calibration.from_json(Calibration(1.0, {"a": Thresholds()}, 3, "").to_json() | change)
