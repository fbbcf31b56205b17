from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student
from sklearn.metrics import f1_score, roc_auc_score

from wsi.evaluation import Predictions, compare
from wsi.evaluation.metrics import METRICS
from wsi.evaluation.paired_tests import delong, mcnemar, nadeau_bengio
from wsi.evaluation.sample import Sample, make_sample
from wsi.specs import EvaluateSpec

LEVEL = 0.95


def sample_of(y, p, patients=None, folds=None, seeds=(0,)) -> Sample:
    return make_sample(predictions_of(y, p, patients, folds, seeds))


def predictions_of(y, p, patients=None, folds=None, seeds=(0,)) -> Predictions:
    """Return predictions of slides s000, s001, ...; p (n, C), or one such per seed."""
    p = np.asarray(p)
    per_seed = p if p.ndim == 3 else [p] * len(seeds)
    classes = [chr(97 + k) for k in range(np.asarray(per_seed[0]).shape[1])]
    tables = []
    for seed, probabilities in zip(seeds, per_seed, strict=True):
        table = pd.DataFrame(probabilities, columns=[f"p_{c}" for c in classes])
        table["slide_id"] = [f"s{i:03d}" for i in range(len(y))]
        table["patient_id"] = table["slide_id"] if patients is None else list(patients)
        table["y_true"] = [classes[k] for k in y]
        table["fold"] = 0 if folds is None else list(folds)
        table["seed"] = seed
        tables.append(table)
    return Predictions(tuple(classes), pd.concat(tables, ignore_index=True))


def two_classes(score) -> np.ndarray:
    score = np.asarray(score, float)
    return np.stack([1 - score, score], axis=1)


def plain_delong(y, one, other) -> tuple[float, float]:
    """Return difference and its variance by the double sums of DeLong et al. 1988, eq. 4-6."""
    positive, negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    m, n = len(positive), len(negative)
    v10, v01, areas = np.zeros((2, m)), np.zeros((2, n)), []
    for r, score in enumerate((one, other)):
        for (i, a), (j, b) in itertools.product(enumerate(positive), enumerate(negative)):
            psi = 1.0 if score[a] > score[b] else 0.5 if score[a] == score[b] else 0.0
            v10[r, i] += psi / n
            v01[r, j] += psi / m
        areas.append(v10[r].mean())
    s = np.cov(v10) / m + np.cov(v01) / n
    return areas[0] - areas[1], s[0, 0] + s[1, 1] - 2 * s[0, 1]


@pytest.mark.parametrize("seed", range(6))
def test_delong_is_the_double_sum_of_the_paper_ties_included(seed):
    rng = np.random.default_rng(seed)
    y = np.r_[np.zeros(17, int), np.ones(11, int)]
    one, other = (np.round(rng.uniform(0, 1, 28) * 0.7 + 0.3 * y, 1) for _ in range(2))
    difference, variance = plain_delong(y, one, other)
    ours = delong(sample_of(y, two_classes(one)), sample_of(y, two_classes(other)), LEVEL)
    se = math.sqrt(variance)
    assert ours.value == pytest.approx(difference, abs=1e-12)
    assert ours.p == pytest.approx(2 * norm.sf(abs(difference) / se), rel=1e-9)
    assert ours.low == pytest.approx(difference - norm.ppf(0.975) * se, rel=1e-9)
    assert ours.high == pytest.approx(difference + norm.ppf(0.975) * se, rel=1e-9)


def test_copies_of_a_patients_slide_add_no_evidence():
    rng = np.random.default_rng(1)
    y = rng.permutation(np.r_[np.zeros(20, int), np.ones(20, int)])
    one, other = rng.uniform(0, 1, 40) * 0.6 + 0.4 * y, rng.uniform(0, 1, 40) * 0.8 + 0.2 * y
    once = delong(sample_of(y, two_classes(one)), sample_of(y, two_classes(other)), LEVEL)
    thrice = [np.repeat(values, 3) for values in (y, one, other)]
    patients = np.repeat([f"p{i}" for i in range(40)], 3)
    several = delong(
        sample_of(thrice[0], two_classes(thrice[1]), patients),
        sample_of(thrice[0], two_classes(thrice[2]), patients),
        LEVEL,
    )
    assert several.value == pytest.approx(once.value)
    assert several.p == pytest.approx(once.p, rel=1e-9)


def test_delongs_error_is_that_of_the_bootstrap_for_classes_folds_and_seeds():
    rng = np.random.default_rng(0)
    n = 240
    y, folds = rng.integers(3, size=n), rng.integers(2, size=n)
    truth = np.eye(3)[y]
    runs = [
        np.stack([_softmax(rng.normal(size=(n, 3)) + gain * truth) for _ in range(2)])
        for gain in (1.0, 1.3)
    ]
    samples = [predictions_of(y, p, folds=folds, seeds=(0, 1)) for p in runs]
    found = compare(
        [("one", samples[1]), ("other", samples[0])], "auc", EvaluateSpec(replicates=4000)
    )
    (difference,) = found["differences"]
    ours = delong(make_sample(samples[0]), make_sample(samples[1]), LEVEL)
    assert ours.value == pytest.approx(difference["value"])
    width = difference["high"] - difference["low"]
    assert ours.high - ours.low == pytest.approx(width, rel=0.12)


def _softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_runs_that_rank_alike_have_no_p():
    y = np.array([0, 1, 0, 1])
    sample = sample_of(y, two_classes([0.1, 0.8, 0.3, 0.7]))
    ours = delong(sample, sample, LEVEL)
    assert (ours.value, ours.p) == (0, None)
    assert "rank alike" in ours.note


# -- McNemar ----------------------------------------------------------------------------------


def test_mcnemar_is_the_binomial_of_the_slides_that_only_one_run_gets_right():
    y = np.zeros(20, int)
    one = two_classes([0.1] * 15 + [0.9] * 5)  # right on the first 15
    other = two_classes([0.1] * 8 + [0.9] * 10 + [0.1] * 2)  # on the first 8 and the last 2
    y = np.r_[y[:-1], 1]  # a slide of the other class, so that both exist
    ours = mcnemar(sample_of(y, one), sample_of(y, other), ("ncmi", "ce"))
    right_one, right_other = (p.argmax(1) == y for p in (one, other))
    b, c = (right_one & ~right_other).sum(), (~right_one & right_other).sum()
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert ours.p == pytest.approx(min(1, 2 * tail))
    assert ours.value == pytest.approx((b - c) / 20)
    slides = "1 slide" if b == 1 else f"{b} slides"
    assert f"{slides} right in ncmi only, {c} in ce only" in ours.note


def test_mcnemar_says_what_it_takes_as_independent():
    y = np.array([0, 1, 0, 1])
    sample = sample_of(y, two_classes([0.1, 0.8, 0.3, 0.7]), patients=["p", "p", "q", "q"])
    assert "independent" in mcnemar(sample, sample).note


# -- Nadeau-Bengio ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "by_hand"), [("auc", "auc"), ("macro_f1", "f1")])
def test_nadeau_bengio_is_the_corrected_t_test_by_hand(name, by_hand):
    rng = np.random.default_rng(2)
    n, J = 100, 5
    y, folds = rng.integers(2, size=n), np.arange(n) % J
    scores = [np.clip(rng.uniform(0, 1, n) * 0.7 + gain * y, 0, 1) for gain in (0.3, 0.1)]

    def figure(score, fold):
        of = folds == fold
        if by_hand == "auc":
            return roc_auc_score(y[of], score[of])
        return f1_score(y[of], score[of] > 0.5, average="macro")

    d = np.array([figure(scores[0], f) - figure(scores[1], f) for f in range(J)])
    se = d.std(ddof=1) * math.sqrt(1 / J + 20 / 60)
    one, other = (sample_of(y, two_classes(s), folds=folds) for s in scores)
    ours = nadeau_bengio(METRICS[name], one, other, LEVEL, dict.fromkeys(range(J), 60))
    assert ours.value == pytest.approx(d.mean())
    assert ours.p == pytest.approx(2 * student.sf(abs(d.mean()) / se, J - 1))
    assert ours.high == pytest.approx(d.mean() + student.ppf(0.975, J - 1) * se)
    unknown = nadeau_bengio(METRICS[name], one, other, LEVEL)
    assert "training slides taken as" in unknown.note
    wider = d.std(ddof=1) * math.sqrt(1 / J + 20 / 80)
    assert unknown.high == pytest.approx(d.mean() + student.ppf(0.975, J - 1) * wider)


def test_folds_where_a_metric_is_undefined_are_counted():
    y = np.array([0, 1, 0, 1, 0, 0])
    folds = [0, 0, 1, 1, 2, 2]
    one = sample_of(y, two_classes([0.2, 0.8, 0.3, 0.9, 0.1, 0.2]), folds=folds)
    other = sample_of(y, two_classes([0.9, 0.1, 0.3, 0.9, 0.1, 0.2]), folds=folds)
    assert "undefined in 1 more" in nadeau_bengio(METRICS["auc"], one, other, LEVEL).note
