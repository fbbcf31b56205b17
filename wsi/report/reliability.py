"""Bins of the reliability diagram: as evaluated, or of the predictions for older scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr

from wsi.evaluation.intervals import draw_weights, quantile
from wsi.evaluation.metrics import ECE_BINS, defined
from wsi.evaluation.sample import Sample
from wsi.specs import EvaluateSpec

Array = np.ndarray
Bin = Mapping[str, Any]


def bins_of(metrics: Mapping[str, Any], sample: Sample) -> Sequence[Bin]:
    """Return low, high, n, confidence, accuracy and its bounds of each bin of confidence.

    Scores from before there were bins have none; the same are then made of the predictions.
    """
    return metrics.get("reliability") or reliability_bins(sample, metrics["level"])


def reliability_bins(sample: Sample, level: float) -> list[Bin]:
    """Return the bins of the calibration error, rows of all folds and seeds together.

    n is the mean over seeds. Bounds are percentiles over resampled patients, None where a bin
    has no slides or there is but one patient.
    """
    confidence = np.concatenate([rows.p.max(axis=1) for rows in sample.runs])
    right = np.concatenate([rows.p.argmax(axis=1) == rows.y for rows in sample.runs])
    patient = np.concatenate([rows.patient for rows in sample.runs])
    place = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    P = len(sample.patients)
    weights = draw_weights(sample.strata, EvaluateSpec(level=level)) if P > 1 else None
    made = []
    for k in range(ECE_BINS):
        inside = place == k
        low, high = _bounds(right[inside], patient[inside], weights, level)
        made.append(
            {
                "low": k / ECE_BINS,
                "high": (k + 1) / ECE_BINS,
                "n": float(inside.sum() / len(sample.runs)),
                "confidence": float(confidence[inside].mean()) if inside.any() else None,
                "accuracy": float(right[inside].mean()) if inside.any() else None,
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    return made


def _bounds(
    right: Array, patient: Array, weights: Array | None, level: float
) -> tuple[float | None, float | None]:
    if weights is None or len(right) == 0:
        return None, None
    hits, rows = (np.zeros(len(weights)) for _ in range(2))
    np.add.at(hits, patient, right)
    np.add.at(rows, patient, 1)
    total = rows @ weights
    z = quantile(level, len(weights))
    drawn = (hits @ weights)[total > 0] / total[total > 0]
    low, high = np.quantile(drawn, ndtr([-z, z])) if len(drawn) else (np.nan, np.nan)
    return defined(low), defined(high)
