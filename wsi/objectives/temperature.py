"""One temperature fitted to held-out labels."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


def fit_temperature(
    scores: np.ndarray, y: np.ndarray, *, low: float, high: float, smoothed: bool = False
) -> tuple[float, float]:
    """Return (t, NLL): the t in [low, high] with the smallest mean NLL of softmax(scores / t).

    The bounds matter: scores that rank every bag rightly have their optimum at t = 0, where all
    probabilities are 0 or 1. The NLL is convex in 1 / t, so the search on log t cannot be caught
    in a local minimum.

    Args:
        scores: (n, C), higher is likelier.
        y: class indices (n,).
        low: smallest t, above 0.
        high: largest t.
        smoothed: expect the label with (n + 1) / (n + C) only and each other class with
            1 / (n + C), so that a few bags, all ranked rightly, do not buy certainty. Source:
            Platt 1999, section 2.2, for C = 2.
    """
    n, C = scores.shape
    doubt = (C - 1) / (n + C) if smoothed else 0.0

    def nll(log_t: float) -> float:
        log_p = log_softmax(scores / math.exp(log_t), axis=1)
        of_label = -log_p[np.arange(n), y]
        of_others = -log_p.sum(axis=1) - of_label
        return float(((1 - doubt) * of_label + doubt / (C - 1) * of_others).mean())

    found = minimize_scalar(
        nll, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(found.x), float(found.fun)


def mean_nll(scores: np.ndarray, y: np.ndarray) -> float:
    """Return the mean negative log-likelihood in nats of classes y (n,) under softmax(scores)."""
    return float(-log_softmax(scores, axis=1)[np.arange(len(y)), y].mean())
