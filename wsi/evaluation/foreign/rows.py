"""Rows of other tools' tables as predictions; whatever is wrong is listed with its lines."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from wsi.cohorts.cells import Line, Table
from wsi.cohorts.rows import PARTS
from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation.prediction_table import SUM_TOLERANCE, decimal_commas
from wsi.evaluation.predictions import Predictions
from wsi.evaluation.twice_normalised import doubted
from wsi.findings import few
from wsi.registry import suggest

KEYS = ("slide_id", "patient_id", "site", "cohort", "fold", "seed", "split", "y_true", "y_pred")


@dataclass(frozen=True)
class Given:
    """What the user says of a table.

    Attributes:
        columns: names of its columns by ours: slide_id, ..., y_pred, p_<class>.
        classes: the classes in order; of CLAM's numbers 0, 1, ...
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """One table, and where things stand in it.

    Attributes:
        columns: its columns by our names, those of `KEYS` that it has.
        probabilities: its column by class, in the order of the classes.
        fold: which test part it is, where no column says so.
        words: what its cells call a class, where that is not the name.
    """

    table: Table
    columns: Mapping[str, str]
    probabilities: Mapping[str, str]
    fold: int = 0
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """All tables of one source.

    Attributes:
        unit: what a row is of.
    """

    tool: str
    unit: Literal["slide", "patient"]
    sheets: tuple[Sheet, ...]
    notes: tuple[str, ...] = ()


def parse_columns(words: Iterable[str]) -> dict[str, str]:
    """Return the map of `slide_id=name` words, which commas may join.

    Raises:
        ConfigError: a word without `=`, or a column that we do not have.
    """
    found: dict[str, str] = {}
    for word in (part.strip() for words_ in words for part in words_.split(",")):
        ours, sign, theirs = (part.strip() for part in word.partition("="))
        if not (ours and sign and theirs):
            raise ConfigError(f"column '{word}' is no pair — write slide_id=<their column>")
        if ours not in KEYS and not (ours.startswith("p_") and len(ours) > 2):
            raise ConfigError(
                f"unknown column '{ours}'{suggest(ours, KEYS)} — use {', '.join(KEYS)} or p_<class>"
            )
        if ours in found:
            raise ConfigError(f"column {ours} is given twice — give it once")
        found[ours] = theirs
    return found


def column_given(table: Table, given: Given, ours: str) -> str | None:
    """Return the column the user named for one of ours, None where none was.

    Raises:
        ConfigError: the table has no such column.
    """
    theirs = given.columns.get(ours)
    if theirs is not None and theirs not in table.columns:
        raise ConfigError(
            f"{table.path.name} has no column {theirs}{suggest(theirs, table.columns)} for {ours} "
            f"— it has: {', '.join(table.columns)}"
        )
    return theirs


def in_order(found: Sequence[str], given: Given, where: str) -> tuple[str, ...]:
    """Return the classes found in the order given, or as found.

    Raises:
        ConfigError: they are not the classes given.
    """
    if given.classes and sorted(given.classes) != sorted(found):
        raise ConfigError(
            f"{where} has probabilities of {', '.join(found)}, not of {', '.join(given.classes)} — "
            "--classes may change the order only"
        )
    return given.classes or tuple(found)


def predictions_of(layout: Layout) -> Predictions:
    """Return the rows of all sheets.

    Raises:
        PredictionsError: bad rows, all listed with their lines.
    """
    classes = tuple(layout.sheets[0].probabilities)
    several = len(layout.sheets) > 1
    named = layout.unit == "slide" and any(_names_patients(sheet) for sheet in layout.sheets)
    problems: list[str] = []
    rows: list[dict[str, Any]] = []
    for sheet in layout.sheets:
        reader = _Reader(sheet, classes, layout.unit, patients_named=named)
        rows += [reader.row(line) for line in sheet.table.lines]
        reader.look_for_twins()
        where = f"{sheet.table.path.parent.name}/{sheet.table.path.name}: " if several else ""
        problems += [f"{where}{problem}" for problem in reader.problems()]
        if not sheet.table.lines:
            problems.append(f"{where}no rows below the header")
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise PredictionsError(f"rows that cannot be used:{listed}\n— correct the table")
    return _told(Predictions(classes, pd.DataFrame(rows), **_about(layout)), layout)


def _names_patients(sheet: Sheet) -> bool:
    column = sheet.columns.get("patient_id")
    return column is not None and any(line.cells[column] for line in sheet.table.lines)


def _about(layout: Layout) -> dict[str, Any]:
    first = layout.sheets[0]
    decided = first.columns.get("y_pred")
    decision = f"as {layout.tool} decided (column {decided})" if decided else "largest probability"
    return {"decision": decision, "of_patients": layout.unit == "patient", "notes": layout.notes}


def _told(made: Predictions, layout: Layout) -> Predictions:
    """Return the predictions with notes on their decisions and probabilities."""
    notes = list(made.notes)
    p = made.p
    other = p[np.arange(len(p)), made.decided] < p.max(axis=1)
    if other.any():
        notes.append(
            f"{layout.tool}'s own decision is not the class of largest probability in "
            f"{int(other.sum())} of {len(p)} rows, and is what F1, accuracy and kappa are of"
        )
    return doubted(replace(made, notes=tuple(notes)))


class _Reader:
    """Turns lines of a sheet into rows, and keeps what is wrong with them by kind."""

    def __init__(
        self, sheet: Sheet, classes: tuple[str, ...], unit: str, *, patients_named: bool
    ) -> None:
        self.sheet = sheet
        self.classes = classes
        self.patients_named = patients_named
        self.id_of = "patient_id" if unit == "patient" else "slide_id"
        self._lines: dict[str, list[int]] = defaultdict(list)
        self._first: dict[tuple[str, str, str], list[int]] = defaultdict(list)

    def row(self, line: Line) -> dict[str, Any]:
        """Return a row in our columns."""
        if line.number in self.sheet.table.malformed:
            self._bad(line, f"more cells than the {len(self.sheet.table.columns)} columns")
        of = self._cell(line, self.id_of)
        if not of:
            self._bad(line, f"no {self._named(self.id_of)}")
        patient = self._cell(line, "patient_id")
        if self.patients_named and not patient:
            self._bad(
                line,
                f"no {self._named('patient_id')}, though other rows have one: name every patient, "
                "or none and join them with --cohort",
            )
        row = {
            "slide_id": of,
            "patient_id": patient or of,
            "site": self._cell(line, "site"),
            "cohort": self._cell(line, "cohort"),
            "fold": self._whole(line, "fold", self.sheet.fold),
            "seed": self._whole(line, "seed", 0),
            "split": self._part(line),
            "y_true": self._class(line, "y_true"),
        }
        self._first[of, str(row["fold"]), str(row["seed"])].append(line.number)
        if "y_pred" in self.sheet.columns:
            row["y_pred"] = self._class(line, "y_pred", required=True)
        return row | self._probabilities(line)

    def look_for_twins(self) -> None:
        """Keep the ids that stand twice in one fold and seed."""
        for (of, _, _), numbers in self._first.items():
            if of and len(numbers) > 1:
                self._lines[f"{of} stands twice in one fold and seed"] += numbers

    def problems(self) -> list[str]:
        """Return what is wrong, each kind once with its lines."""
        return [
            f"line{'s' if len(lines) > 1 else ''} {few(map(str, lines), 10)}: {what}"
            for what, lines in self._lines.items()
        ]

    def _bad(self, line: Line, what: str) -> None:
        self._lines[what].append(line.number)

    def _named(self, ours: str) -> str:
        theirs = self.sheet.columns.get(ours, ours)
        return ours if theirs == ours else f"{ours} ({theirs})"

    def _cell(self, line: Line, ours: str) -> str:
        return line.cells[self.sheet.columns[ours]] if ours in self.sheet.columns else ""

    def _whole(self, line: Line, ours: str, default: int) -> int:
        text = self._cell(line, ours)
        if not text:
            return default
        value = _number(text)
        if not math.isfinite(value) or value != round(value):
            self._bad(line, f"{self._named(ours)} '{text}' is no whole number")
            return default
        return int(value)

    def _part(self, line: Line) -> str:
        text = self._cell(line, "split")
        if text and text.lower() not in PARTS:
            self._bad(line, f"{self._named('split')} '{text}' is not train, val or test")
        return PARTS.get(text.lower(), "test")

    def _class(self, line: Line, ours: str, *, required: bool = False) -> str:
        text = self._cell(line, ours)
        name = self.sheet.words.get(text, text)
        if (name or required) and name not in self.classes:
            self._bad(
                line,
                f"{self._named(ours)} '{text}' is none of the classes "
                f"{', '.join(self.classes)}{suggest(text, self.classes)}",
            )
        return name

    def _probabilities(self, line: Line) -> dict[str, float]:
        cells = {name: line.cells[c] for name, c in self.sheet.probabilities.items() if c}
        p = {name: _number(text) for name, text in cells.items()}
        if len(p) < len(self.classes):  # the other of two classes
            p = {name: p.get(name, 1 - sum(p.values())) for name in self.classes}
        values = np.array(list(p.values()))
        if not np.isfinite(values).all():
            bad = few(repr(text) for text in cells.values() if not math.isfinite(_number(text)))
            told = decimal_commas(cells.values())
            self._bad(line, f"probabilities that are no finite numbers ({bad}){told}")
        elif ((values < 0) | (values > 1)).any():
            self._bad(line, "probabilities outside [0, 1]: scores before a softmax are none")
        elif abs(values.sum() - 1) > SUM_TOLERANCE:
            self._bad(line, "probabilities that do not sum to 1")
        return {f"p_{name}": p[name] for name in self.classes}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
