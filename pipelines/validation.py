"""Figures of one fit on its validation part, by which rates, arms and trials are chosen."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsi.evaluation import METRICS

_TEMPERATURES = (0.05, 20.0)


def validation_figures(monitor: str, y: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """Return monitor, temperature-fitted nll and macro_f1 of validation bags.

    The monitor is that of the rule which decides on the test part, whatever rule the loop watched.

    Args:
        monitor: what fit.monitor names.
        y: true classes (n,).
        p: probabilities (n, C) of the deciding rule.
    """
    from wsi.objectives.temperature import fit_temperature

    log_p = np.log(np.maximum(p, np.finfo(np.float64).tiny))
    _, nll = fit_temperature(log_p, y, low=_TEMPERATURES[0], high=_TEMPERATURES[1])
    watched = METRICS["nll" if monitor == "loss" else monitor](y, p).value
    return {"monitor": watched, "nll": nll, "macro_f1": METRICS["macro_f1"](y, p).value}
