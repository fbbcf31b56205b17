"""Cohorts: slides with patients, labels, sites and official splits, from any table."""

from __future__ import annotations

from wsi.cohorts.check import check_cohort
from wsi.cohorts.patients import patients_of, slides_of_patients
from wsi.cohorts.record import Record
from wsi.cohorts.rows import SlideRow
from wsi.cohorts.table import Cohort, match_ids, read_cohort, read_ids, read_slide_table
from wsi.registry import Registry

COHORTS = Registry(
    "cohort",
    {
        "camelyon17": "wsi.cohorts.camelyon17:build",
        "bracs": "wsi.cohorts.bracs:build",
    },
    group="wsi.cohorts",
)
"""What builds the table of a published data set; other packages add theirs as entry points."""

__all__ = [
    "COHORTS",
    "Cohort",
    "Record",
    "SlideRow",
    "check_cohort",
    "match_ids",
    "patients_of",
    "read_cohort",
    "read_ids",
    "read_slide_table",
    "slides_of_patients",
]
