"""Splits of slides as splits of patients, each of whom is one bag."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wsi.cohorts import Cohort
from wsi.cohorts.cells import read_table
from wsi.errors import LeakageError
from wsi.findings import few
from wsi.splits.folds import Fold, Splits, audited

_OF_FOLDS = ("absent-class", "empty-part", "leaking-validation")  # found anew


def by_patient(splits: Splits, patients: Cohort) -> Splits:
    """Return the splits in which every patient stands where all its slides do.

    So that a run on patients and one on slides divide the patients alike.

    Args:
        patients: of the slides that are divided, see `wsi.cohorts.patients_of`.

    Raises:
        LeakageError: slides of a patient stand in two parts of a fold.
    """
    folds = [_fold(fold, splits) for fold in splits.folds]
    known = [finding for finding in splits.findings if finding.rule not in _OF_FOLDS]
    return audited(folds, patients, splits.settings, known)


def names_patients(path: Path) -> bool:
    """Return whether the rows of a split table are patients, not slides."""
    table = read_table(path)
    slide, patient = table.require("slide_id"), table.column("patient_id")
    if patient is None:
        return False
    return all(line.cells[slide] == line.cells[patient] for line in table.lines)


def _fold(fold: Fold, splits: Splits) -> Fold:
    parts = {
        part: {splits.patients[slide_id] for slide_id in ids} for part, ids in fold.parts().items()
    }
    torn = sorted(set(_shared(parts)))
    if torn:
        raise LeakageError(
            f"fold {fold.name}: slides of {len(torn)} patients are in two parts: {few(torn)} — a "
            "bag of all slides of a patient has one part: split by patient, or use data.bag=slide"
        )
    return Fold(fold.index, fold.name, *(tuple(sorted(parts[p])) for p in ("train", "val", "test")))


def _shared(parts: dict[str, set[str]]) -> Iterator[str]:
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        yield from parts[one] & parts[other]
