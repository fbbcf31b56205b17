"""Rows of a table read into slides; whatever is wrong with a row is kept as a finding."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from wsi.cohorts.cells import Line, Table
from wsi.errors import CohortError
from wsi.files import check_slide_id
from wsi.findings import Finding, few
from wsi.registry import suggest
from wsi.specs import MPP_RANGE

PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Words for the parts of an official split, in any case, and ours for them."""

_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}$")


@dataclass(frozen=True)
class SlideRow:
    """One slide of a table.

    Args:
        slide_id: as the table gives it, or the path without extension.
        patient_id: empty only in a slide table that names no patients.
        path: the slide file; a relative one is taken from the table's folder.
        split: `train`, `val` or `test` of an official split.
        mpp: um per level-0 pixel, when the table overrides the slide's own.
        line: line of the table, counted from 1 with the header.
        tissue: tissue settings of this slide alone, as text by name; slide tables only.
    """

    slide_id: str
    patient_id: str
    path: Path | None = None
    label: str | None = None
    site: str | None = None
    split: str | None = None
    mpp: float | None = None
    line: int = 0
    tissue: Mapping[str, str] = field(default_factory=dict)


def parse_rows(
    table: Table,
    label_column: str | None,
    classes: Sequence[str] | None,
    *,
    require_label: bool,
    require_patient: bool = True,
    settings: Mapping[str, str] | None = None,
) -> tuple[tuple[SlideRow, ...], list[Finding]]:
    """Return the rows that can be read, identical ones merged, and every problem of the table.

    Rows that hold the settings of a site are no slides, and are left out.

    Args:
        settings: which tissue setting a column holds.
    """
    names = {"label": label_column}
    for canonical in ("slide_id", "patient_id", "path", "site", "split", "mpp"):
        names[canonical] = table.column(canonical)
    if require_patient:
        table.require("patient_id")
    if names["slide_id"] is None and names["path"] is None:
        table.require("slide_id")
    parser = _Parser(table, names, classes, require_label, require_patient, settings or {})
    lines = [line for line in table.lines if not is_site_line(table, line)]
    rows = [row for line in lines if (row := parser.row(line)) is not None]
    if not lines:
        parser.findings.append(Finding("error", "empty", "no rows below the header"))
    merged = _merge(table, rows, parser.findings)
    parser.findings += _leaking_patients(merged)
    parser.findings = _grouped_labels(parser.findings, rows, classes or ())
    return merged, sorted(parser.findings, key=lambda finding: finding.line or 0)


def _grouped_labels(
    findings: Sequence[Finding], rows: Sequence[SlideRow], classes: Sequence[str]
) -> list[Finding]:
    """Return the findings with all unknown labels in one, where there are several."""
    unknown = [finding for finding in findings if finding.rule == "unknown-label"]
    if len(unknown) < 2:
        return list(findings)
    by_label: dict[str, list[str]] = {}
    for row in rows:
        if row.label is not None and row.label not in classes:
            by_label.setdefault(row.label, []).append(row.slide_id)
    told = [
        f"'{label}'{suggest(label, classes)} of {len(ids)} slide{'s' if len(ids) > 1 else ''} "
        f"({few(ids, 3)})"
        for label, ids in by_label.items()
    ]
    message = f"labels that are none of the classes {', '.join(classes)}: {'; '.join(told)}"
    ids = tuple(slide_id for finding in unknown for slide_id in finding.ids)
    one = Finding("error", "unknown-label", message, ids, unknown[0].line)
    return [one, *(finding for finding in findings if finding.rule != "unknown-label")]


def is_site_line(table: Table, line: Line) -> bool:
    """Return whether a line is no slide, but holds the settings of all slides of its site."""
    column = table.column("slide_id")
    return column is not None and line.cells[column] == "*"


class _Parser:
    """Turns lines into rows and keeps what is wrong with them."""

    def __init__(
        self,
        table: Table,
        names: Mapping[str, str | None],
        classes: Sequence[str] | None,
        require_label: bool,
        require_patient: bool,
        settings: Mapping[str, str],
    ) -> None:
        self.table = table
        self.names = names
        self.classes = classes
        self.require_label = require_label
        self.require_patient = require_patient
        self.settings = settings
        self.findings: list[Finding] = []
        self._derived = _ids_from_paths(self._texts("path"))

    def row(self, line: Line) -> SlideRow | None:
        """Return the row of a line, or None when it has no usable slide id."""
        if line.number in self.table.malformed:
            message = f"more cells than the {len(self.table.columns)} columns of the header"
            self._bad(line, None, message, "malformed")
        path = self._cell(line, "path")
        if self.names["slide_id"]:
            slide_id = self._cell(line, "slide_id") or ""
        else:
            slide_id = self._derived.get(path or "", "")
        usable = self._usable(line, slide_id)  # the other cells are checked all the same
        patient = self._cell(line, "patient_id")
        if patient is None and self.require_patient:
            self._bad(line, "patient_id", "missing patient", "missing-patient", slide_id)
        row = SlideRow(
            slide_id,
            patient or "",
            self.table.path.parent / path if path else None,
            self._label(line, slide_id),
            self._cell(line, "site"),
            self._split(line, slide_id),
            self._mpp(line, slide_id),
            line.number,
            {name: line.cells[c] for c, name in self.settings.items() if line.cells[c]},
        )
        return row if usable else None

    def _usable(self, line: Line, slide_id: str) -> bool:
        column = "slide_id" if self.names["slide_id"] else "path"
        if not slide_id:
            self._bad(line, column, "missing slide id", "missing-slide")
            return False
        try:
            check_slide_id(slide_id)
        except CohortError as error:
            self._bad(line, column, str(error), "slide-id", slide_id)
            return False
        return True

    def _label(self, line: Line, slide_id: str) -> str | None:
        value = self._cell(line, "label")
        if value is None and self.require_label:
            self._bad(line, "label", "missing label", "missing-label", slide_id)
        elif value is not None and self.classes is not None and value not in self.classes:
            near = suggest(value, self.classes)
            message = f"unknown label '{value}'{near}, classes are {', '.join(self.classes)}"
            self._bad(line, "label", message, "unknown-label", slide_id)
        return value

    def _split(self, line: Line, slide_id: str) -> str | None:
        value = self._cell(line, "split")
        if value is None:
            return None
        if value.lower() not in PARTS:
            message = f"unknown part '{value}'{suggest(value.lower(), PARTS)}, use train, val, test"
            self._bad(line, "split", message, "unknown-part", slide_id)
        return PARTS.get(value.lower())

    def _mpp(self, line: Line, slide_id: str) -> float | None:
        text = self._cell(line, "mpp")
        if text is None:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if MPP_RANGE[0] <= value <= MPP_RANGE[1]:
            return value
        message = f"'{text}' is no resolution from {MPP_RANGE[0]} to {MPP_RANGE[1]} um per pixel"
        self._bad(line, "mpp", message, "mpp", slide_id)
        return None

    def _cell(self, line: Line, canonical: str) -> str | None:
        name = self.names[canonical]
        return (line.cells[name] or None) if name else None

    def _texts(self, canonical: str) -> list[str]:
        return [text for line in self.table.lines if (text := self._cell(line, canonical))]

    def _bad(
        self, line: Line, canonical: str | None, message: str, rule: str, slide_id: str = ""
    ) -> None:
        column = self.names.get(canonical) if canonical else None
        self.findings.append(bad_cell(self.table, line.number, column, message, rule, slide_id))


def bad_cell(
    table: Table, line: int, column: str | None, message: str, rule: str, slide_id: str = ""
) -> Finding:
    """Return the error that a cell is wrong, with its line and column."""
    where = f"line {line}"
    if column in table.columns:
        where += f", column {table.columns.index(column) + 1} ({column})"
    about = f" of slide {slide_id}" if slide_id and slide_id not in message else ""
    ids = (slide_id,) if slide_id else ()
    return Finding("error", rule, f"{where}: {message}{about}", ids, line)


def _ids_from_paths(paths: list[str]) -> dict[str, str]:
    """Return the id of each path: without extension, unless two files would share the id.

    A path that leaves the table's folder is known by its file name.
    """
    inside = {
        path: Path(path).name if path.startswith("/") or ".." in Path(path).parts else path
        for path in set(paths)
    }
    bare = {path: _EXTENSION.sub("", Path(kept).as_posix()) for path, kept in inside.items()}
    shared = Counter(bare.values())
    return {p: bare[p] if shared[bare[p]] == 1 else Path(inside[p]).as_posix() for p in inside}


def _merge(table: Table, rows: list[SlideRow], findings: list[Finding]) -> tuple[SlideRow, ...]:
    """Return one row per slide; rows of one slide that disagree are findings."""
    first: dict[str, SlideRow] = {}
    for row in rows:
        kept = first.setdefault(row.slide_id, row)
        differing = [
            f"{f.name} {getattr(kept, f.name)} and {getattr(row, f.name)}"
            for f in fields(SlideRow)
            if f.name != "line" and getattr(kept, f.name) != getattr(row, f.name)
        ]
        if differing:
            message = f"slide {row.slide_id} is already on line {kept.line} with other values"
            findings.append(
                bad_cell(
                    table,
                    row.line,
                    table.column("slide_id") or table.column("path"),
                    f"{message}: {'; '.join(differing)}",
                    "conflict",
                    row.slide_id,
                )
            )
    return tuple(first.values())


def _leaking_patients(rows: Iterable[SlideRow]) -> list[Finding]:
    """Return patients in two parts of the official split: an error where test is one of them."""
    parts: dict[str, dict[str, SlideRow]] = defaultdict(dict)
    for row in rows:
        if row.split is not None and row.patient_id:
            parts[row.patient_id].setdefault(row.split, row)
    findings = []
    for patient, by_part in parts.items():
        if len(by_part) < 2:
            continue
        where = " and ".join(f"{part} (line {row.line})" for part, row in by_part.items())
        last = max(row.line for row in by_part.values())
        findings.append(
            Finding(
                "error" if "test" in by_part else "warning",
                "leakage" if "test" in by_part else "official-flaw",
                f"patient {patient} is in {where} of the official split",
                (patient,),
                last,
            )
        )
    return findings
