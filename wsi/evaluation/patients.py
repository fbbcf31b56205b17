"""Predictions of slides as predictions of their patients."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from wsi.cohorts.camelyon17_labels import NODE_CLASSES
from wsi.errors import PredictionsError, UnknownNameError
from wsi.evaluation.predictions import Predictions
from wsi.findings import few
from wsi.registry import suggest
from wsi.specs import PatientRule

Array = np.ndarray


def by_patient(predictions: Predictions, rule: PatientRule = "mean") -> Predictions:
    """Return one row per patient, fold, seed and part, the slide id of which is the patient's.

    Rules, on the probabilities p (n, C) of a patient's n slides:
        mean: their mean.
        max: a patient is at least of class k as far as any slide is. With classes from the least
            to the most severe, P(Y >= k) is the largest over slides, and the probabilities are
            the differences from k to k + 1. For two classes, that of the second is the largest.

    The decision is the class of largest probability. The prior of the result is unknown: means of
    posteriors are none themselves.

    Raises:
        UnknownNameError: no such rule.
        PredictionsError: slides of a patient have different labels; the patients are named.
    """
    if rule not in _RULES:
        raise UnknownNameError(
            f"unknown rule '{rule}' for patients{suggest(rule, _RULES)} — use {' or '.join(_RULES)}"
        )
    if predictions.unit == "patient":
        return predictions  # of patients already
    _refuse_differing(predictions)
    table = predictions.table
    columns = [f"p_{name}" for name in predictions.classes]
    keys = table[["patient_id", "fold", "seed", "split"]]
    groups, first = _groups(list(keys.itertuples(index=False, name=None)))
    p = table[columns].to_numpy(np.float64)
    made = keys.iloc[first].reset_index(drop=True)
    made.insert(0, "slide_id", made["patient_id"])
    made[columns] = np.stack([_RULES[rule](p[rows]) for rows in groups])
    for name in ("site", "cohort", "y_true"):
        values = _commonest(table["patient_id"].tolist(), table[name].tolist())
        made[name] = [values[patient] for patient in made["patient_id"]]
    return replace(
        predictions,
        table=made,
        decision=f"largest probability of the patient, {_WORDS[rule]}",
        not_evaluable={},
        head=None,
        calibration={},  # that of slides: a patient's probabilities are others
        slides=_slide_counts(table),
    )


def _groups(keys: Sequence[tuple[Any, ...]]) -> tuple[list[list[int]], list[int]]:
    """Return the rows of each distinct key, in order of keys, and the first row of each."""
    rows: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        rows[key].append(index)
    groups = [rows[key] for key in sorted(rows)]
    return groups, [group[0] for group in groups]


def _slide_counts(table: pd.DataFrame) -> dict[str, int]:
    slides: dict[str, set[str]] = defaultdict(set)
    for patient, slide_id in zip(table["patient_id"], table["slide_id"]):
        slides[patient].add(slide_id)
    return {patient: len(slides[patient]) for patient in sorted(slides)}


def _commonest(patients: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    """Return the commonest value of each patient, the first in order where several are."""
    found: dict[str, list[str]] = defaultdict(list)
    for patient, value in zip(patients, values):
        found[patient].append(value)
    return {k: Counter(sorted(of)).most_common(1)[0][0] for k, of in found.items()}


def _mean(p: Array) -> Array:
    return p.mean(axis=0)


def _max(p: Array) -> Array:
    at_least = np.flip(np.cumsum(np.flip(p, axis=1), axis=1), axis=1).max(axis=0)
    at_least[0] = 1.0  # which sums miss by rounding
    at_least = np.minimum(at_least, 1.0)
    return at_least - np.append(at_least[1:], 0.0)


_RULES: Mapping[str, Callable[[Array], Array]] = {"mean": _mean, "max": _max}
_WORDS = {
    "mean": "the mean of its slides",
    "max": "at least of a class as far as any of its slides is",
}


def _refuse_differing(predictions: Predictions) -> None:
    told = []
    labels: dict[str, set[str]] = defaultdict(set)
    for patient, label in zip(predictions.table["patient_id"], predictions.table["y_true"]):
        labels[patient].add(label)
    for patient, found in sorted(labels.items()):
        if len(found) > 1:
            told.append(f"{patient} ({', '.join(label or 'none' for label in sorted(found))})")
    if told:
        raise PredictionsError(
            f"slides of {len(told)} patients have different labels: {few(told)} — scores by "
            "patient need one label each: give a table in which a column holds the patient's, one "
            f"of {', '.join(predictions.classes)} (--cohort, --label){_other_way(predictions)}"
        )


def _other_way(predictions: Predictions) -> str:
    """Return what leads from labels of slides to those of patients, where anything is known."""
    if set(predictions.classes) == set(NODE_CLASSES):
        return "; for pN stages of patients from these nodes use wsi stage"
    return "; of grades it may be that of the worst slide" if predictions.ordered else ""
