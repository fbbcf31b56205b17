"""Patient-clustered bootstrap intervals.

Patients are drawn, not slides, within their sites; a replicate is a multiplicity for each patient,
so a statistic is a function of weights (P, R): P patients, R replicates. One draw serves all
metrics and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from wsi.specs import EvaluateSpec

Array = np.ndarray
Statistic = Callable[[Array], Array]
"""Weights (P, R) to values (R,); NaN where a replicate leaves the value undefined."""

FEW_PATIENTS = 40
"""Below this many patients an interval is expanded by 5 % and more, and a note says so."""

ONE_SIDED = 0.025
"""With fewer replicates than this share on one side of the value, there is no interval."""

_BLOCK = 1 << 20  # weights held at once


@dataclass(frozen=True)
class Score:
    """A metric with its interval; None where undefined, with the reason in `note`.

    Args:
        n: slides.
        unit: what was resampled.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    n_patients: int
    unit: str = "patient"
    note: str = ""


@dataclass(frozen=True)
class Interval:
    """An interval, the replicates (R,) it rests on and how many of them were undefined."""

    value: float
    low: float
    high: float
    replicates: Array
    undefined: int
    one_sided: bool = False


def draw_weights(strata: Array, spec: EvaluateSpec) -> Array:
    """Return multiplicities (P, R) of patients drawn with replacement within strata (P,)."""
    rng = np.random.default_rng(spec.seed)
    weights = np.zeros((len(strata), spec.replicates))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        share = np.full(len(members), 1 / len(members))
        weights[members] = rng.multinomial(len(members), share, size=spec.replicates).T
    return weights


def merge_small_strata(sites: Array) -> Array:
    """Return stratum codes (P,) of patients' sites (P,), sites of one patient taken together.

    A stratum of one patient would never vary. A single such patient joins the smallest other site.
    """
    _, codes, counts = np.unique(sites, return_inverse=True, return_counts=True)
    lone = np.flatnonzero(counts == 1)
    if len(lone) == 0 or len(counts) == 1:
        return codes
    others = np.flatnonzero(counts > 1)
    if len(lone) == 1 and len(others):
        target = others[counts[others].argmin()]
    else:
        target = lone[0]
    return np.where(np.isin(codes, lone), target, codes)


@dataclass(frozen=True)
class Resampled:
    """A statistic as it is, of every replicate (R,), and without each patient in turn (P,)."""

    value: float
    drawn: Array
    left_out: Array

    def __sub__(self, other: Resampled) -> Resampled:
        """Return the difference of two statistics under the same draws."""
        return Resampled(
            self.value - other.value, self.drawn - other.drawn, self.left_out - other.left_out
        )


def resample(statistic: Statistic, weights: Array) -> Resampled:
    """Return a statistic under weights (P, R)."""
    P = len(weights)
    value = float(statistic(np.ones((P, 1)))[0])
    others = _leave_one_out(P) if P > 1 else ()  # without its only patient nothing is left
    left_out = [statistic(block) for block in others]
    return Resampled(
        value, _in_blocks(statistic, weights), np.concatenate([np.empty(0), *left_out])
    )


def bootstrap(
    statistic: Statistic, weights: Array, strata: Array, level: float, sizes: Array | None = None
) -> Interval:
    """Return the value of a statistic and its BCa interval over patients; see `interval_of`."""
    return interval_of(resample(statistic, weights), strata, level, sizes)


def interval_of(
    resampled: Resampled, strata: Array, level: float, sizes: Array | None = None
) -> Interval:
    """Return the value and the BCa interval over patients of a resampled statistic.

    The acceleration is that of several samples, one per stratum, and the quantiles are `quantile`'s
    (the expanded interval). Undefined replicates are left out and counted. The bounds are NaN with
    one patient, without a defined replicate, and where the replicates are `one_sided`: resampling
    then shifts the statistic itself (as it inflates the calibration error), and no correction of
    bounds can mend that.

    Args:
        sizes: slides of each patient (P,); the same of all when not given.

    Source: Efron 1987; Davison & Hinkley 1997, section 5.3; Hesterberg 2015, section 5.2.
    """
    P, value, drawn = len(strata), resampled.value, resampled.drawn
    replicates = drawn[~np.isnan(drawn)]
    undefined = len(drawn) - len(replicates)
    if np.isnan(value) or P < 2 or len(replicates) == 0:
        return Interval(value, np.nan, np.nan, replicates, undefined)
    below = _share_below(value, replicates)
    if not ONE_SIDED <= below <= 1 - ONE_SIDED:
        return Interval(value, np.nan, np.nan, replicates, undefined, one_sided=True)
    acceleration = _acceleration(resampled.left_out, strata)
    low, high = _bca(value, replicates, acceleration, quantile(level, strata, sizes))
    return Interval(value, low, high, replicates, undefined)


def quantile(level: float, strata: Array, sizes: Array | None = None) -> float:
    """Return the upper quantile of a two-sided level: `sqrt(n / (n - S))` times Student's, n - S.

    Drawing n patients within S strata understates a variance by (n - S) / n, and an estimate from
    few has Student's tails; for many both are the normal quantile. Patients of unequal numbers of
    slides count as n = (sum m)^2 / sum m^2: where one has most slides, it decides most.

    Args:
        strata: of the patients (P,).
        sizes: slides of each (P,); the same of all when not given.

    Source: Hesterberg 2015, section 5.2, for S = 1; Kish 1965 for n.
    """
    n, free = _counted(strata, sizes)
    return float(stdtrit(free, (1 + level) / 2) * np.sqrt(n / free))


def expanded_p(p: float, strata: Array, sizes: Array | None = None) -> float:
    """Return a two-sided p value of drawn patients, expanded as `quantile` expands an interval."""
    n, free = _counted(strata, sizes)
    return float(2 * stdtr(free, ndtri(p / 2) * np.sqrt(free / n)))


def _counted(strata: Array, sizes: Array | None) -> tuple[float, float]:
    """Return for how many patients of equal size they count, and how many of them are free."""
    m = np.ones(len(strata)) if sizes is None else np.asarray(sizes, np.float64)
    n = float(m.sum() ** 2 / (m**2).sum())
    return n, max(1.0, n - len(np.unique(strata)))


def _bca(value: float, replicates: Array, acceleration: float, z: float) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bounds (Efron 1987)."""
    z0 = ndtri(_share_below(value, replicates))
    shifted = z0 + np.array([-z, z])
    # Far out, where the denominator would pass 0, the bound is the farthest replicate.
    denominator = 1 - acceleration * shifted
    farthest = np.copysign(np.inf, shifted)
    moved = np.divide(shifted, denominator, out=farthest, where=denominator > 0)
    levels = ndtr(z0 + moved)
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def _share_below(value: float, replicates: Array) -> float:
    """Return the share of replicates below the value; equal ones count half."""
    return float(((replicates < value).sum() + (replicates <= value).sum()) / 2 / len(replicates))


def _acceleration(left_out: Array, strata: Array) -> float:
    """Return a from the values with each patient left out, per stratum (Davison & Hinkley)."""
    cubes = squares = 0.0
    for stratum in np.unique(strata):
        values = left_out[strata == stratum]
        # A value that is undefined without one patient says nothing about its influence.
        values = values[~np.isnan(values)]
        n = len(values)
        if n > 1:
            influence = (n - 1) * (values.mean() - values)
            cubes += (influence**3).sum() / n**3
            squares += (influence**2).sum() / n**2
    return float(cubes / (6 * squares**1.5)) if squares > 0 else 0.0


def _in_blocks(statistic: Statistic, weights: Array) -> Array:
    step = max(1, _BLOCK // len(weights))
    starts = range(0, weights.shape[1], step)
    return np.concatenate([statistic(weights[:, start : start + step]) for start in starts])


def _leave_one_out(P: int) -> Iterator[Array]:
    """Yield weights (P, r) that leave out one patient after another."""
    step = max(1, _BLOCK // P)
    for start in range(0, P, step):
        size = min(step, P - start)
        weights = np.ones((P, size))
        weights[start + np.arange(size), np.arange(size)] = 0
        yield weights
