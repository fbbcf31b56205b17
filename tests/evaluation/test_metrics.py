from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from wsi.errors import UnknownNameError
from wsi.evaluation.metrics import METRICS, confusion_matrix, metric_named, per_class


def draw(n: int, C: int, seed: int, present: int | None = None, decimals: int = 2):
    """Random labels and probabilities, rounded so that scores tie."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, present or C, n)
    p = np.round(rng.dirichlet(np.full(C, 0.7), n), decimals)
    return y, p / p.sum(axis=1, keepdims=True)


def expected(name: str, y: np.ndarray, p: np.ndarray) -> float:
    """The same metric by scikit-learn, or from its definition where that has none."""
    C, decided = p.shape[1], p.argmax(axis=1)
    classes = [c for c in range(C) if 0 < (y == c).sum() < len(y)]
    if name == "macro_f1":
        return float(sk.f1_score(y, decided, labels=range(C), average="macro", zero_division=0))
    if name == "micro_f1":
        return float(sk.accuracy_score(y, decided))
    if name == "balanced_accuracy":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class predicted though absent
            return float(sk.balanced_accuracy_score(y, decided))
    if name == "quadratic_kappa":
        return float(sk.cohen_kappa_score(y, decided, labels=range(C), weights="quadratic"))
    if name == "auc":
        return float(np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in classes]))
    if name == "average_precision":
        return float(np.mean([sk.average_precision_score(y == c, p[:, c]) for c in classes]))
    if name == "nll":
        return float(
            np.mean([-np.log(max(p[i, k], 2.220446049250313e-16)) for i, k in enumerate(y)])
        )
    if name == "brier":
        return float(sk.brier_score_loss(y, p, labels=range(C), scale_by_half=False))
    bins: dict[int, list[float]] = {}
    for row, k in zip(p, y):
        b = next(b for b in range(15) if b / 15 < row.max() <= (b + 1) / 15)
        bins.setdefault(b, []).append(float(row.argmax() == k) - row.max())
    return sum(abs(sum(gaps)) for gaps in bins.values()) / len(y)


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(2, 5), st.integers(0, 10**6))
def test_every_metric_is_that_of_scikit_learn(name, n, C, seed):
    # On the edge of a calibration bin the last bit would decide: there, scores do not tie.
    y, p = draw(n, C, seed, decimals=9 if name == "ece" else 2)
    if len(set(y)) == 1:
        y[0] = (y[0] + 1) % C
    found = METRICS[name](y, p)
    assert found.value == pytest.approx(expected(name, y, p), abs=1e-12)
    assert found.reason == ""


def weighted(name: str, y: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    """The metric of rows (n,) that count w (n,) times, by scikit-learn."""
    C, decided = p.shape[1], p.argmax(axis=1)
    each = {"sample_weight": w}
    sums = np.bincount(y, w, minlength=C)
    classes = [c for c in range(C) if 0 < sums[c] < w.sum()]
    if name == "macro_f1":
        kept = {"labels": range(C), "average": "macro", "zero_division": 0}
        return float(sk.f1_score(y, decided, **kept, **each))
    if name == "micro_f1":
        return float(sk.accuracy_score(y, decided, **each))
    if name == "balanced_accuracy":
        recalls = sk.recall_score(
            y, decided, labels=range(C), average=None, zero_division=0, **each
        )
        return float(np.mean([recalls[c] for c in range(C) if sums[c] > 0]))
    if name == "quadratic_kappa":
        kept = {"labels": range(C), "weights": "quadratic"}
        return float(sk.cohen_kappa_score(y, decided, **kept, **each))
    if name in ("auc", "average_precision"):
        of = sk.roc_auc_score if name == "auc" else sk.average_precision_score
        return float(np.mean([of(y == c, p[:, c], **each) for c in classes]))
    if name == "nll":
        return float(sk.log_loss(y, np.clip(p, 2.220446049250313e-16, 1), labels=range(C), **each))
    if name == "brier":
        return float(sk.brier_score_loss(y, p, labels=range(C), scale_by_half=False, **each))
    gaps = np.zeros(15)
    for row, k, times in zip(p, y, w):
        b = next(b for b in range(15) if b / 15 < row.max() <= (b + 1) / 15)
        gaps[b] += times * (float(row.argmax() == k) - row.max())
    return float(np.abs(gaps).sum() / w.sum())


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(2, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_every_weighted_metric_is_that_of_scikit_learn(name, n, C, present, seed):
    y, p = draw(n, C, seed, min(present, C), decimals=9 if name == "ece" else 1)
    p = np.nan_to_num(p, nan=1 / C)  # rows that rounding left empty
    w = np.random.default_rng(seed).choice([0.0, 0.5, 1.0, 3.0], n)
    y[0], w[0] = 0, 1.0
    y[1], w[1] = 1, 1.0
    metric = METRICS[name]
    if metric.of == "decisions":
        confusion = sk.confusion_matrix(y, p.argmax(axis=1), labels=range(C), sample_weight=w)
        found = float(metric.compute(confusion))
    else:
        found = float(metric.compute(y, p, w[:, None])[0])
    assert found == pytest.approx(weighted(name, y, p, w), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(34, 100), st.booleans()), min_size=1, max_size=40))
@example([(60, True), (64, False)])
@example([(80, True), (75, False)])
def test_confidences_on_the_edge_of_a_bin_belong_below_it(rows):
    gaps: dict[int, Fraction] = {}
    for percent, right in rows:
        b = -(-15 * percent // 100)  # ceil, in whole numbers
        gaps[b] = gaps.get(b, Fraction(0)) + int(right) - Fraction(percent, 100)
    expected = float(sum(abs(gap) for gap in gaps.values()) / len(rows))
    top = np.array([percent / 100 for percent, _ in rows])
    p = np.stack([top, *[(1 - top) / 2] * 2], axis=1)
    y = np.array([0 if right else 1 for _, right in rows])
    assert METRICS["ece"](y, p).value == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(2, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_figures_and_counts_of_each_class_are_those_of_scikit_learn(n, C, present, seed):
    y, p = draw(n, C, seed, min(present, C), decimals=2)
    decided = p.argmax(axis=1)
    counts = confusion_matrix(y, decided, C)
    assert (counts == sk.confusion_matrix(y, decided, labels=range(C))).all()
    of = sk.precision_recall_fscore_support(y, decided, labels=range(C), zero_division=np.nan)
    f1 = sk.f1_score(y, decided, labels=range(C), average=None, zero_division=0)
    for c, row in enumerate(per_class(y, p, decided)):
        expected = {"precision": of[0][c], "recall": of[1][c], "f1": f1[c], "support": of[3][c]}
        both = 0 < (y == c).sum() < n
        expected["auc"] = sk.roc_auc_score(y == c, p[:, c]) if both else np.nan
        expected["average_precision"] = (
            sk.average_precision_score(y == c, p[:, c]) if both else np.nan
        )
        told = {key: np.nan if value is None else value for key, value in row.items()}
        assert told == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
def test_an_absent_class_changes_nothing_that_is_defined_without_it(name):
    y, p = draw(200, 4, 3, present=2, decimals=9)
    assert METRICS[name](y, p).value == pytest.approx(expected(name, y, p), abs=1e-12)


def test_macro_f1_counts_an_absent_class_as_zero_over_all_declared_classes():
    y, p = np.array([0, 0, 1, 1]), np.eye(3)[[0, 0, 1, 1]]
    assert METRICS["macro_f1"](y, p).value == pytest.approx(2 / 3)
    assert METRICS["balanced_accuracy"](y, p).value == 1.0
    assert METRICS["balanced_accuracy"](y, p).classes == 2
    assert METRICS["auc"](y, p).value == 1.0
    assert METRICS["auc"](y, p).classes == 2


@pytest.mark.parametrize("name", ["auc", "average_precision"])
def test_one_class_alone_has_no_ranking_and_says_why(name):
    found = METRICS[name](np.zeros(5, int), np.full((5, 3), 1 / 3))
    assert found.value is None
    assert found.reason == "only one class present"
    assert found.classes == 0


@pytest.mark.parametrize("name", METRICS)
def test_no_slides_have_no_score(name):
    found = METRICS[name](np.zeros(0, int), np.zeros((0, 3)))
    assert (found.value, found.reason) == (None, "no slides")


def test_a_certain_mistake_has_a_finite_likelihood():
    assert METRICS["nll"](np.array([0]), np.array([[0.0, 1.0]])).value == pytest.approx(
        36.0437, abs=1e-3
    )


def test_decisions_other_than_the_largest_probability_are_respected():
    y, p = draw(50, 3, 1)
    decided = np.roll(p.argmax(axis=1), 1)
    assert METRICS["micro_f1"](y, p, decided).value == pytest.approx(sk.accuracy_score(y, decided))


def test_per_class_figures_are_those_of_scikit_learn_and_undefined_is_none():
    y, p = draw(80, 4, 5, present=3)
    p[:, 1] = 0.0  # never predicted
    p /= p.sum(axis=1, keepdims=True)
    decided = p.argmax(axis=1)
    rows = per_class(y, p, decided)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        y, decided, labels=range(4), zero_division=0
    )
    for c, row in enumerate(rows):
        assert row["f1"] == pytest.approx(f1[c])
        assert row["support"] == support[c]
        if c != 1:
            assert row["precision"] == pytest.approx(precision[c])
        if c != 3:
            assert row["recall"] == pytest.approx(recall[c])
            assert row["auc"] == pytest.approx(sk.roc_auc_score(y == c, p[:, c]))
    assert rows[1]["precision"] is None
    assert rows[3]["recall"] is None
    assert rows[3]["auc"] is None


def test_an_unknown_metric_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'macro_f1'"):
        metric_named("macro-f1")
