"""ROC and precision-recall curves of each class against the rest, with bands over patients.

A curve is the mean, at each place, of the curves of all folds and seeds in which the class is
defined: probabilities of different models are on different scales, so their rows are not ranked
together. The area under such a mean is the mean of the areas, which is what the headline reports.

Source: vertical averaging of Provost, Fawcett & Kohavi 1998; Fawcett 2006, algorithm 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from wsi.evaluation.intervals import draw_weights, quantile
from wsi.evaluation.metrics import (
    class_auc,
    class_average_precision,
    mean_defined,
    steps,
)
from wsi.evaluation.sample import Sample
from wsi.specs import EvaluateSpec

Array = np.ndarray

GRID = np.arange(101) / 100
"""Where bands are known: false positive rates, or recalls."""

_MOST_REPLICATES = 1000  # a band is looked at, no bound of it is quoted
_MOST_CORNERS = 400
_FIRST_STEP = 1e-9  # the precision at recall 0 is that of the first positive found


@dataclass(frozen=True)
class Curve:
    """A curve of one class against the rest.

    Args:
        x: corners of the curve (K,), not decreasing; those of a vertical piece are equal.
        y: the curve at them (K,).
        low: lower bound (101,) at each of `GRID`, NaN where it is unknown.
        high: upper bound (101,).
        area: under the curve: AUC, or average precision.
        share: of the class among the slides, the mean over folds.
        defined: in how many folds the class has slides, and others too.
    """

    x: Array
    y: Array
    low: Array
    high: Array
    area: float
    share: float
    defined: int


def sensitivity_at(positive: Array, score: Array, weights: Array, at: Array) -> Array:
    """Return the sensitivity (G, R) at false positive rates (G,), linear between thresholds.

    Where several thresholds have one false positive rate it is their highest sensitivity.

    Args:
        positive: whether a row is of the class (n,).
        score: probability of the class (n,).
        weights: of the rows (n, R); NaN comes of columns without a positive or a negative.
    """
    return _columns(np.interp, *_rates(positive, score, weights), at)


def precision_at(positive: Array, score: Array, weights: Array, at: Array) -> Array:
    """Return the precision (G, R) at recalls (G,), of the highest threshold that reaches them.

    This is the step function whose area is the average precision; see `sensitivity_at`.
    """
    recall, precision = _precisions(positive, score, weights)
    return _columns(_reached, recall, precision, np.maximum(at, _FIRST_STEP))


def roc_curves(sample: Sample, spec: EvaluateSpec) -> list[Curve | None]:
    """Return the ROC curve of each class; None for one that is defined in no fold."""
    return _curves(sample, spec, _Kind(sensitivity_at, _roc_corners, class_auc))


def precision_recall_curves(sample: Sample, spec: EvaluateSpec) -> list[Curve | None]:
    """Return the precision-recall curve of each class; None for one that is defined in no fold."""
    kind = _Kind(precision_at, _precision_corners, class_average_precision)
    return _curves(sample, spec, kind)


@dataclass(frozen=True)
class _Part:
    """One class in one fold and seed: positive (n,), score (n,), patient codes (n,)."""

    positive: Array
    score: Array
    patient: Array

    @property
    def ones(self) -> Array:
        return np.ones((len(self.score), 1))


@dataclass(frozen=True)
class _Kind:
    """What is read at a place, the corners of the mean curve, and the area under each curve."""

    at: Callable[[Array, Array, Array, Array], Array]
    corners: Callable[[list[_Part]], tuple[Array, Array]]
    area: Callable[[Array, Array, Array], Array]


def _curves(sample: Sample, spec: EvaluateSpec, kind: _Kind) -> list[Curve | None]:
    weights = draw_weights(sample.strata, spec)[:, :_MOST_REPLICATES]
    z = quantile(spec.level, sample.strata, sample.sizes)
    made: list[Curve | None] = []
    for c in range(len(sample.classes)):
        parts = list(_parts(sample, c))
        if not parts:
            made.append(None)
            continue
        low, high = _band(parts, weights, z, kind)
        x, y = kind.corners(parts)
        area, share = _means(parts, kind)
        made.append(Curve(x, y, low, high, area, share, len(parts) // len(sample.seeds)))
    return made


def _means(parts: list[_Part], kind: _Kind) -> tuple[float, float]:
    """Return the area and the share of the class, means over folds and seeds."""
    areas = [kind.area(part.positive, part.score, part.ones)[0] for part in parts]
    return float(np.mean(areas)), float(np.mean([part.positive.mean() for part in parts]))


def _parts(sample: Sample, c: int) -> Iterator[_Part]:
    """Yield a class in each fold and seed where it has slides, and others too."""
    for rows in sample.runs:
        for fold in np.unique(rows.fold):
            k = np.flatnonzero(rows.fold == fold)
            positive = rows.y[k] == c
            if 0 < positive.sum() < len(positive):
                yield _Part(positive, rows.p[k, c], rows.patient[k])


def _band(parts: list[_Part], weights: Array, z: float, kind: _Kind) -> tuple[Array, Array]:
    """Return percentile bounds (101,) over replicates; undefined replicates are left out.

    Args:
        z: the upper normal quantile of the level, expanded as that of intervals is.
    """
    P = len(weights)
    if P < 2:
        return np.full(len(GRID), np.nan), np.full(len(GRID), np.nan)
    each = [kind.at(part.positive, part.score, weights[part.patient], GRID) for part in parts]
    drawn = mean_defined(np.stack(each, axis=-1))
    known = ~np.isnan(drawn).any(axis=0)
    if not known.any():
        return np.full(len(GRID), np.nan), np.full(len(GRID), np.nan)
    low, high = np.quantile(drawn[:, known], ndtr([-z, z]), axis=1)
    return low, high


def _roc_corners(parts: list[_Part]) -> tuple[Array, Array]:
    """Return the corners of the mean ROC curve: below and above each vertical piece."""
    curves = [_rates(part.positive, part.score, part.ones) for part in parts]
    x = _thinned([fpr[:, 0] for fpr, _ in curves])
    # The mirrored curve gives the lowest sensitivity of a rate where the curve gives the highest.
    low = np.mean([np.interp(-x, -f[::-1, 0], t[::-1, 0]) for f, t in curves], axis=0)
    high = np.mean([np.interp(x, f[:, 0], t[:, 0]) for f, t in curves], axis=0)
    return np.repeat(x, 2), np.stack([low, high], axis=1).ravel()


def _precision_corners(parts: list[_Part]) -> tuple[Array, Array]:
    """Return the corners of the mean step function, which falls just after each recall."""
    curves = [_precisions(part.positive, part.score, part.ones) for part in parts]
    x = _thinned([recall[:, 0] for recall, _ in curves])
    x = x[x > 0]
    y = np.mean([_reached(x, recall[:, 0], found[:, 0]) for recall, found in curves], axis=0)
    return np.concatenate([[0.0], np.repeat(x, 2)])[:-1], np.repeat(y, 2)


def _thinned(places: list[Array]) -> Array:
    """Return all places in order; of very many, an even grid that hides no step one could see."""
    every = np.unique(np.concatenate(places))
    return every if len(every) <= _MOST_CORNERS else np.arange(_MOST_CORNERS + 1) / _MOST_CORNERS


def _rates(positive: Array, score: Array, weights: Array) -> tuple[Array, Array]:
    """Return false and true positive rates (S + 1, R) at each threshold, from 0 to 1."""
    hits, misses = (_from_zero(counts) for counts in steps(positive, score, weights))
    with np.errstate(invalid="ignore"):
        return misses / misses[-1], hits / hits[-1]


def _precisions(positive: Array, score: Array, weights: Array) -> tuple[Array, Array]:
    """Return recall and precision (S, R) at each threshold; NaN without positives or negatives."""
    hits, misses = (np.cumsum(counts, axis=0) for counts in steps(positive, score, weights))
    with np.errstate(invalid="ignore"):
        recall, precision = hits / hits[-1], hits / (hits + misses)
    return np.where(misses[-1] > 0, recall, np.nan), precision


def _from_zero(counts: Array) -> Array:
    return np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])


def _reached(at: Array, recall: Array, precision: Array) -> Array:
    return precision[np.searchsorted(recall, at, side="left")]


def _columns(read: Callable[..., Array], x: Array, y: Array, at: Array) -> Array:
    """Return what each column of a curve gives at the places (G, R); NaN of undefined ones."""
    made = np.full((len(at), x.shape[1]), np.nan)
    for r in np.flatnonzero(~(np.isnan(x[-1]) | np.isnan(y[-1]))):
        made[:, r] = read(at, x[:, r], y[:, r])
    return made
