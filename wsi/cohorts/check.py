"""What is wrong, suspect or worth knowing about a cohort table."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from wsi.cohorts.cells import read_table
from wsi.cohorts.rows import SlideRow, parse_rows
from wsi.cohorts.table import label_column
from wsi.findings import Finding, few

SMALL = 5
"""A class with fewer slides in a site gives that site no meaningful F1."""

_BARCODE = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


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
    findings += _fake_patients(rows)
    findings += _barcodes(rows)
    findings += _gaps(rows)
    findings += _small_classes(rows, classes)
    rank = {"error": 0, "warning": 1, "info": 2}
    return sorted(findings, key=lambda finding: rank[finding.severity])


def _fake_patients(rows: Sequence[SlideRow]) -> list[Finding]:
    patients = {row.patient_id for row in rows if row.patient_id}
    if len(rows) < 2 or len(patients) < len(rows):
        return []
    return [
        Finding(
            "warning",
            "patients-equal-slides",
            f"as many patients as slides ({len(rows)}): if one patient has several slides here, "
            "the patient ids are made up and splits by patient leak — check their source",
        )
    ]


def _barcodes(rows: Iterable[SlideRow]) -> list[Finding]:
    """Return TCGA patients (the first 12 characters of a barcode) known under several ids."""
    patients: dict[str, set[str]] = defaultdict(set)
    slides: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found = _BARCODE.search(row.slide_id)
        if found and row.patient_id:
            patients[found.group().upper()].add(row.patient_id)
            slides[found.group().upper()].append(row.slide_id)
    return [
        Finding(
            "warning",
            "tcga-barcode",
            f"TCGA patient {barcode} appears as {len(ids)} patients ({few(sorted(ids))}) — "
            "use the barcode's first 12 characters as patient_id",
            tuple(slides[barcode]),
        )
        for barcode, ids in patients.items()
        if len(ids) > 1
    ]


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
