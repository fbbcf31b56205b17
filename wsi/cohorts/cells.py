"""A table of any common kind as text: CSV with its delimiter sniffed, or Excel.

Nothing is converted: `0012`, `1e5`, `NA` and `None` stay what they are, and an empty cell is a
missing value. Cells and column names lose surrounding blanks only.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi.errors import CohortError, ConfigError
from wsi.registry import suggest

DELIMITERS = ",;\t"

ALIASES = {
    "slide_id": ("slide", "slideid", "image_id"),
    "patient_id": ("patient", "patientid", "case_id", "case"),
    "path": ("slide_path", "filename", "file_name", "wsi_filename"),
    "site": ("center", "centre", "hospital"),
    "split": (),
    "mpp": (),
}
"""Canonical column names, and the names other tools give the same thing."""


@dataclass(frozen=True)
class Line:
    """The cells of one line by column name as written; `number` counts from 1 with the header."""

    number: int
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """The text of a table; `malformed` are lines with more cells than the header has names."""

    path: Path
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    malformed: tuple[int, ...] = ()

    def column(self, canonical: str) -> str | None:
        """Return the name in this table of a canonical column, or None when it has none.

        Raises:
            ConfigError: two columns could be meant.
        """
        exact = [c for c in self.columns if _plain(c) == canonical]
        found = exact or [c for c in self.columns if _plain(c) in ALIASES.get(canonical, ())]
        if len(found) > 1:
            raise ConfigError(
                f"{self.path.name}: columns {', '.join(found)} could all be {canonical} — "
                f"name one of them {canonical}"
            )
        return found[0] if found else None

    def require(self, canonical: str) -> str:
        """Return the name in this table of a canonical column.

        Raises:
            ConfigError: the table has no such column; the nearest name is suggested.
        """
        found = self.column(canonical)
        if found is None:
            also = ", ".join(ALIASES.get(canonical, ()))
            raise ConfigError(
                f"{self.path.name} has no column {canonical}{suggest(canonical, self.columns)} — "
                f"it has: {', '.join(self.columns)}"
                + (f"; also understood: {also}" if also else "")
            )
        return found


def read_table(path: Path, sheet: str | None = None) -> Table:
    """Return the text of a CSV (comma, semicolon or tab; UTF-8) or Excel table.

    Args:
        sheet: which sheet of a workbook, where there is one of that name; the first otherwise.

    Raises:
        ConfigError: no such file, or an Excel file without openpyxl.
        CohortError: the file is not UTF-8 text, is empty, or repeats a column name.
    """
    if not path.is_file():
        near = suggest(path.name, _siblings(path))
        raise ConfigError(f"no table {path}{near} — give the path of a CSV or Excel file")
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        numbered = _excel_lines(path, sheet)
    else:
        numbered = _text_lines(path)
    return _table(path, numbered)


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _table(path: Path, numbered: Iterable[tuple[int, list[str]]]) -> Table:
    filled = ((number, cells) for number, cells in numbered if any(cells))
    _, header = next(filled, (0, []))
    if not header:
        raise CohortError(f"{path.name} is empty — give a table with a header line")
    while header and not header[-1]:
        header = header[:-1]
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise CohortError(
            f"{path.name} has the column {', '.join(repeated)} twice — rename or remove one"
        )
    lines, malformed = [], []
    for number, cells in filled:
        if any(cells[len(header) :]):
            malformed.append(number)
        padded = cells + [""] * (len(header) - len(cells))
        lines.append(Line(number, {name: cell for name, cell in zip(header, padded) if name}))
    return Table(path, tuple(name for name in header if name), tuple(lines), tuple(malformed))


def _text_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CohortError(
            f"{path.name} is not UTF-8 text (byte {error.start}) — save it as CSV UTF-8"
        ) from error
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    before = 0
    try:
        for cells in reader:
            # A quoted cell may hold line breaks: a row is named by the line it begins on.
            yield before + 1, [cell.strip() for cell in cells]
            before = reader.line_num
    except csv.Error as error:
        raise CohortError(f"{path.name}, line {before + 1}: {error} — check the quotes") from error


def _delimiter(text: str) -> str:
    """Return the delimiter that cuts the header into most names; a comma when there is no other."""
    header = next((line for line in text.splitlines() if line.strip()), "")

    def fields(delimiter: str) -> int:
        return len(next(csv.reader([header], delimiter=delimiter), []))

    return max(DELIMITERS, key=fields)


def _excel_lines(path: Path, sheet: str | None) -> Iterator[tuple[int, list[str]]]:
    try:
        import openpyxl
    except ImportError as error:
        raise ConfigError(
            f"{path.name} is an Excel file and openpyxl is not installed — "
            "pip install openpyxl, or save it as CSV"
        ) from error
    from zipfile import BadZipFile

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (BadZipFile, KeyError, ValueError) as error:
        raise CohortError(f"{path.name} is not a readable Excel file — save it anew") from error
    try:
        chosen = book[sheet] if sheet in book.sheetnames else book.worksheets[0]
        for number, row in enumerate(chosen.iter_rows(), start=1):
            yield number, [_cell_text(cell.value, str(cell.number_format)) for cell in row]
    finally:
        book.close()


def _cell_text(value: Any, number_format: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and number_format and set(number_format) == {"0"}:
        # The number format 0000 shows 12 as 0012, and that is the id people see.
        return f"{value:0{len(number_format)}d}"
    return str(value).strip()


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
