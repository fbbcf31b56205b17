"""What the validation part of a fit settles for its test part: a temperature and thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.special import softmax

Array = np.ndarray

SENSITIVITY = 0.95
RULES = ("youden", "sensitivity_95")
"""How a threshold is picked; see `thresholds_of`."""

TEMPERATURES = (0.05, 20.0)
"""The range that temperatures are searched in."""

_NO_VALIDATION = "no validation part"


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one class against the rest: positive from this probability on.

    Args:
        positives, negatives: validation rows of the class and of the others.
        reason: why there are none.
    """

    youden: float | None = None
    sensitivity_95: float | None = None
    positives: int = 0
    negatives: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Calibration:
    """What one fit learnt from its validation part, after its weights were chosen.

    Args:
        temperature: of the log-probabilities, None where there is none.
        thresholds: by class.
        n: validation rows.
        reason: why there is no temperature.
    """

    temperature: float | None = None
    thresholds: Mapping[str, Thresholds] = field(default_factory=dict)
    n: int = 0
    reason: str = _NO_VALIDATION

    def to_json(self) -> dict[str, Any]:
        """Return it as a fit, a checkpoint and the sidecar of predictions hold it."""
        return asdict(self) | {
            "thresholds": {name: asdict(one) for name, one in self.thresholds.items()}
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Calibration:
        """Return what `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is not of that form.
        """
        t = _number(values["temperature"])
        if t is not None and not t > 0:
            raise ValueError(f"a temperature of {t:g} is none")
        return Calibration(
            t,
            {str(name): _thresholds(one) for name, one in values["thresholds"].items()},
            int(values["n"]),
            str(values["reason"]),
        )


def _thresholds(values: Mapping[str, Any]) -> Thresholds:
    return Thresholds(
        _number(values["youden"]),
        _number(values["sensitivity_95"]),
        int(values["positives"]),
        int(values["negatives"]),
        str(values["reason"]),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def fit_name(fold: int, seed: int) -> str:
    """Return what a fit is called in `calibration`: as the folder that a run keeps it in."""
    return f"fold{fold}-seed{seed}"


def fit_calibration(y: Array, p: Array, classes: Sequence[str]) -> Calibration:
    """Return what validation rows settle: classes y (n,) and probabilities p (n, C) of one model.

    The temperature has the smallest likelihood loss against smoothed labels, between .05 and 20:
    a few rows, all ranked rightly, do not buy certainty.

    Source: Guo et al. 2017, section 4.2; the smoothing is Platt's (1999, section 2.2).
    """
    from wsi.objectives.temperature import fit_temperature

    if len(y) == 0:
        return Calibration()
    low, high = TEMPERATURES
    t, _ = fit_temperature(_log(p), y, low=low, high=high, smoothed=True)
    of_class = {name: thresholds_of(y == c, p[:, c], name) for c, name in enumerate(classes)}
    return Calibration(t, of_class, len(y), "")


def at_temperature(p: Array, t: float) -> Array:
    """Return probabilities p (n, C) at a temperature: p^(1/t), scaled to sum to 1."""
    return softmax(_log(p) / t, axis=1)


def thresholds_of(positive: Array, score: Array, name: str = "the class") -> Thresholds:
    """Return the thresholds of a score (n,) by which rows (n,) are told from the rest.

    Rules:
        youden: the largest sensitivity + specificity (Youden 1950).
        sensitivity_95: the largest specificity among those of sensitivity >= .95.

    Of thresholds that do equally well, the lowest stands. A threshold lies half-way between the
    last score that is called positive and the next lower one, or 0.
    """
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        lacking = f"no validation row of {name}" if n == 0 else f"validation rows of {name} only"
        return Thresholds(positives=n, negatives=m, reason=lacking)
    cuts = np.unique(score)[::-1]
    sensitivity = (score[positive][:, None] >= cuts).mean(axis=0)
    specificity = (score[~positive][:, None] < cuts).mean(axis=0)
    between = (cuts + np.append(cuts[1:], 0.0)) / 2
    enough = np.where(sensitivity >= SENSITIVITY, specificity, -1.0)
    youden, screening = (_last_largest(found) for found in (sensitivity + specificity, enough))
    return Thresholds(float(between[youden]), float(between[screening]), n, m)


def _last_largest(values: Array) -> int:
    """Return the last index of the largest value, up to rounding."""
    return int(np.flatnonzero(values >= values.max() - 1e-12)[-1])


def _log(p: Array) -> Array:
    return np.log(np.maximum(p, np.finfo(np.float64).tiny))
