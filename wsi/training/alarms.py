"""Alarms: what the figures of an epoch say is going wrong, why, and what to do about it.

Pure functions of the history's rows, without torch. An alarm stops nothing: it is logged with its
epoch, told at the end of the fit and shown beside the learning curves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import median
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]
"""Rows of one fit in order: epoch, grad_norm and, where there are any, figures."""

GRADIENT_NORM = 1e4
DRIFT = 0.2
"""Relative change of the centre in one epoch; a sound one falls below it after a few."""
COLLAPSE = 1e-3
"""Share of their peak below which concentration and separation are lost."""
WINDOW = 3
"""Epochs over which NCMI and accuracy are averaged before they are said to fall."""
SATURATION = 1e-3
FAR = 10.0
"""Times the median concentration of the other classes."""
DISAGREEMENT = 0.1
LASTING = 5
"""Epochs in a row before what is normal at first, or by chance, becomes an alarm."""


@dataclass(frozen=True)
class Alarm:
    """What is wrong after an epoch.

    Attributes:
        name: `gradient-norm`, `centre-drift`, `collapse`, `runaway-centroids`, `saturation`,
            `class-never-predicted`, `class-far-spread` or `rule-disagreement`.
        since: the first epoch of the unbroken run up to this one in which it held.
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
        epochs: all in which it held: those that raised it, and those before that took it to do so.
    """

    name: str
    message: str
    epochs: tuple[int, ...]

    @property
    def text(self) -> str:
        """Return the message and the epochs in which it held."""
        noun = "epoch" if len(self.epochs) == 1 else "epochs"
        return f"{self.message} (it held in {noun} {self.epochs_text})"

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
    fit, raised, last = _Fit(history, classes), [], len(history) - 1
    before = {a["name"]: a["since"] for row in history[-2:-1] for a in row.get("alarms", ())}
    for rule in _RULES:
        first = last - rule.lasting + 1
        seen = [rule.seen(fit, k) for k in range(first, last + 1)] if first >= 0 else [""]
        if all(seen):
            since = before.get(rule.name, int(history[first - rule.span + 1]["epoch"]))
            message = f"{seen[-1]}, since epoch {since} — {rule.advice}"
            raised.append(Alarm(rule.name, since, message))
    return raised


def raised_over(history: Rows) -> list[Raised]:
    """Return each distinct alarm that rows of a fit carry, in order of its first epoch."""
    messages: dict[str, str] = {}
    held: dict[str, set[int]] = {}
    for row in history:
        for alarm in row.get("alarms", ()):
            messages[alarm["name"]] = alarm["message"]
            span = range(alarm["since"], row["epoch"] + 1)
            held.setdefault(alarm["name"], set()).update(span)
    return [Raised(name, text, tuple(sorted(held[name]))) for name, text in messages.items()]


@dataclass(frozen=True)
class _Fit:
    """Rows of a fit, and names of its classes or none."""

    rows: Rows
    classes: Sequence[str]

    def figure(self, name: str, k: int) -> Any:
        """Return a figure after epoch k, or None."""
        return self.rows[k].get("figures", {}).get(name)

    def class_name(self, c: int) -> str:
        """Return the name of a class, or its index."""
        return self.classes[c] if self.classes else str(c)


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
        *earlier, now = (fit.figure(name, j) for j in range(k + 1))
        peak = max((value for value in earlier if value is not None), default=0.0)
        if now is None or not peak > 0:
            return ""
        shares.append(now / peak)
    if max(shares) >= COLLAPSE:
        return ""
    return (
        f"concentration and separation are {shares[0]:.1g} and {shares[1]:.1g} of what they were: "
        "all bags fall onto one point"
    )


def _runaway(fit: _Fit, k: int) -> str:
    ncmi = _means([fit.figure("ncmi", j) for j in range(k + 1)])
    accuracy = _means([fit.figure("accuracy", j) for j in range(k + 1)])
    if len(ncmi) < 2 or len(accuracy) != len(ncmi):
        return ""
    best = max(range(len(accuracy)), key=accuracy.__getitem__)
    lost = accuracy[best] - accuracy[-1]
    if ncmi[-1] >= ncmi[best] or lost <= _chance(accuracy[best], fit.figure("bags", k)):
        return ""
    return (
        f"validation NCMI fell from {ncmi[best]:.3g} to {ncmi[-1]:.3g}, but accuracy too, from "
        f"{accuracy[best]:.1%} to {accuracy[-1]:.1%}: centroids run away from their classes"
    )


def _means(values: Sequence[float | None]) -> list[float]:
    """Return the moving mean over `WINDOW` epochs; nothing where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return []
    return [sum(known[j : j + WINDOW]) / WINDOW for j in range(len(known) - WINDOW + 1)]


def _chance(accuracy: float, n: int) -> float:
    """Return two standard errors of an accuracy, Laplace's rule keeping a perfect one uncertain."""
    p = (accuracy * n + 1) / (n + 2)
    return 2 * math.sqrt(p * (1 - p) / n)


def _saturation(fit: _Fit, k: int) -> str:
    slope = fit.figure("saturation", k)
    if slope is None or slope >= SATURATION:
        return ""
    return f"the sigmoid passes {slope:.2g} of a gradient at the largest feature: it is saturated"


def _unpredicted(fit: _Fit, k: int) -> str:
    """Say which class was missed, the same in each of the last epochs."""
    window = range(k - LASTING + 1, k + 1)
    if window[0] < 0:
        return ""
    never = set.intersection(*(_never_predicted(fit, j) for j in window))
    named = ", ".join(fit.class_name(c) for c in sorted(never))
    return f"no validation bag is predicted to be of class {named}" if never else ""


def _never_predicted(fit: _Fit, k: int) -> set[int]:
    predicted, bags = fit.figure("predicted", k) or (), fit.figure("bags_by_class", k) or ()
    return {c for c, (n, of) in enumerate(zip(predicted, bags)) if of and not n}


def _far_spread(fit: _Fit, k: int) -> str:
    """Say which class spreads far, the same in each of the last epochs."""
    if k < LASTING - 1:
        return ""
    far = [_far_class(fit, j) for j in range(k - LASTING + 1, k + 1)]
    if far[-1] is None or any(found is None or found[0] != far[-1][0] for found in far):
        return ""
    c, times = far[-1]
    return f"class {fit.class_name(c)} spreads {times:.0f} times as far as the median class"


def _far_class(fit: _Fit, k: int) -> tuple[int, float] | None:
    """Return the class of largest concentration, and its ratio to the others' median, if large."""
    by_class = fit.figure("concentration_by_class", k) or ()
    bags = fit.figure("bags_by_class", k) or [2] * len(by_class)
    # A single bag is its own mean: it spreads by rounding alone, and nothing compares with that.
    present = {c: v for c, (v, n) in enumerate(zip(by_class, bags)) if v is not None and n > 1}
    if len(present) < 2:
        return None
    worst = max(present, key=present.__getitem__)
    usual = median(value for c, value in present.items() if c != worst)
    if not usual > 0 or present[worst] <= FAR * usual:
        return None
    return worst, present[worst] / usual


def _disagreement(fit: _Fit, k: int) -> str:
    share = fit.figure("rule_disagreement", k)
    if share is None or share <= DISAGREEMENT:
        return ""
    return f"nearest prototype and nearest class mean disagree on {share:.0%} of the bags"


@dataclass(frozen=True)
class _Rule:
    """An alarm: `seen` says what is wrong after epoch k of the rows, or nothing.

    Attributes:
        lasting: epochs in a row that must have something to say.
        span: epochs that `seen` looks at itself.
    """

    name: str
    seen: Callable[[_Fit, int], str]
    advice: str
    lasting: int = 1
    span: int = 1


_RULES = (
    _Rule("gradient-norm", _gradient, "lower fit.lr, keep fit.clip, take more fit.bags_per_step"),
    _Rule("centre-drift", _drift, "set objective.center=fixed or none", LASTING),
    _Rule("collapse", _collapse, "set objective.centroids=fixed"),
    _Rule(
        "runaway-centroids",
        _runaway,
        "set objective.centroids=fixed, or lower objective.centroid_lr",
    ),
    _Rule("saturation", _saturation, "raise objective.temperature"),
    _Rule(
        "class-never-predicted",
        _unpredicted,
        "give the class more bags or weight, train longer, or raise fit.lr",
        span=LASTING,
    ),
    _Rule(
        "class-far-spread",
        _far_spread,
        "look at its bags for wrong labels or an odd site, train longer, or give it more bags",
        span=LASTING,
    ),
    _Rule(
        "rule-disagreement",
        _disagreement,
        "train longer, or set objective.predict=auto to choose on validation",
        LASTING,
    ),
)
