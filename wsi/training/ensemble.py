"""Several models' predictions of one bag as one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.errors import TrainingError


class Ensemble(NamedTuple):
    """What M models say together.

    Attributes:
        p: mean of their probabilities (C,), summing to 1.
        sd: standard deviation over the models (C,), with M - 1 in the denominator; NaN for one.
    """

    p: NDArray[np.float64]
    sd: NDArray[np.float64]


def ensemble(probabilities: ArrayLike) -> Ensemble:
    """Return mean and spread of the probabilities (M, C) of M models.

    Raises:
        TrainingError: there is no model.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not len(p):
        raise TrainingError("there is no model to predict by — give at least one")
    sd = p.std(axis=0, ddof=1) if len(p) > 1 else np.full(p.shape[1], np.nan)
    return Ensemble(p.mean(axis=0), sd)
