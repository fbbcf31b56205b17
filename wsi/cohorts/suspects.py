"""Patients who are suspected to be somebody else: made-up, truncated, or one under two names.

A split by patient is worth what its patient ids are worth.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from wsi.cohorts.rows import SlideRow
from wsi.findings import Finding, few

_BARCODE = re.compile(r"(?<![A-Z0-9])TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def barcode(text: str) -> str | None:
    """Return the TCGA patient in a slide's name, its barcode's first 12 characters, or None."""
    found = _BARCODE.search(text)
    return found.group().upper() if found else None


def suspects(rows: Sequence[SlideRow]) -> list[Finding]:
    """Return suspicions about the patient ids of slides."""
    return [*_as_many_as_slides(rows), *_shared_barcodes(rows), *_cut_short(rows)]


def _as_many_as_slides(rows: Sequence[SlideRow]) -> Iterator[Finding]:
    patients = {row.patient_id for row in rows if row.patient_id}
    if all(barcode(row.slide_id) == row.slide_id for row in rows):
        return  # the table lists patients, not slides
    if len(rows) > 1 and len(patients) == len(rows):
        yield Finding(
            "warning",
            "patients-equal-slides",
            f"as many patients as slides ({len(rows)}): if one patient has several slides here, "
            "the patient ids are made up and splits by patient leak — check their source",
        )


def _shared_barcodes(rows: Sequence[SlideRow]) -> Iterator[Finding]:
    """Yield TCGA patients known under several ids."""
    patients: dict[str, set[str]] = defaultdict(set)
    slides: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        code = barcode(row.slide_id)
        if code and row.patient_id:
            patients[code].add(row.patient_id)
            slides[code].append(row.slide_id)
    several = {code: sorted(ids) for code, ids in patients.items() if len(ids) > 1}
    if several:
        listed = few(f"{code} as {' and '.join(ids[:2])}" for code, ids in several.items())
        yield Finding(
            "warning",
            "tcga-barcode",
            f"{len(several)} TCGA patients appear under several ids: {listed} — "
            "use the barcode's first 12 characters as patient_id",
            tuple(slide for code in several for slide in slides[code]),
        )


def _cut_short(rows: Sequence[SlideRow]) -> Iterator[Finding]:
    """Yield patient ids that look like the beginning of a longer one."""
    cut = {
        row.slide_id: row.patient_id
        for row in rows
        # patient_04 of slide patient_047_node_1: a number broken off in the middle.
        if row.patient_id
        and row.patient_id[-1].isdigit()
        and re.match(re.escape(row.patient_id) + r"\d+[^0-9A-Za-z]", row.slide_id)
    }
    if cut:
        listed = few(f"{patient} of slide {slide}" for slide, patient in cut.items())
        yield Finding(
            "warning",
            "truncated-patient",
            f"{len(cut)} slides have a patient id that breaks off their own number: {listed} — "
            "several patients may have become one, or one several",
            tuple(cut),
        )
    ids = sorted({row.patient_id for row in rows if row.patient_id})
    under = [(a, b) for a, b in itertools.pairwise(ids) if b.startswith(a) and b[len(a)].isalnum()]
    lengths = Counter(map(len, ids))
    usual = max(lengths.values(), default=0)
    # Numbers without leading zeros, 1 beside 10, are simply of several lengths.
    strange = [
        (a, b) for a, b in under if lengths[len(a)] * 10 <= usual and re.search(r"(?<!\d)0\d+$", a)
    ]
    if strange:
        listed = few(f"{a} beside {b}" for a, b in strange)
        yield Finding(
            "warning",
            "patient-prefix",
            f"{len(strange)} patient ids are the beginning of another's, and unlike the rest: "
            f"{listed} — check that they were not cut",
            tuple(a for a, _ in strange),
        )
