"""Logistic regression of one row per slide, its penalty chosen on validation slides."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Predict = Callable[[Array], Array]

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties that are tried; rows have unit length, so they suit any number of features."""

FIXED = 1.0
"""The one taken where no validation slides choose."""

_SMALL = 64  # features times classes up to which Newton's steps are the quicker
_MOST_STEPS = 1000
_TOLERANCE = 1e-6  # by scikit-learn's own, weak penalties are left well before their optimum


@dataclass(frozen=True, eq=False)
class Rows:
    """Features x (n, D) and class indices y (n,)."""

    x: Array
    y: Array


def logistic_probabilities(
    train: Rows, val: Rows, test: Array, C: int, *, balanced: bool = False
) -> Array:
    """Return the probabilities (m, C) of test rows (m, D) by multinomial logistic regression.

    Features are standardised by the training rows, then divided by sqrt(D). The L2 penalty is the
    one of least cross-entropy on the validation rows, the stronger of equals, or `FIXED` without
    any; only training rows are fitted. Classes without a training row have probability 0.

    Args:
        balanced: weigh classes equally; the probabilities are then at equal priors.
    """
    scaled = _scaling(train.x)
    fitted = Rows(scaled(train.x), train.y)
    if len(val.y) == 0:
        return _fit(fitted, FIXED, C, balanced=balanced)(scaled(test))
    held_out = scaled(val.x)
    tried = [_fit(fitted, strength, C, balanced=balanced) for strength in STRENGTHS]
    losses = [_cross_entropy(predict(held_out), val.y) for predict in tried]
    return tried[int(np.argmin(losses))](scaled(test))


def _scaling(x: Array) -> Predict:
    """Return what standardises rows by `x` and turns them into as few features as `x` has rows.

    The penalty keeps weights within the span of the training rows, so a rotation into it changes
    no probability, and many features cost no more than few.
    """
    mean, sd = x.mean(axis=0), x.std(axis=0)
    scale = np.where(sd > 0, sd, 1.0) * np.sqrt(x.shape[1])
    if x.shape[1] <= len(x):
        return lambda rows: (rows - mean) / scale
    _, _, span = np.linalg.svd((x - mean) / scale, full_matrices=False)
    return lambda rows: (rows - mean) / scale @ span.T


def _fit(rows: Rows, strength: float, C: int, *, balanced: bool) -> Predict:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(rows.y)
    model = LogisticRegression(
        C=strength,
        class_weight="balanced" if balanced else None,
        solver="newton-cholesky" if rows.x.shape[1] * C <= _SMALL else "lbfgs",
        max_iter=_MOST_STEPS,
        tol=_TOLERANCE,
    )
    if len(present) > 1:
        with warnings.catch_warnings():
            # A floor that stopped a little short of its optimum is a floor all the same.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows.x, rows.y)

    def predict(x: Array) -> Array:
        p = np.zeros((len(x), C))
        p[:, present] = model.predict_proba(x) if len(present) > 1 else 1.0
        return p

    return predict


def _cross_entropy(p: Array, y: Array) -> float:
    own = p[np.arange(len(y)), y]
    return float(-np.log(np.maximum(own, np.finfo(float).eps)).mean())
