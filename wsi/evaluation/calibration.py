"""Do probabilities mean what they say: reliability by bins of confidence."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsi.evaluation.intervals import Statistic, bootstrap
from wsi.evaluation.metrics import ECE_BINS, calibration_bin, defined, ratio
from wsi.evaluation.sample import Sample

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
        found = bootstrap(rate, weights, sample.strata, level)
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
