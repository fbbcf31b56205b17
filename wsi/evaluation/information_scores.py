"""What predictions tell about labels, as metrics.json and comparisons have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import logsumexp, xlogy

from wsi.evaluation.head import Head
from wsi.evaluation.information import NCMIScores, ncmi
from wsi.evaluation.intervals import FEW_PATIENTS, Interval, Score, bootstrap
from wsi.evaluation.metrics import confusion_matrix, defined, micro_f1
from wsi.evaluation.sample import Rows, Sample

Array = np.ndarray
Statistic = Callable[[Array], Array]
Quantity = Literal["mi", "share"]

FEWEST_RANKED = 5
"""Below this many models a rank correlation says nothing."""

HARDLY_APART = 0.01
"""A separation, in nats, below which classes get nearly the same probabilities."""

BELOW_ZERO = "below 0 no information is shown"
"""What an estimate of I(X; Y) says when it is negative, as the information itself never is."""

_LEAST = float(np.finfo(np.float64).eps)  # as for the likelihood: a certain mistake costs 36 nats
_WHAT = {
    "training": "posteriors at the training frequencies of their fold, re-targeted to the labels' "
    "frequencies among the slides evaluated",
    "uniform": "posteriors at equal priors, re-targeted to the labels' frequencies among the "
    "slides evaluated",
    "scores": "scores of the decision rule, posteriors at no known prior: taken as they are",
    "unknown": "posteriors at unknown training frequencies: taken as at the labels' frequencies "
    "among the slides evaluated",
}


@dataclass(frozen=True)
class _Heads:
    """log p(x | c) up to a constant of the row (n, C) for each seed, and how they were got.

    Attributes:
        prior: the prior (n, C) each row's probabilities were at.
    """

    kind: str
    prior: Array
    runs: tuple[Array, ...]
    clipped: int


def information(sample: Sample, head: Head | None, weights: Array, level: float) -> dict[str, Any]:
    """Return the block `information` of metrics.json, in nats.

    The estimate of I(X; Y) is the mean pmi of all test rows, the mean over seeds, with a
    patient-clustered interval; heads are re-targeted to the prior of the slides evaluated, in every
    replicate anew. NCMI pools the folds of a seed.

    Args:
        head: the prior of the predictions, None where unknown.
        weights: multiplicities of patients (P, R), one draw for all metrics.
    """
    heads = _heads(sample, head)
    rows, C = sample.runs[0], len(sample.classes)
    frequencies = np.bincount(rows.y, minlength=C) / len(rows.y)
    measured = [ncmi(run.p, run.y, C) for run in sample.runs]
    balanced = [ncmi(run.p, run.y, C, weighting="balanced") for run in sample.runs]
    useless = _below_the_majority(sample, float(frequencies.max()))
    return {
        "unit": "nats",
        "probabilities": _WHAT[heads.kind],
        "mi": _score(sample, heads, weights, level, "mi"),
        "share": _score(sample, heads, weights, level, "share"),
        "label_entropy": float(-xlogy(frequencies, frequencies).sum()),
        "as_predicted": _as_predicted(sample, heads),
        "ncmi": _ncmi(measured, useless),
        "ncmi_balanced": _ncmi(balanced, useless),
        "per_class": _per_class(sample, measured),
        "seeds": {
            str(seed): {
                "mi": _of_seed(sample, heads, k, "mi"),
                "ncmi": measured[k].ncmi,
                "ncmi_balanced": balanced[k].ncmi,
            }
            for k, seed in enumerate(sample.seeds)
        },
    }


def accuracy_ncmi(samples: Mapping[str, Sample]) -> dict[str, Any]:
    """Return accuracy and NCMI of every run and seed, and their rank correlation.

    Source: Ye et al. 2026, figure 2. The runs must be of one task: NCMI is of the predicted
    probabilities, folds pooled.
    """
    points = []
    for name, sample in samples.items():
        C = len(sample.classes)
        for seed, rows in zip(sample.seeds, sample.runs, strict=True):
            accuracy = float(micro_f1(confusion_matrix(rows.y, rows.decided, C)))
            value = ncmi(rows.p, rows.y, C)
            point = {"run": name, "seed": seed, "accuracy": accuracy, "ncmi": value.ncmi}
            points.append(point | ({"note": value.reason} if value.reason else {}))
    known = [(point["accuracy"], point["ncmi"]) for point in points if point["ncmi"] is not None]
    return {"points": points, "spearman": _rank_correlation(known), "ranked": len(known)}


def _rank_correlation(pairs: list[tuple[float, float]]) -> float | None:
    if len(pairs) < FEWEST_RANKED:
        return None
    ranks = pd.DataFrame(pairs).rank()  # Spearman's is Pearson's of the ranks
    return None if (ranks.nunique() < 2).any() else float(ranks.corr().iloc[0, 1])


def _heads(sample: Sample, head: Head | None) -> _Heads:
    """Return likelihoods of the classes, by the prior of each row's fold."""
    rows, C = sample.runs[0], len(sample.classes)
    kind, prior = _priors(rows, C, head)
    at = np.arange(len(rows.y))
    clipped = max(int((run.p[at, run.y] < _LEAST).sum()) for run in sample.runs)
    logs = (np.log(np.maximum(run.p, _LEAST)) for run in sample.runs)
    return _Heads(kind, prior, tuple(log - np.log(prior) for log in logs), clipped)


def _priors(rows: Rows, C: int, head: Head | None) -> tuple[str, Array]:
    """Return what the probabilities are, and the prior (n, C) of each row."""
    kind = "unknown" if head is None else head.predicts_prior or "scores"
    if head is not None and kind != "scores":
        found = {int(fold): head.prior(int(fold), C) for fold in np.unique(rows.fold)}
        known = {fold: prior for fold, prior in found.items() if prior is not None}
        if len(known) == len(found):
            return kind, np.stack([known[int(fold)] for fold in rows.fold])
        kind = "unknown"  # one rule for all folds
    own = np.bincount(rows.y, minlength=C) / len(rows.y)
    # A class without slides has no share in the target either, so any value will do.
    return kind, np.tile(np.where(own > 0, own, 1.0), (len(rows.y), 1))


def _of_run(rows: Rows, L: Array, P: int) -> Callable[[Array], tuple[Array, Array]]:
    """Return the mean pmi and the label entropy, functions of patient weights (P, R).

    Both are at the frequencies of the labels under these weights.
    """
    at = np.arange(len(rows.y))
    top = L.max(axis=1, keepdims=True)
    likelihood, true = np.exp(L - top), (L - top)[at, rows.y]
    of_class = np.zeros((L.shape[1], P))
    np.add.at(of_class, (rows.y, rows.patient), 1)

    def values(weights: Array) -> tuple[Array, Array]:
        counts = of_class @ weights
        prior = counts / counts.sum(axis=0)
        entropy = -xlogy(prior, prior).sum(axis=0)
        of_row = weights[rows.patient]
        evidence = likelihood @ prior
        # A row that was not drawn may be of a class without any evidence in this replicate.
        log = np.log(evidence, out=np.zeros_like(evidence), where=of_row > 0)
        mean = (of_row * (true[:, None] - log)).sum(axis=0) / of_row.sum(axis=0)
        return np.where(entropy > 0, mean, np.nan), entropy

    return values


def information_statistic(sample: Sample, head: Head | None, name: Quantity) -> Statistic:
    """Return `mi` or its `share` of the label entropy, as a function of patient weights (P, R)."""
    return _statistic(sample, _heads(sample, head), name)


def _statistic(sample: Sample, heads: _Heads, name: Quantity) -> Statistic:
    """Return `mi`, the mean over seeds, or its `share` of the label entropy."""
    P = len(sample.patients)
    each = [_of_run(rows, L, P) for rows, L in zip(sample.runs, heads.runs, strict=True)]

    def values(weights: Array) -> Array:
        found = [one(weights) for one in each]
        mi, entropy = np.mean([mi for mi, _ in found], axis=0), found[0][1]
        if name == "mi":
            return mi
        return np.divide(mi, entropy, out=np.full_like(mi, np.nan), where=entropy > 0)

    return values


def _score(
    sample: Sample, heads: _Heads, weights: Array, level: float, name: Quantity
) -> dict[str, Any]:
    """Return the information, or its share of the label entropy, with its interval."""
    interval = bootstrap(
        _statistic(sample, heads, name), weights, sample.strata, level, sample.sizes
    )
    score = Score(
        name,
        defined(interval.value),
        defined(interval.low),
        defined(interval.high),
        sample.n,
        len(sample.patients),
        note=_note(sample, heads, interval),
    )
    values = asdict(score)
    del values["metric"]
    seeds = [_of_seed(sample, heads, k, name) for k in range(len(sample.seeds))]
    values["seeds_sd"] = _sd(seeds)
    return values


def _of_seed(sample: Sample, heads: _Heads, k: int, name: Quantity) -> float | None:
    everyone = np.ones((len(sample.patients), 1))
    one = _Heads(heads.kind, heads.prior, heads.runs[k : k + 1], 0)
    return defined(float(_statistic(sample.of_seed(k), one, name)(everyone)[0]))


def _note(sample: Sample, heads: _Heads, interval: Interval) -> str:
    P = len(sample.patients)
    if np.isnan(interval.value):
        return "undefined: only one class present"
    notes = []
    if heads.kind in ("scores", "unknown"):
        notes.append(f"the probabilities are {_WHAT[heads.kind]}")
    if heads.clipped:
        notes.append(f"{heads.clipped} true classes of probability 0 count as {_LEAST:.1e}")
    if interval.value < 0:
        notes.append(f"{BELOW_ZERO}: the predictions are surer than right")
    if P < 2:
        notes.append("no interval: one patient")
    elif P < FEW_PATIENTS:
        notes.append(f"interval expanded: {P} patients, fewer than {FEW_PATIENTS}")
    if interval.one_sided:
        notes.append("no interval: resampling shifts this figure to one side")
    elif P > 1 and np.isnan(interval.low):
        notes.append("no interval: no replicate is defined")
    return "; ".join(notes)


def _as_predicted(sample: Sample, heads: _Heads) -> dict[str, float] | None:
    """Return the mean pmi at the priors of the heads and its bound; None without such priors."""
    if heads.kind in ("scores", "unknown"):
        return None
    y = sample.runs[0].y
    at = np.arange(len(y))
    values = [L[at, y] - logsumexp(L, b=heads.prior, axis=1) for L in heads.runs]
    return {"mi": float(np.mean(values)), "bound": float(-np.log(heads.prior[at, y]).mean())}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _sd(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _below_the_majority(sample: Sample, share: float) -> bool:
    """Return whether decisions are right no more often than the most frequent class is true."""
    right = float(np.mean([(rows.decided == rows.y).mean() for rows in sample.runs]))
    return right <= share


def _ncmi(each: list[NCMIScores], useless: bool) -> dict[str, Any]:
    """Return the mean over seeds of CMI, separation and their ratio.

    Args:
        useless: the decisions are no better than naming the most frequent class.
    """
    ratios = [scores.ncmi for scores in each]
    reasons = dict.fromkeys(scores.reason for scores in each if scores.reason)
    notes = [f"undefined: {reason}" for reason in reasons]
    separation = _mean([scores.separation for scores in each])
    if _mean(ratios) is not None and separation is not None:
        if separation < HARDLY_APART:
            notes.append(
                f"separation below {HARDLY_APART:g} nats: predictions hardly differ, and a small "
                "ratio means nothing"
            )
        if useless:
            notes.append(
                "accuracy is not above that of the most frequent class: a small NCMI means nothing"
            )
    return {
        "cmi": _mean([scores.cmi for scores in each]),
        "separation": separation,
        "ncmi": _mean(ratios),
        "seeds_sd": _sd(ratios),
        "note": "; ".join(notes),
    }


def _per_class(sample: Sample, each: list[NCMIScores]) -> dict[str, dict[str, Any]]:
    return {
        name: {"cmi": _mean([s.per_class[c] for s in each]), "n": each[0].counts[c]}
        for c, name in enumerate(sample.classes)
    }
