"""Tissue settings in a slide table: of one slide, or of all slides of a site.

A column `tissue.<setting>`, or `tissue.method.<parameter>` as on the command line, sets that for
the slides whose cell is filled; `tissue.<parameter>` is a short form of the latter. A row whose
slide_id is `*` holds the settings of its site. A slide's own cell is stronger than its site's, and
either is stronger than the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wsi.cohorts.cells import Line, Table
from wsi.cohorts.rows import SlideRow, bad_cell, is_site_line
from wsi.findings import Finding
from wsi.registry import suggest
from wsi.specs import TissueSpec

_PREFIX = "tissue."
_NOT_OF_A_SITE = ("path", "mpp", "split")


def setting_columns(table: Table) -> tuple[dict[str, str], list[Finding]]:
    """Return the setting that each column of settings holds, and columns that hold none.

    Any column with a dot is meant as a setting: one that is misspelt must not be passed over.
    """
    if not any("." in column for column in table.columns):
        return {}, []
    known = _known_columns()
    columns: dict[str, str] = {}
    findings = []
    for column in table.columns:
        name = column.strip()
        if known.get(name) in columns.values():
            message = f"another column sets '{name}' too, keep one"
            findings.append(bad_cell(table, 1, column, message, "repeated-setting"))
        elif name in known:
            columns[column] = known[name]
        elif "." in name:
            message = f"unknown setting '{name}'{suggest(name, known)}, use {_in_full(known)}"
            findings.append(bad_cell(table, 1, column, message, "unknown-setting"))
    return columns, findings


def _known_columns() -> dict[str, str]:
    """Return the setting that a column of each name holds, the full name of each first."""
    from wsi.tissue import setting_names  # what opens slides is heavy, and few tables need it

    names = setting_names()
    full = {
        _PREFIX + (name if name in TissueSpec.model_fields else f"method.{name}"): name
        for name in names
    }
    return full | {_PREFIX + name: name for name in names}


def _in_full(known: Mapping[str, str]) -> str:
    full: dict[str, str] = {}
    for column, name in known.items():
        full.setdefault(name, column)
    return ", ".join(full.values())


def with_site_settings(
    table: Table, columns: dict[str, str], rows: Sequence[SlideRow]
) -> tuple[list[SlideRow], list[Finding]]:
    """Return the rows with the settings of their site filled in, and every bad setting."""
    findings = _bad_values(table, columns)
    by_site: dict[str, dict[str, str]] = {}
    sites = {row.site for row in rows if row.site}
    site_column = table.column("site")
    for line in filter(lambda line: is_site_line(table, line), table.lines):
        site = line.cells[site_column] if site_column else ""
        given = {setting: line.cells[c] for c, setting in columns.items() if line.cells[c]}
        problem = _site_problem(table, line, site, sites)
        if problem is None and by_site.setdefault(site, given) != given:
            problem = f"site '{site}' has another row '*' with other settings"
        if problem is not None:
            findings.append(bad_cell(table, line.number, site_column, problem, "site-settings"))
    filled = [replace(r, tissue=by_site.get(r.site or "", {}) | dict(r.tissue)) for r in rows]
    return filled, findings


def _site_problem(table: Table, line: Line, site: str, sites: set[str]) -> str | None:
    if not site:
        return "a row '*' is for all slides of a site, name the site"
    if site not in sites:
        return f"no slide is of site '{site}'{suggest(site, sites)}"
    filled = [name for name in _NOT_OF_A_SITE if (c := table.column(name)) and line.cells[c]]
    if filled:
        return f"a row '*' sets tissue settings only, not {', '.join(filled)}"
    return None


def _bad_values(table: Table, columns: dict[str, str]) -> list[Finding]:
    if not columns:
        return []
    from wsi.tissue import check_setting

    slide_column = table.column("slide_id")
    findings = []
    for line in table.lines:
        for column, setting in columns.items():
            text = line.cells[column]
            problem = check_setting(setting, text) if text else None
            if problem is not None:
                slide_id = line.cells[slide_column] if slide_column else ""
                findings.append(bad_cell(table, line.number, column, problem, "setting", slide_id))
    return findings
