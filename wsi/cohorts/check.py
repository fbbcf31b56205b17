"""What is wrong, suspect or worth knowing about a cohort table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wsi.cohorts.cells import read_table
from wsi.cohorts.rows import SlideRow, parse_rows
from wsi.cohorts.suspects import suspects
from wsi.cohorts.table import label_column
from wsi.findings import Finding, few

SMALL = 5
"""A class with fewer slides in a site gives that site no meaningful F1."""


def check_cohort(
    path: Path | str, label: str = "label", classes: Sequence[str] | None = None
) -> list[Finding]:
    """Return everything found in a cohort table: its errors first, then what is only suspect.

    Raises:
        ConfigError: no such file or column.
    """
    table = read_table(Path(path))
    column = label_column(table, label, required=classes is not None)
    rows, findings = parse_rows(table, column, classes, require_label=classes is not None)
    findings += suspects(rows)
    findings += _gaps(rows)
    findings += _small_classes(rows, classes)
    rank = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: rank[finding.severity])


def _gaps(rows: Sequence[SlideRow]) -> list[Finding]:
    """Return optional columns that are filled for some slides only."""
    findings = []
    for field in ("label", "site", "split"):
        without = [row.slide_id for row in rows if getattr(row, field) is None]
        if without and len(without) < len(rows):
            message = f"{len(without)} of {len(rows)} slides have no {field}: {few(without)}"
            findings.append(Finding("info", f"no-{field}", message, tuple(without)))
    return findings


def _small_classes(rows: Sequence[SlideRow], classes: Sequence[str] | None) -> list[Finding]:
    """Return the classes with few slides, over all and in each site."""
    names = list(classes or sorted({row.label for row in rows if row.label is not None}))
    findings = []
    for site in [None, *sorted({row.site for row in rows if row.site is not None})]:
        counts = Counter(row.label for row in rows if site is None or row.site == site)
        small = [f"{name} {counts[name]}" for name in names if counts[name] < SMALL]
        if small:
            where = "the cohort" if site is None else f"site {site}"
            message = f"{where} has fewer than {SMALL} slides of: {', '.join(small)}"
            findings.append(Finding("info", "small-class", message))
    return findings
