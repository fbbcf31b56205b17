"""A cohort of slides as one of patients, for bags of all slides of a patient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from wsi.cohorts.rows import SlideRow
from wsi.cohorts.table import Cohort
from wsi.errors import CohortError
from wsi.findings import few


def slides_of_patients(cohort: Cohort) -> dict[str, tuple[str, ...]]:
    """Return the ids of the slides of every patient, both sorted."""
    slides: dict[str, list[str]] = defaultdict(list)
    for row in cohort.rows:
        slides[row.patient_id].append(row.slide_id)
    return {patient: tuple(sorted(slides[patient])) for patient in sorted(slides)}


def patients_of(cohort: Cohort) -> Cohort:
    """Return the cohort with one row per patient, whose slide id is the patient's.

    A patient of several sites counts under the one of most slides.

    Raises:
        CohortError: slides of a patient differ in label or in official part; patients are named.
    """
    rows: dict[str, list[SlideRow]] = defaultdict(list)
    for row in cohort.rows:
        rows[row.patient_id].append(row)
    _refuse_differing(cohort, rows)
    return replace(cohort, rows=tuple(_patient(rows[patient]) for patient in sorted(rows)))


def several_sites(cohort: Cohort) -> list[str]:
    """Return the patients with slides of several sites."""
    sites: dict[str, set[str | None]] = defaultdict(set)
    for row in cohort.rows:
        sites[row.patient_id].add(row.site)
    return sorted(patient for patient, found in sites.items() if len(found) > 1)


def _refuse_differing(cohort: Cohort, rows: dict[str, list[SlideRow]]) -> None:
    for field, name in (("label", "labels"), ("split", "official parts")):
        told = []
        for patient, members in sorted(rows.items()):
            values = sorted({str(getattr(row, field) or "none") for row in members})
            if len(values) > 1:
                told.append(f"{patient} ({', '.join(values)})")
        if told:
            raise CohortError(
                f"cohort {cohort.name}: slides of {len(told)} patients have different {name}: "
                f"{few(told)} — one bag per patient needs one of each patient: name a column "
                "that is the same for all slides of a patient (data.label), or use data.bag=slide"
            )


def _patient(rows: Sequence[SlideRow]) -> SlideRow:
    first = min(rows, key=lambda row: row.slide_id)
    sites = Counter(sorted(row.site for row in rows if row.site is not None))
    site = sites.most_common(1)[0][0] if sites else None
    return replace(first, slide_id=first.patient_id, site=site, path=None, mpp=None, tissue={})
