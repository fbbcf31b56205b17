"""What tables are made of: cells, footnotes, and numbers as text that is ready to print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from wsi.evaluation import METRICS

Json = Mapping[str, Any]

UNKNOWN = "–"
MINUS = "−"


@dataclass(frozen=True)
class Cell:
    """Text with the number it is sorted by, its footnotes and a short remark."""

    text: str
    sort: float | None = None
    notes: tuple[int, ...] = ()
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """A table to print.

    Attributes:
        columns: headings; the first column names the rows.
        summary: rows that stay below the others when these are sorted.
        text_columns: numbers of the columns that hold words, the first among them.
        notes: footnotes, numbered from 1.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    text_columns: tuple[int, ...] = (0,)
    summary: tuple[tuple[Cell, ...], ...] = ()


@dataclass
class Footnotes:
    """Remarks collected while rows are made; the same remark has one number."""

    texts: list[str] = field(default_factory=list)

    def numbers(self, text: str) -> tuple[int, ...]:
        """Return the numbers of the remarks in `text`, which semicolons separate."""
        remarks = list(dict.fromkeys(remark for remark in text.split("; ") if remark))
        self.texts += [remark for remark in remarks if remark not in self.texts]
        return tuple(self.texts.index(remark) + 1 for remark in remarks)


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Return a number with a true minus sign, or a dash for None."""
    if value is None:
        return UNKNOWN
    rounded = round(value, digits) + 0.0  # no minus zero
    return f"{rounded:{'+' if signed else ''}.{digits}f}".replace("-", MINUS)


def interval(score: Json, digits: int = 2, *, signed: bool = False) -> str:
    """Return `0.71 [0.58, 0.82]` of a score's value, low and high."""
    value = number(score["value"], digits, signed=signed)
    if score["value"] is None or score["low"] is None or score["high"] is None:
        return value
    low, high = (number(score[key], digits, signed=signed) for key in ("low", "high"))
    return f"{value} [{low}, {high}]"


def p_value(p: float | None) -> str:
    """Return a p value with as many digits as it bears."""
    if p is None:
        return UNKNOWN
    return "<0.001" if p < 0.001 else number(p, 3 if p < 0.1 else 2)


def metrics_of(metrics: Json) -> list[str]:
    """Return the names of the metrics that are scored, in their order."""
    return [name for name in metrics if name in METRICS]


def metric_title(name: str) -> str:
    """Return a metric's title, saying when lower is better."""
    metric = METRICS[name]
    return metric.title if metric.higher_is_better else f"{metric.title}, lower is better"


def short_title(name: str) -> str:
    """Return a metric's title without what stands in brackets, or the name of no metric."""
    return METRICS[name].title.partition(" (")[0] if name in METRICS else name


def percent(level: float) -> str:
    """Return a confidence level as `95%`."""
    return f"{100 * level:g}%"


def worst_sites(worst: Json) -> list[str]:
    """Return all sites of the worst value; older scores name but one of them."""
    return list(worst.get("sites", [worst["site"]]))
