"""Splits: which slides train, validate and test, drawn by patient and written with a hash."""

from __future__ import annotations

from wsi.splits.draw import make_splits, revalidated, validation_part
from wsi.splits.folds import Fold, Splits
from wsi.splits.patients import by_patient, names_patients
from wsi.splits.table import audit_splits, read_splits, write_splits

__all__ = [
    "Fold",
    "Splits",
    "audit_splits",
    "by_patient",
    "make_splits",
    "names_patients",
    "read_splits",
    "revalidated",
    "validation_part",
    "write_splits",
]
