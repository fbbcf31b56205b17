"""Classical tests of two runs on the same slides, beside the bootstrap of `wsi.evaluation.compare`.

Each has its own assumption, which its note states: none replaces the paired bootstrap, which
resamples patients for any metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest, rankdata
from scipy.stats import t as student

from wsi.evaluation.metrics import Metric
from wsi.evaluation.sample import Rows, Sample
from wsi.findings import counted

Array = np.ndarray


@dataclass(frozen=True)
class Test:
    """One test of a difference; figures are None where it cannot be made, `note` says why."""

    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as the comparison holds it."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "p": self.p,
            "note": self.note,
        }


_SIDES = ("the first run", "the second")


def paired_tests(
    metric: Metric,
    one: Sample,
    other: Sample,
    level: float,
    training: Mapping[int, int] | None = None,
    names: tuple[str, str] = _SIDES,
) -> dict[str, dict[str, Any]]:
    """Return the tests that suit a metric, by name: DeLong, McNemar, Nadeau-Bengio.

    Args:
        one, other: the same slides under two runs; the difference is one minus other.
        training: training slides by fold, where they are known.
        names: of the runs, for notes.
    """
    tests = []
    if metric.name == "auc":
        tests.append(delong(one, other, level))
    if metric.of == "decisions":
        tests.append(mcnemar(one, other, names))
    if len(np.unique(one.runs[0].fold)) > 1:
        tests.append(nadeau_bengio(metric, one, other, level, training))
    return {test.name: test.to_json() for test in tests}


# -- DeLong -----------------------------------------------------------------------------------


def delong(one: Sample, other: Sample, level: float) -> Test:
    """Return the test of the difference in one-vs-rest AUC (macro, mean of folds and seeds).

    The variance is that of the structural components, summed within patients first: with one
    slide per patient, two classes, one fold and one seed this is DeLong's test. It treats folds
    as given.

    Source: DeLong et al. 1988 (Biometrics 44); Obuchowski 1997 (Biometrics 53) for clusters.
    """
    parts = [_auc_influence(sample) for sample in (one, other)]
    (a, influence_a), (b, influence_b) = parts
    if np.isnan(a) or np.isnan(b):
        return Test("delong", note="no fold has slides of two classes")
    variance = float(((influence_a - influence_b) ** 2).sum())
    note = "DeLong's variance, slides of a patient taken together; folds as given"
    difference = a - b
    if variance <= 0:
        return Test("delong", difference, note=f"{note}; the runs rank alike")
    se = np.sqrt(variance)
    z = float(ndtri((1 + level) / 2))
    p = float(2 * ndtr(-abs(difference) / se))
    return Test("delong", difference, difference - z * se, difference + z * se, p, note)


def _auc_influence(sample: Sample) -> tuple[float, Array]:
    """Return the mean AUC over seeds and folds, and each patient's influence on it (P,)."""
    P = len(sample.patients)
    values, influences = [], []
    for rows in sample.runs:
        of_folds = [_of_fold(rows, rows.fold == fold, P) for fold in np.unique(rows.fold)]
        kept = [found for found in of_folds if not np.isnan(found[0])]
        if not kept:
            return float("nan"), np.zeros(P)
        values.append(np.mean([value for value, _ in kept]))
        influences.append(np.mean([influence for _, influence in kept], axis=0))
    return float(np.mean(values)), np.mean(influences, axis=0)


def _of_fold(rows: Rows, chosen: Array, P: int) -> tuple[float, Array]:
    """Return the macro AUC of one fold and the influence of each patient (P,)."""
    y, p, patient = rows.y[chosen], rows.p[chosen], rows.patient[chosen]
    found = []
    for c in range(p.shape[1]):
        positive = y == c
        if positive.any() and not positive.all():
            found.append(_of_class(positive, p[:, c], patient, P))
    if not found:
        return float("nan"), np.zeros(P)
    return float(np.mean([v for v, _ in found])), np.mean([i for _, i in found], axis=0)


def _of_class(positive: Array, score: Array, patient: Array, P: int) -> tuple[float, Array]:
    ranks, m, n = rankdata(score), int(positive.sum()), int((~positive).sum())
    # Placements: the share of the other side that a slide is ranked right against.
    placed = np.where(
        positive,
        (ranks - _ranks_within(score, positive)) / n,
        1 - (ranks - _ranks_within(score, positive)) / m,
    )
    value = float(placed[positive].mean())
    influence = np.zeros(P)
    for side, size in ((positive, m), (~positive, n)):
        summed = np.bincount(patient[side], placed[side] - value, minlength=P) / size
        clusters = len(np.unique(patient[side]))
        influence += summed * np.sqrt(clusters / (clusters - 1)) if clusters > 1 else summed
    return value, influence


def _ranks_within(score: Array, positive: Array) -> Array:
    """Return the rank of each slide among those of its own side, ties by their mean."""
    ranks = np.empty(len(score))
    for side in (positive, ~positive):
        ranks[side] = rankdata(score[side])
    return ranks


# -- McNemar ----------------------------------------------------------------------------------


def mcnemar(one: Sample, other: Sample, names: tuple[str, str] = _SIDES) -> Test:
    """Return the exact test of whether either run decides more slides rightly.

    Decisions are those of the ensemble of seeds. The value is the difference in accuracy.

    Source: McNemar 1947 (Psychometrika 12), exact binomial form.
    """
    rights = []
    for sample in (one, other):
        rows = sample.ensemble().runs[0] if len(sample.seeds) > 1 else sample.runs[0]
        rights.append(rows.decided == rows.y)
    if len(one.slides) > one.n:
        return Test("mcnemar", note="some slides are tested in several folds")
    only_one = int((rights[0] & ~rights[1]).sum())
    only_other = int((~rights[0] & rights[1]).sum())
    difference = (only_one - only_other) / one.n
    told = f"{counted(only_one, 'slide')} right in {names[0]} only, {only_other} in {names[1]} only"
    if one.n > len(one.patients):
        told += "; slides of a patient are taken as independent"
    if len(one.seeds) > 1 or len(other.seeds) > 1:
        told += "; decisions of the ensemble of seeds"
    if only_one + only_other == 0:
        return Test("mcnemar", difference, note=told)
    p = float(binomtest(only_one, only_one + only_other).pvalue)
    return Test("mcnemar", difference, p=p, note=told)


# -- Nadeau-Bengio ----------------------------------------------------------------------------


def nadeau_bengio(
    metric: Metric,
    one: Sample,
    other: Sample,
    level: float,
    training: Mapping[int, int] | None = None,
) -> Test:
    """Return the t test over folds whose variance allows for shared training slides.

    The variance of J differences is scaled by 1/J + n_test / n_train in place of 1/J.

    Args:
        training: training slides by fold; taken as those of the other folds where not given.

    Source: Nadeau & Bengio 2003 (Machine Learning 52), eq. 12.
    """
    differences, shares = [], []
    folds = np.unique(one.runs[0].fold)
    for fold in folds:
        values = [_of_one_fold(metric, sample, fold) for sample in (one, other)]
        n_test = int((one.runs[0].fold == fold).sum())
        n_train = (training or {}).get(int(fold)) or len(one.slides) - n_test
        if not np.isnan(values).any():
            differences.append(values[0] - values[1])
            shares.append(n_test / n_train)
    J = len(differences)
    if J < 2:
        return Test("nadeau_bengio", note=f"defined in {J} of {len(folds)} folds")
    note = f"t test over {J} folds"
    if len(folds) > J:
        note += f", undefined in {len(folds) - J} more"
    if not training:
        note += "; training slides taken as those of the other folds"
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if sd == 0:
        return Test("nadeau_bengio", mean, note=f"{note}; all differences are equal")
    se = sd * np.sqrt(1 / J + float(np.mean(shares)))
    quantile = float(student.ppf((1 + level) / 2, J - 1))
    p = float(2 * student.sf(abs(mean) / se, J - 1))
    return Test("nadeau_bengio", mean, mean - quantile * se, mean + quantile * se, p, note)


def _of_one_fold(metric: Metric, sample: Sample, fold: int) -> float:
    """Return the mean over seeds of a metric on the slides of one fold; NaN if undefined."""
    values = []
    for rows in sample.runs:
        chosen = rows.fold == fold
        value = metric(rows.y[chosen], rows.p[chosen], rows.decided[chosen]).value
        values.append(np.nan if value is None else value)
    return float(np.mean(values))
