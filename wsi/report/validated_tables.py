"""Tables of what validation settled: calibration at its temperatures, rates at its thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wsi.evaluation.scores import CALIBRATED
from wsi.report.cells import Cell, Footnotes, Json, Table, interval, number, percent, short_title
from wsi.report.tables import rows_title

_RULES: Mapping[str, str] = {
    "youden": "largest sensitivity + specificity",
    "sensitivity_95": "sensitivity of 0.95 or more",
}


def calibrated(metrics: Json) -> Table | None:
    """Return the calibration metrics before and after; None without temperatures."""
    found = metrics.get("calibrated")
    if not found or found["reason"]:
        return None
    notes = Footnotes()
    rows = []
    for name in CALIBRATED:
        before, after = metrics[name], found[name]
        why = "; ".join(note for note in (after.get("note"), found.get("note")) if note)
        rows.append((Cell(short_title(name)), _rate(before, notes), _rate(after, notes, why)))
    columns = ("Metric", "As predicted", "At the temperatures")
    fits = list(found["temperatures"].values())
    caption = (
        f"At the temperatures of validation ({_span(fits)}), with {percent(metrics['level'])} "
        "intervals; lower is better, decisions stay as they are"
    )
    return Table(caption, columns, tuple(rows), tuple(notes.texts))


def uncalibrated(metrics: Json) -> str:
    """Return why there are no calibrated figures, in a sentence; empty where there are."""
    reason = (metrics.get("calibrated") or {}).get("reason", "")
    return f"No figures at temperatures of validation: {reason}." if reason else ""


def operating_points(metrics: Json) -> Table | None:
    """Return a row per class and rule; None of metrics without thresholds."""
    points = metrics.get("operating_points")
    if not points:
        return None
    notes = Footnotes()
    rows = [
        _point(name, rule, point, notes)
        for name, of in points.items()
        for rule, point in of.items()
    ]
    columns = ("Class", "Rule on validation", "Thresholds", "Sensitivity", "Specificity")
    rows_of = rows_title(metrics)
    columns += (f"{rows_of} of the class", f"{rows_of} of others")
    caption = (
        "Operating points chosen on validation: each class against the rest, as the test parts "
        f"have it, with {percent(metrics['level'])} intervals"
    )
    return Table(caption, columns, tuple(rows), tuple(notes.texts), text_columns=(0, 1))


def _point(name: str, rule: str, point: Json, notes: Footnotes) -> tuple[Cell, ...]:
    cuts = [t for t in point["thresholds"].values() if t is not None]
    sides = (point["sensitivity"], point["specificity"])
    return (
        Cell(name, notes=notes.numbers(point["note"])),
        Cell(_RULES.get(rule, rule)),
        Cell(_span(cuts) if cuts else number(None), min(cuts, default=None)),
        *(_rate(side, notes) for side in sides),
        *(Cell(str(side["n"]), side["n"]) for side in sides),
    )


def _rate(score: Json, notes: Footnotes, why: str | None = None) -> Cell:
    told = score.get("note", "") if why is None else why
    return Cell(interval(score), score["value"], notes.numbers(told))


def _span(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"
