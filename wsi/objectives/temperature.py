"""One temperature fitted to held-out labels."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


def fit_temperature(
    scores: np.ndarray, y: np.ndarray, *, low: float, high: float
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
    """

    def nll(log_t: float) -> float:
        return mean_nll(scores / math.exp(log_t), y)

    found = minimize_scalar(
        nll, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-6}
    )
    return math.exp(found.x), float(found.fun)


def mean_nll(scores: np.ndarray, y: np.ndarray) -> float:
    """Return the mean negative log-likelihood in nats of classes y (n,) under softmax(scores)."""
    return float(-log_softmax(scores, axis=1)[np.arange(len(y)), y].mean())
