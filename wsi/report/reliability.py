"""Bins of the reliability diagram: as evaluated, or of the predictions for older scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi.evaluation.intervals import bootstrap, draw_weights
from wsi.evaluation.metrics import ECE_BINS, defined
from wsi.evaluation.sample import Sample
from wsi.specs import EvaluateSpec

Array = np.ndarray
Bin = Mapping[str, Any]


def bins_of(metrics: Mapping[str, Any], sample: Sample) -> Sequence[Bin]:
    """Return low, high, n, confidence, accuracy and its bounds of each bin that holds predictions.

    Scores from before there were bins have none; the same are then made of the predictions.
    """
    if "reliability" in metrics:
        return metrics["reliability"]
    return reliability_bins(sample, metrics["level"])


def reliability_bins(sample: Sample, level: float) -> list[dict[str, Any]]:
    """Return the bins of the calibration error, predictions of all folds and seeds together.

    Bounds are None where all replicates are equal or there are none.
    """
    n, right, sure = _by_patient(sample)
    weights = draw_weights(sample.strata, EvaluateSpec(level=level))
    made = []
    for k in np.flatnonzero(n.sum(axis=0)):
        found = bootstrap(_rate(right[:, k], n[:, k]), weights, sample.strata, level)
        known = found.low < found.high  # False for NaN, too
        made.append(
            {
                "low": k / ECE_BINS,
                "high": (k + 1) / ECE_BINS,
                "n": int(n[:, k].sum()),
                "confidence": float(sure[:, k].sum() / n[:, k].sum()),
                "accuracy": found.value,
                "accuracy_low": defined(found.low) if known else None,
                "accuracy_high": defined(found.high) if known else None,
            }
        )
    return made


def _by_patient(sample: Sample) -> Array:
    """Return predictions, right ones and summed confidence of each patient and bin (3, P, bins)."""
    totals = np.zeros((3, len(sample.patients), ECE_BINS))
    for rows in sample.runs:
        confidence = rows.p.max(axis=1)
        place = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
        for total, value in zip(totals, (1.0, rows.p.argmax(axis=1) == rows.y, confidence)):
            np.add.at(total, (rows.patient, place), value)
    return totals


def _rate(hits: Array, n: Array):
    def rate(weights: Array) -> Array:
        total = n @ weights
        out = np.full(total.shape, np.nan)
        return np.divide(hits @ weights, total, out=out, where=total > 0)

    return rate
