"""Softmax applied twice: told by an exact condition, and undone exactly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from wsi.errors import PredictionsError
from wsi.evaluation import Predictions, evaluate
from wsi.evaluation.twice_normalised import (
    can_be_twice_normalised,
    doubted,
    inner,
    inverted,
    suspicion,
)
from wsi.specs import EvaluateSpec


def predictions(p: np.ndarray) -> Predictions:
    """Rows of two patients each; the labels go round."""
    names = tuple("abcdefgh"[: p.shape[1]])
    table = pd.DataFrame(p, columns=[f"p_{name}" for name in names])
    table["slide_id"] = [f"s{k}" for k in range(len(p))]
    table["patient_id"] = [f"q{k // 2}" for k in range(len(p))]
    table["y_true"] = [names[k % len(names)] for k in range(len(p))]
    return Predictions(names, table)


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 99), st.floats(0.1, 20))
def test_a_softmax_of_a_softmax_is_undone(C: int, seed: int, scale: float) -> None:
    q = softmax(np.random.default_rng(seed).normal(0, scale, (40, C)), axis=1)
    p = softmax(q, axis=1)
    assert can_be_twice_normalised(p).all()
    np.testing.assert_allclose(inner(p), q, atol=1e-12)
    found = inverted(predictions(p))
    np.testing.assert_allclose(found.p, q, atol=1e-12)


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(0, 99))
def test_only_softmaxes_of_probabilities_pass(C: int, seed: int) -> None:
    # Any p is the softmax of its own logarithm; those that sum to 1 are one shift away.
    p = np.random.default_rng(seed).dirichlet(np.ones(C), 50)
    logits = np.log(p) + (1 - np.log(p).sum(axis=1, keepdims=True)) / C
    np.testing.assert_allclose(softmax(logits, axis=1), p)
    expected = [bool((row >= -1e-3).all() and (row <= 1 + 1e-3 * C).all()) for row in logits]
    assert can_be_twice_normalised(p).tolist() == expected


def test_two_classes_have_the_bounds_of_a_sigmoid() -> None:
    edge = 1 / (1 + np.e)
    for x, possible in ((edge + 1e-3, True), (0.5, True), (edge - 1e-3, False), (0.0, False)):
        assert can_be_twice_normalised(np.array([[x, 1 - x]])).all() == possible


def test_the_warning_needs_every_row_inside_and_enough_rows() -> None:
    q = softmax(np.random.default_rng(0).normal(0, 5, (20, 3)), axis=1)
    p = softmax(q, axis=1)
    said = suspicion(predictions(p))
    assert "may be normalised twice" in said
    assert "hesitant" in said
    assert f"{1 / (np.e + 2):.3f} to {np.e / (np.e + 2):.3f}" in said
    assert suspicion(predictions(p[:19])) == ""
    one_sure = p.copy()
    one_sure[7] = (0.9, 0.06, 0.04)
    assert suspicion(predictions(one_sure)) == ""
    assert suspicion(predictions(q)) == ""


def test_the_order_within_a_class_stays_for_two_classes_only() -> None:
    rng = np.random.default_rng(1)
    for C, same in ((2, True), (3, False)):
        q = softmax(rng.normal(0, 2, (200, C)), axis=1)
        y = rng.integers(0, C, 200) == 0
        p = softmax(q, axis=1)
        aucs = roc_auc_score(y, q[:, 0]), roc_auc_score(y, p[:, 0])
        assert (aucs[0] == aucs[1]) is same
        assert ("AUC does not" in suspicion(predictions(p))) is same


def test_the_note_reaches_the_scores_and_goes_with_the_inversion() -> None:
    spec = EvaluateSpec(replicates=100)
    p = softmax(softmax(np.random.default_rng(0).normal(0, 5, (24, 3)), axis=1), axis=1)
    doubtful = doubted(predictions(p))
    assert any("may be normalised twice" in note for note in evaluate(doubtful, spec)["notes"])
    notes = evaluate(inverted(doubtful), spec)["notes"]
    assert not any("may be" in note for note in notes)
    assert any("the outer softmax is undone" in note for note in notes)


def test_rows_that_are_no_softmax_of_probabilities_are_named() -> None:
    p = np.full((4, 3), 1 / 3)
    p[2] = (0.98, 0.01, 0.01)
    with pytest.raises(PredictionsError, match=r"1 of 4 rows are no softmax.*s2"):
        inverted(predictions(p))


def test_inversion_keeps_the_decisions() -> None:
    p = softmax(softmax(np.random.default_rng(0).normal(0, 5, (24, 3)), axis=1), axis=1)
    made = predictions(p)
    table = made.table.assign(y_pred="b")
    kept = inverted(Predictions(made.classes, table))
    assert set(kept.table["y_pred"]) == {"b"}
