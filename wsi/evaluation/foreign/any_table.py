"""Predictions in any table, by a map from our columns to its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from wsi.cohorts.cells import Table, read_table
from wsi.errors import ConfigError
from wsi.evaluation.foreign.rows import KEYS, Given, Layout, Sheet, column_given, in_order

_ALSO: Mapping[str, tuple[str, ...]] = {
    "y_true": ("label", "target", "ground_truth"),
    "y_pred": ("pred", "prediction"),
}
_SUFFIX = re.compile(r"\.(svs|tiff?|ndpi|mrxs|scn|dcm|h5|pt)$", re.IGNORECASE)


def layout(path: Path, given: Given) -> Layout:
    """Return the table of a file: one row per slide, or per patient where it names no slides."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder — --from csv reads one file")
    table = read_table(path)
    columns = {ours: theirs for ours in KEYS if (theirs := _column(table, given, ours))}
    if "slide_id" not in columns and (named := table.column("path")):
        columns["slide_id"] = named
        table = _without_suffixes(table, named)
    if "slide_id" not in columns and "patient_id" not in columns:
        raise ConfigError(
            f"{path.name} has neither slide_id nor patient_id (it has {', '.join(table.columns)}) "
            "— name the column: --columns slide_id=<column>"
        )
    probabilities, notes = _probabilities(table, given, set(columns.values()))
    unit = "slide" if "slide_id" in columns else "patient"
    return Layout("the table", unit, (Sheet(table, columns, probabilities),), notes)


def _column(table: Table, given: Given, ours: str) -> str | None:
    named = column_given(table, given, ours) or table.column(ours)
    if named is not None:
        return named
    lower = {column.lower(): column for column in table.columns}
    return next((lower[word] for word in _ALSO.get(ours, ()) if word in lower), None)


def _without_suffixes(table: Table, column: str) -> Table:

    lines = tuple(
        replace(line, cells={**line.cells, column: _SUFFIX.sub("", line.cells[column])})
        for line in table.lines
    )
    return replace(table, lines=lines)


def _probabilities(
    table: Table, given: Given, taken: set[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the column of each class in order, empty for one that the other of two tells."""
    named = [ours for ours in given.columns if ours.startswith("p_")]
    found = {ours.removeprefix("p_"): column_given(table, given, ours) or "" for ours in named}
    if not found:
        mine = [c for c in table.columns if c.startswith("p_") and c not in taken]
        found = {c.removeprefix("p_"): c for c in mine}
    if not found:
        raise ConfigError(
            f"{table.path.name} has no columns p_<class> (it has {', '.join(table.columns)}) — "
            "name the column of each class: --columns p_<class>=<column>"
        )
    missing = [name for name in given.classes if name not in found]
    if len(found) == 1 and len(given.classes) == 2 and len(missing) == 1:
        (known,) = found
        note = f"the probability of {missing[0]} is 1 less that of {known}"
        return {name: found.get(name, "") for name in given.classes}, (note,)
    if len(found) == 1:
        raise ConfigError(
            f"{table.path.name} has a probability of {next(iter(found))} alone — name both classes "
            "in order with --classes; the other's is then 1 less it"
        )
    return {name: found[name] for name in in_order(list(found), given, table.path.name)}, ()
