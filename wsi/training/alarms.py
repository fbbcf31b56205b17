"""Alarms: what the figures of an epoch say is going wrong, why, and what to do about it.

Pure functions of the history's rows, without torch. An alarm stops nothing: it is logged with its
epoch, told at the end of the fit and shown beside the learning curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from statistics import median
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]
"""Rows of one fit in order: epoch, grad_norm and, where there are any, figures."""

GRADIENT_NORM = 1e4
DRIFT = 0.5
"""Relative change of the centre in one epoch."""
COLLAPSE = 1e-3
"""Share of their start below which concentration and separation are lost."""
SATURATION = 1e-3
UNPREDICTED = 10.0
"""Times the median concentration of the other classes."""
DISAGREEMENT = 0.1
RUNAWAY_STEPS = 3
LASTING = 3
"""Epochs in a row before what is normal at first, or by chance, becomes an alarm."""


@dataclass(frozen=True)
class Alarm:
    """What is wrong after an epoch.

    Attributes:
        name: `gradient-norm`, `centre-drift`, `collapse`, `runaway-centroids`, `saturation`,
            `class-never-predicted` or `rule-disagreement`.
        since: the first epoch of the unbroken row up to this one in which it held.
        message: what was seen, since when, what to do.
    """

    name: str
    since: int
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in the history."""
        return asdict(self)


@dataclass(frozen=True)
class Raised:
    """One kind of alarm over a whole fit.

    Attributes:
        message: of the last epoch that raised it.
        epochs: all that raised it.
    """

    name: str
    message: str
    epochs: tuple[int, ...]

    @property
    def epochs_text(self) -> str:
        """Return the epochs as `3-5, 9`."""
        runs = [
            [epoch for _, epoch in run]
            for _, run in groupby(enumerate(self.epochs), key=lambda item: item[1] - item[0])
        ]
        return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


def alarms(history: Rows, classes: Sequence[str] = ()) -> list[Alarm]:
    """Return the alarms of the last epoch of `history`, in a fixed order.

    Figures that a row lacks raise none.

    Args:
        classes: names for messages; indices without.
    """
    fit, raised = _Fit(history, classes), []
    for rule in _RULES:
        lasted = _lasted(rule, fit)
        if lasted >= rule.lasting:
            since = int(history[-lasted]["epoch"])
            seen = rule.seen(fit, len(history) - 1)
            message = f"{seen}, since epoch {since} — {rule.advice}"
            raised.append(Alarm(rule.name, since, message))
    return raised


def raised_over(history: Rows) -> list[Raised]:
    """Return each distinct alarm that rows of a fit carry, in order of its first epoch."""
    found: dict[str, tuple[str, list[int]]] = {}
    for row in history:
        for alarm in row.get("alarms", ()):
            _, epochs = found.get(alarm["name"], ("", []))
            found[alarm["name"]] = alarm["message"], [*epochs, row["epoch"]]
    return [Raised(name, message, tuple(epochs)) for name, (message, epochs) in found.items()]


@dataclass(frozen=True)
class _Fit:
    """Rows of a fit, and names of its classes or none."""

    rows: Rows
    classes: Sequence[str]

    def figure(self, name: str, k: int) -> Any:
        """Return a figure after epoch k, or None."""
        return self.rows[k].get("figures", {}).get(name)


def _gradient(fit: _Fit, k: int) -> str:
    norm = fit.rows[k].get("grad_norm")
    high = norm is not None and norm > GRADIENT_NORM
    return f"gradient norm {norm:.3g} before clipping is above {GRADIENT_NORM:g}" if high else ""


def _drift(fit: _Fit, k: int) -> str:
    moved = fit.figure("centre_drift", k)
    far = moved is not None and moved > DRIFT
    return f"the feature centre moved by {moved:.0%} of its length in an epoch" if far else ""


def _collapse(fit: _Fit, k: int) -> str:
    shares = []
    for name in ("concentration", "separation"):
        start, now = fit.figure(name, 0), fit.figure(name, k)
        if k == 0 or start is None or now is None or not start > 0:
            return ""
        shares.append(now / start)
    if max(shares) >= COLLAPSE:
        return ""
    return (
        f"concentration and separation are {shares[0]:.1g} and {shares[1]:.1g} of their start: "
        "all bags fall onto one point"
    )


def _runaway(fit: _Fit, k: int) -> str:
    if k < RUNAWAY_STEPS:
        return ""
    window = range(k - RUNAWAY_STEPS, k + 1)
    ncmi, accuracy = ([fit.figure(name, j) for j in window] for name in ("ncmi", "accuracy"))
    if None in ncmi or None in accuracy or not _falls(ncmi):
        return ""
    never_up = all(b <= a for a, b in pairwise(accuracy))
    if not never_up or accuracy[0] - accuracy[-1] <= _chance(accuracy[0], fit.figure("bags", k)):
        return ""
    return (
        f"validation NCMI fell from {ncmi[0]:.3g} to {ncmi[-1]:.3g} while accuracy fell from "
        f"{accuracy[0]:.1%} to {accuracy[-1]:.1%}: centroids run away from what they stand for"
    )


def _falls(values: Sequence[float]) -> bool:
    return all(b < a for a, b in pairwise(values))


def _chance(accuracy: float, n: int) -> float:
    """Return two standard errors of an accuracy, Laplace's rule keeping a perfect one uncertain."""
    p = (accuracy * n + 1) / (n + 2)
    return 2 * math.sqrt(p * (1 - p) / n)


def _saturation(fit: _Fit, k: int) -> str:
    slope = fit.figure("saturation", k)
    if slope is None or slope >= SATURATION:
        return ""
    return f"the sigmoid's mean slope at the largest feature is {slope:.2g}: no gradient passes"


def _unpredicted(fit: _Fit, k: int) -> str:
    by_class = fit.figure("concentration_by_class", k) or []
    present = {c: value for c, value in enumerate(by_class) if value is not None}
    if len(present) < 2:
        return ""
    worst = max(present, key=present.__getitem__)
    usual = median(value for c, value in present.items() if c != worst)
    if not usual > 0 or present[worst] <= UNPREDICTED * usual:
        return ""
    name = fit.classes[worst] if fit.classes else str(worst)
    predicted = fit.figure("predicted", k)
    never = "never predicted" if predicted and predicted[worst] == 0 else "far from its centroid"
    return f"class {name} has {present[worst] / usual:.0f} times the median concentration: {never}"


def _disagreement(fit: _Fit, k: int) -> str:
    share = fit.figure("rule_disagreement", k)
    if share is None or share <= DISAGREEMENT:
        return ""
    return f"nearest prototype and nearest class mean disagree on {share:.0%} of the bags"


@dataclass(frozen=True)
class _Rule:
    """An alarm: `seen` says what is wrong after epoch k of the rows, or nothing."""

    name: str
    seen: Callable[[_Fit, int], str]
    advice: str
    lasting: int = 1


_RULES = (
    _Rule("gradient-norm", _gradient, "lower fit.lr, keep fit.clip, or use more bags per step"),
    _Rule(
        "centre-drift",
        _drift,
        "use a fixed centre or none: bags are judged by a frame that moves",
        LASTING,
    ),
    _Rule(
        "collapse",
        _collapse,
        "use fixed centroids, or lower the rate of the learned ones",
    ),
    _Rule(
        "runaway-centroids",
        _runaway,
        "use fixed or class_mean centroids, or lower the rate of the learned ones",
    ),
    _Rule("saturation", _saturation, "raise the temperature, or lower the prototypes' scale"),
    _Rule(
        "class-never-predicted",
        _unpredicted,
        "balance the classes, or give this one more bags",
        LASTING,
    ),
    _Rule(
        "rule-disagreement",
        _disagreement,
        "predict by class mean or choose the rule on validation, and train longer",
        LASTING,
    ),
)


def _lasted(rule: _Rule, fit: _Fit) -> int:
    """Return for how many epochs up to the last the rule has held without a break."""
    lasted, last = 0, len(fit.rows) - 1
    while lasted <= last and rule.seen(fit, last - lasted):
        lasted += 1
    return lasted
