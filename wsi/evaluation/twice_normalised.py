"""Probabilities that went through a softmax once more than they should, told and undone.

A softmax of probabilities q gives p with log p_k = q_k - log sum_j exp(q_j). As the q_k sum to 1,
q_k = log p_k + (1 - sum_j log p_j) / C: any p has exactly one such q, and p can be a softmax of
probabilities only if no q_k is below 0. For two classes that is p in [1 / (1 + e), e / (1 + e)].
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wsi.errors import PredictionsError
from wsi.evaluation.predictions import Predictions
from wsi.findings import few

ENOUGH_ROWS = 20
"""With fewer rows, probabilities inside the bounds say nothing."""

TOLERANCE = 1e-3  # of q: tables are written with few digits
_DOUBT = "probabilities may be normalised twice"
_SMALLEST = np.finfo(np.float64).tiny


def inner(p: np.ndarray) -> np.ndarray:
    """Return the q (n, C) that sum to 1 and whose softmax is p (n, C), which must be above 0.

    They are probabilities where none is below 0.
    """
    log_p = np.log(np.maximum(p, _SMALLEST))
    return log_p + (1 - log_p.sum(axis=1, keepdims=True)) / p.shape[1]


def can_be_twice_normalised(p: np.ndarray) -> np.ndarray:
    """Return which rows (n,) of p (n, C) can be the softmax of probabilities."""
    return inner(p).min(axis=1) >= -TOLERANCE


def suspicion(predictions: Predictions) -> str:
    """Return a warning where every row can be the softmax of probabilities, else nothing.

    Hesitant predictions look the same, so it says `may`; fewer than 20 rows are not judged.
    """
    p, C = predictions.p, len(predictions.classes)
    if len(p) < ENOUGH_ROWS or not can_be_twice_normalised(p).all():
        return ""
    low, high = 1 / (np.e + C - 1), np.e / (np.e + C - 1)
    ranks = "AUC does not" if C == 2 else "the order within a class, and so AUC, may"
    return (
        f"{_DOUBT} (softmax of a softmax): all {len(p)} rows lie "
        f"within its bounds, {low:.3f} to {high:.3f} for {C} classes — hesitant predictions look "
        f"the same. If they are, decisions do not change, {ranks}, and NLL, Brier and ECE are of "
        "flattened probabilities: --invert-softmax undoes it"
    )


def doubted(predictions: Predictions) -> Predictions:
    """Return the predictions with the suspicion among their notes, where there is one."""
    doubt = suspicion(predictions)
    known = not doubt or doubt in predictions.notes
    return predictions if known else replace(predictions, notes=(*predictions.notes, doubt))


def doubts(predictions: Predictions) -> list[str]:
    """Return the notes of predictions that are this suspicion."""
    return [note for note in predictions.notes if note.startswith(_DOUBT)]


def inverted(predictions: Predictions) -> Predictions:
    """Return the predictions with the outer softmax undone; decisions stay as they are.

    Raises:
        PredictionsError: rows that are no softmax of probabilities; they are named.
    """
    possible = can_be_twice_normalised(predictions.p)
    if not possible.all():
        names = list(dict.fromkeys(predictions.table["slide_id"][~possible]))
        raise PredictionsError(
            f"{int((~possible).sum())} of {len(possible)} rows are no softmax of probabilities, so "
            f"there is none to invert: {few(names)} — leave out --invert-softmax"
        )
    q = np.clip(inner(predictions.p), 0, 1)
    table = predictions.table.copy()
    table[[f"p_{name}" for name in predictions.classes]] = q / q.sum(axis=1, keepdims=True)
    note = "probabilities were normalised twice, as was said; the outer softmax is undone"
    kept = [old for old in predictions.notes if old not in doubts(predictions)]
    return replace(predictions, table=table, notes=(*kept, note))
