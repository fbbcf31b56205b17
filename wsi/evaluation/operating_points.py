"""Sensitivity and specificity of test rows at thresholds that validation chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi.evaluation.intervals import FEW_PATIENTS, Interval, bootstrap
from wsi.evaluation.metrics import defined, mean_defined, ratio
from wsi.evaluation.sample import Sample
from wsi.evaluation.validated import RULES, Calibration, fit_name
from wsi.findings import few

Array = np.ndarray

FEW_POSITIVES = 20
"""Of fewer, a sensitivity of .95 or more is one of 1: a single row decides the threshold."""


@dataclass(frozen=True)
class _Calls:
    """Rows of one seed against thresholds: of the class, called so, with a threshold (n,)."""

    positive: Array
    called: Array
    known: Array


def operating_points(
    sample: Sample, calibration: Mapping[str, Calibration], weights: Array, level: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return sensitivity and specificity of each class against the rest, by rule; {} without fits.

    Every row is called by the threshold of its own fold and seed. Calls are pooled over folds,
    rates are means over seeds, with patient-clustered intervals. Rows whose fit has no threshold
    for the class are left out, and counted in the note.

    Args:
        calibration: by name of the fit.
        weights: of the patients (P, R), one draw per replicate.
    """
    if not calibration:
        return {}
    return {
        name: {rule: _point(sample, calibration, c, rule, weights, level) for rule in RULES}
        for c, name in enumerate(sample.classes)
    }


def _point(
    sample: Sample,
    calibration: Mapping[str, Calibration],
    c: int,
    rule: str,
    weights: Array,
    level: float,
) -> dict[str, Any]:
    name, fits = sample.classes[c], _fits(sample)
    chosen = {
        fit: getattr(calibration[fit].thresholds[name], rule)
        if fit in calibration and name in calibration[fit].thresholds
        else None
        for fit in fits
    }
    calls = [_calls(sample, k, c, chosen) for k in range(len(sample.seeds))]
    return {
        "thresholds": chosen,
        "sensitivity": _rate(sample, calls, weights, level, positive=True),
        "specificity": _rate(sample, calls, weights, level, positive=False),
        "note": "; ".join(_notes(calibration, name, chosen)),
    }


def _fits(sample: Sample) -> list[str]:
    folds = np.unique(sample.runs[0].fold)
    return [fit_name(int(fold), seed) for fold in folds for seed in sample.seeds]


def _calls(sample: Sample, k: int, c: int, chosen: Mapping[str, float | None]) -> _Calls:
    rows, seed = sample.runs[k], sample.seeds[k]
    at = {fold: chosen[fit_name(int(fold), seed)] for fold in np.unique(rows.fold)}
    t = np.array([at[fold] for fold in rows.fold], dtype=np.float64)  # None becomes NaN
    return _Calls(rows.y == c, rows.p[:, c] >= t, ~np.isnan(t))


def _rate(
    sample: Sample, calls: Sequence[_Calls], weights: Array, level: float, *, positive: bool
) -> dict[str, Any]:
    """Return how often rows of the class, or of the others, are called as they are."""
    P, patient = len(sample.patients), sample.runs[0].patient
    seeds = []
    asked = np.zeros(len(patient), bool)
    for one in calls:
        of = (one.positive == positive) & one.known
        right = of & (one.called == positive)
        asked |= of
        seeds.append(
            (np.bincount(patient[right], minlength=P), np.bincount(patient[of], minlength=P))
        )

    def mean(w: Array) -> Array:
        return mean_defined(np.stack([ratio(hits @ w, n @ w) for hits, n in seeds], axis=-1))

    found = bootstrap(mean, weights, sample.strata, level, sample.sizes)
    known = found.low < found.high  # False for NaN, too
    return {
        "value": defined(found.value),
        "low": defined(found.low) if known else None,
        "high": defined(found.high) if known else None,
        "n": len(set(sample.slides[asked])),
        "n_patients": len(np.unique(patient[asked])),
        "note": _note(found, P),
    }


def _note(found: Interval, P: int) -> str:
    if np.isnan(found.value):
        return "undefined: no test row of this side has a threshold"
    if P < 2:
        return "no interval: one patient"
    if np.isnan(found.low) or found.low == found.high:
        return "no interval: all replicates are equal or to one side"
    return f"interval expanded: {P} patients, fewer than {FEW_PATIENTS}" if P < FEW_PATIENTS else ""


def _notes(
    calibration: Mapping[str, Calibration], name: str, chosen: Mapping[str, float | None]
) -> list[str]:
    notes = []
    for reason, fits in _lacking(calibration, name, chosen).items():
        notes.append(f"no threshold in {len(fits)} of {len(chosen)} fits ({reason}): {few(fits)}")
    known = [fit for fit, t in chosen.items() if t is not None]
    seen = [calibration[fit].thresholds[name].positives for fit in known]
    short = [n for n in seen if n < FEW_POSITIVES]
    if short:
        low, high = min(short), max(short)
        span = str(low) if low == high else f"{low} to {high}"
        notes.append(
            f"{len(short)} of {len(seen)} thresholds rest on few validation rows of {name}: {span}"
        )
    return notes


def _lacking(
    calibration: Mapping[str, Calibration], name: str, chosen: Mapping[str, float | None]
) -> dict[str, list[str]]:
    """Return the fits without a threshold for a class, by the reason why."""
    fits: dict[str, list[str]] = {}
    for fit in (fit for fit, t in chosen.items() if t is None):
        one = calibration.get(fit)
        told = one.thresholds[name].reason if one and name in one.thresholds else ""
        fits.setdefault(told or (one.reason if one else "not known"), []).append(fit)
    return fits
