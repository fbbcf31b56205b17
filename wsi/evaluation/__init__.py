"""Evaluation: predictions, metrics, patient-clustered intervals and paired comparisons."""

from __future__ import annotations

from wsi.evaluation.comparison import compare
from wsi.evaluation.head import Head
from wsi.evaluation.information import NCMIMetric
from wsi.evaluation.intervals import Score
from wsi.evaluation.labels import join_labels
from wsi.evaluation.metrics import METRICS, Measure, Metric
from wsi.evaluation.patients import by_patient
from wsi.evaluation.prediction_files import read_predictions, write_predictions
from wsi.evaluation.predictions import Predictions
from wsi.evaluation.scores import evaluate
from wsi.evaluation.validated import Calibration, fit_calibration

__all__ = [
    "METRICS",
    "Calibration",
    "Head",
    "Measure",
    "Metric",
    "NCMIMetric",
    "Predictions",
    "Score",
    "by_patient",
    "compare",
    "evaluate",
    "fit_calibration",
    "join_labels",
    "read_predictions",
    "write_predictions",
]
