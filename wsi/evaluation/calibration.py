"""Do probabilities mean what they say: reliability by bins, and probabilities at a temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from wsi.evaluation.intervals import Statistic, bootstrap
from wsi.evaluation.metrics import ECE_BINS, calibration_bin, defined, ratio
from wsi.evaluation.sample import Rows, Sample
from wsi.evaluation.validated import TEMPERATURES, Calibration, at_temperature, fit_name
from wsi.findings import few

Array = np.ndarray


def reliability(sample: Sample, weights: Array, level: float) -> list[dict[str, Any]]:
    """Return the bins of the calibration error that hold predictions, lowest confidence first.

    Folds and seeds are pooled, so `n` counts a slide once for every seed. Each bin has its edges
    `low` < confidence <= `high`, the mean `confidence` of the predicted class, and the `accuracy`
    with a patient-clustered interval, None where all replicates are equal or there are none.

    Args:
        weights: of the patients (P, R), one draw per replicate.
    """
    n, right, sure = _by_patient(sample)
    bins = []
    for b in np.flatnonzero(n.sum(axis=0)):
        rate = _rate(right[:, b], n[:, b])
        found = bootstrap(rate, weights, sample.strata, level, sample.sizes)
        known = found.low < found.high  # False for NaN, too
        bins.append(
            {
                "low": b / ECE_BINS,
                "high": (b + 1) / ECE_BINS,
                "n": int(n[:, b].sum()),
                "n_patients": int((n[:, b] > 0).sum()),
                "confidence": float(sure[:, b].sum() / n[:, b].sum()),
                "accuracy": found.value,
                "accuracy_low": defined(found.low) if known else None,
                "accuracy_high": defined(found.high) if known else None,
            }
        )
    return bins


def temperatures_of(
    sample: Sample, calibration: Mapping[str, Calibration]
) -> tuple[dict[str, float | None], str]:
    """Return the temperature of each fit of a sample, and why some have none, else nothing."""
    folds = np.unique(sample.runs[0].fold)
    fits = [fit_name(int(fold), seed) for fold in folds for seed in sample.seeds]
    if not calibration:
        return {}, "the predictions come without temperatures"
    found = {fit: calibration[fit].temperature if fit in calibration else None for fit in fits}
    lacking = [fit for fit, t in found.items() if t is None]
    if not lacking:
        return found, ""
    first = calibration[lacking[0]].reason if lacking[0] in calibration else "not known"
    return found, f"{len(lacking)} of {len(fits)} fits have no temperature: {lacking[0]}, {first}"


def unsettled(temperatures: Mapping[str, float | None]) -> str:
    """Return which temperatures lie at an end of their range, in words, or nothing."""
    low, high = TEMPERATURES
    ends = [f for f, t in temperatures.items() if t and not 1.01 * low < t < 0.99 * high]
    if not ends:
        return ""
    return (
        f"{len(ends)} of {len(temperatures)} temperatures are at an end of their range, "
        f"{low:g} to {high:g}, so validation did not settle them: {few(ends)}"
    )


def at_temperatures(sample: Sample, temperatures: Mapping[str, float | None]) -> Sample:
    """Return the sample with the probabilities of each fold and seed at its own temperature."""
    runs = [_softened(r, seed, temperatures) for r, seed in zip(sample.runs, sample.seeds)]
    return replace(sample, runs=tuple(runs))


def _softened(rows: Rows, seed: int, temperatures: Mapping[str, float | None]) -> Rows:
    p = rows.p.copy()
    for fold in np.unique(rows.fold):
        t = temperatures[fit_name(int(fold), seed)]
        if t is not None:
            p[rows.fold == fold] = at_temperature(rows.p[rows.fold == fold], t)
    return replace(rows, p=p)


def _by_patient(sample: Sample) -> tuple[Array, Array, Array]:
    """Return predictions, right ones and summed confidence of each patient and bin (P, bins)."""
    totals = np.zeros((3, len(sample.patients), ECE_BINS))
    for rows in sample.runs:
        confidence = rows.p.max(axis=1)
        at = rows.patient, calibration_bin(confidence)
        for total, value in zip(totals, (1.0, rows.p.argmax(axis=1) == rows.y, confidence)):
            np.add.at(total, at, value)
    return totals[0], totals[1], totals[2]


def _rate(hits: Array, n: Array) -> Statistic:
    return lambda weights: ratio(hits @ weights, n @ weights)
