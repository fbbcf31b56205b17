"""Cohorts: slides with patients, labels, sites and official splits, from any table."""

from __future__ import annotations

from wsi.cohorts.check import check_cohort
from wsi.cohorts.rows import SlideRow
from wsi.cohorts.table import Cohort, match_ids, read_cohort, read_ids, read_slide_table

__all__ = [
    "Cohort",
    "SlideRow",
    "check_cohort",
    "match_ids",
    "read_cohort",
    "read_ids",
    "read_slide_table",
]
