"""Choices on validation alone: the rate of every arm, and the rival."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.study.cells import Summary
from pipelines.study.plan import CellId

_DIGITS = 9  # means that differ by less are the same number, summed in another order


@dataclass(frozen=True)
class Standing:
    """Validation figures of one arm at one rate, means over folds and seeds.

    Attributes:
        monitor: the validation figure of the deciding rule, or None where a fit failed.
        nll: temperature-fitted.
        macro_f1: of the decisions on validation bags.
        failed: what the first failing fit said, or None.
    """

    selection: str
    arm: str
    rate: float
    fits: int
    monitor: float | None
    nll: float | None
    macro_f1: float | None
    failed: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures for results."""
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """The rate of one arm.

    Attributes:
        edge: `lowest` or `highest` where the best rate is the last of the grid on that side: a
            better one may lie beyond.
        table: all rates tried.
    """

    best: Standing
    edge: str | None
    table: tuple[Standing, ...]

    @property
    def rate(self) -> float:
        """Return the chosen rate."""
        return self.best.rate


def standings(fits: Mapping[CellId, Summary]) -> list[Standing]:
    """Return the means of each selection, arm and rate, in the order of `fits`."""
    groups: dict[tuple[str, str, float], list[Summary]] = {}
    for cell, summary in fits.items():
        groups.setdefault((cell.selection, cell.arm, cell.rate), []).append(summary)
    return [_standing(*key, group) for key, group in groups.items()]


def _standing(selection: str, arm: str, rate: float, fits: Sequence[Summary]) -> Standing:
    failed = next((fit["failed"] for fit in fits if fit["failed"]), None)
    if failed:
        return Standing(selection, arm, rate, len(fits), None, None, None, failed)
    monitor, nll, macro_f1 = (
        float(np.mean([fit[k] for fit in fits])) for k in ("monitor", "nll", "macro_f1")
    )
    return Standing(selection, arm, rate, len(fits), monitor, nll, macro_f1)


def best(candidates: Iterable[Standing], *, lower: bool) -> Standing | None:
    """Return the one with the best mean monitor, ties going to the smaller NLL; None without any.

    Args:
        lower: whether a smaller monitor is better.
    """

    def key(one: Standing) -> tuple[float, float]:
        monitor = math.inf if one.monitor is None else one.monitor
        return round(monitor if lower else -monitor, _DIGITS), round(one.nll or 0.0, _DIGITS)

    whole = [one for one in candidates if one.failed is None]
    return min(whole, key=key) if whole else None


def choose_rates(
    found: Sequence[Standing], rates: Sequence[float], *, lower: bool
) -> dict[str, dict[str, Choice]]:
    """Return the chosen rate of every arm, by selection and label.

    An arm of which a fit failed at every rate has none, and is left out.
    """
    chosen: dict[str, dict[str, Choice]] = {}
    for selection, arm in dict.fromkeys((one.selection, one.arm) for one in found):
        table = tuple(one for one in found if (one.selection, one.arm) == (selection, arm))
        winner = best(table, lower=lower)
        if winner is not None:
            edge = _edge(winner.rate, rates)
            chosen.setdefault(selection, {})[arm] = Choice(winner, edge, table)
    return chosen


def _edge(rate: float, rates: Sequence[float]) -> str | None:
    if len(rates) > 1 and rate in (min(rates), max(rates)):
        return "lowest" if rate == min(rates) else "highest"
    return None
