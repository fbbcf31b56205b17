"""Folds as values, and the audit that every set of folds must pass."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi.cohorts import Cohort, SlideRow
from wsi.cohorts.suspects import barcode
from wsi.errors import CohortError, LeakageError
from wsi.findings import Finding, errors_among, few, sentence

PARTS = ("train", "val", "test")
_SIDES = (("train", "test"), ("val", "test"), ("train", "val"))
COLUMNS = ("slide_id", "patient_id", "fold", "part")


@dataclass(frozen=True)
class Fold:
    """One division of the slides; the parts hold slide ids in sorted order."""

    index: int
    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return the slide ids of each part by its name."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class Splits:
    """Folds, how they were made, and what is known to be wrong with them.

    Args:
        settings: kind, seed and the rest of what drew them; `leaking` is true where the
            validation part shares patients with training by choice.
        patients: patient id of every slide.
        findings: warnings of the audit.
    """

    folds: tuple[Fold, ...]
    settings: Mapping[str, Any]
    patients: Mapping[str, str]
    findings: tuple[Finding, ...] = ()

    def warnings(self) -> list[Finding]:
        """Return what a reader of results should know: absent classes, known leaks, gaps."""
        return list(self.findings)

    def rows(self) -> Iterator[tuple[str, str, int, str]]:
        """Yield slide_id, patient_id, fold and part, sorted by fold and slide."""
        for fold in self.folds:
            placed = [(s, part) for part, ids in fold.parts().items() for s in ids]
            for slide_id, part in sorted(placed):
                yield slide_id, self.patients[slide_id], fold.index, part

    def csv_text(self) -> str:
        """Return the table of all folds as it is written."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(self.rows())
        return text.getvalue()

    @property
    def hash(self) -> str:
        """Return the hex SHA-256 of the written table."""
        return hashlib.sha256(self.csv_text().encode()).hexdigest()


def classes_of(cohort: Cohort) -> tuple[str, ...]:
    """Return the declared classes, or the labels found where none are declared."""
    found = {row.label for row in cohort.rows if row.label is not None}
    return cohort.classes or tuple(sorted(found))


def audit(folds: Sequence[Fold], cohort: Cohort, settings: Mapping[str, Any]) -> list[Finding]:
    """Return the leaks, empty parts and absent classes of folds.

    A patient in train and val is only a warning for an official split, whose flaws are its own,
    and where the settings say that validation leaks by choice.
    """
    rows = {row.slide_id: row for row in cohort.rows}
    val_may_leak = bool(settings.get("leaking")) or settings.get("kind") == "official"
    findings = []
    for fold in folds:
        findings += _leaks(fold, rows, val_may_leak)
        findings += _barcode_leaks(fold, rows)
        findings += _absences(fold, rows, classes_of(cohort))
    if cohort.record is not None and cohort.record.patients_mixed:
        findings += _mixed(folds, rows)
    return findings


def audited(
    folds: Sequence[Fold],
    cohort: Cohort,
    settings: Mapping[str, Any],
    known: Iterable[Finding] = (),
) -> Splits:
    """Return the folds as Splits when no patient leaks and every class can be learnt.

    Raises:
        LeakageError: a patient stands on two sides.
        CohortError: a part is empty, or a class is absent from a training part.
    """
    findings = [*known, *audit(folds, cohort, settings)]
    errors = errors_among(findings)
    if errors:
        leaking = any(finding.rule == "leakage" for finding in errors)
        raise (LeakageError if leaking else CohortError)(
            sentence(errors, f"splits of cohort {cohort.name}") + " — change the split settings "
            "or correct the table"
        )
    owner = {row.slide_id: row.patient_id for row in cohort.rows}
    patients = {s: owner[s] for fold in folds for ids in fold.parts().values() for s in ids}
    return Splits(tuple(folds), dict(settings), patients, tuple(findings))


def _leaks(fold: Fold, rows: Mapping[str, SlideRow], val_may_leak: bool) -> list[Finding]:
    patients = {
        part: {rows[slide_id].patient_id for slide_id in ids} for part, ids in fold.parts().items()
    }
    findings = []
    for one, other in _SIDES:
        shared = tuple(sorted(patients[one] & patients[other]))
        if not shared:
            continue
        allowed = val_may_leak and other == "val"
        findings.append(
            Finding(
                "warning" if allowed else "error",
                "leaking-validation" if allowed else "leakage",
                f"fold {fold.name}: {len(shared)} patients are in {one} and {other}: "
                f"{few(shared, 20)}",
                shared,
            )
        )
    return findings


def _barcode_leaks(fold: Fold, rows: Mapping[str, SlideRow]) -> Iterator[Finding]:
    """Yield TCGA patients on two sides of a fold that the table's patient ids hide."""
    for one, other in _SIDES:
        codes, told = [], []
        for part in (one, other):
            ids = fold.parts()[part]
            codes.append({code for slide_id in ids if (code := barcode(slide_id))})
            told.append({rows[slide_id].patient_id for slide_id in ids})
        known = {
            barcode(slide_id)
            for slide_id in (*fold.parts()[one], *fold.parts()[other])
            if rows[slide_id].patient_id in told[0] & told[1]
        }
        hidden = tuple(sorted((codes[0] & codes[1]) - known))
        if hidden:
            yield Finding(
                "error",
                "leakage",
                f"fold {fold.name}: {len(hidden)} TCGA patients are in {one} and {other} under "
                f"different patient ids: {few(hidden)} — the first 12 characters of a barcode are "
                "the patient",
                hidden,
            )


def _mixed(folds: Sequence[Fold], rows: Mapping[str, SlideRow]) -> Iterator[Finding]:
    """Yield folds with a site on both sides, where patients are mixed from several people."""
    torn = []
    for fold in folds:
        sites = {part: {rows[s].site for s in ids} for part, ids in fold.parts().items()}
        if (sites["train"] | sites["val"]) & sites["test"]:
            torn.append(fold.name)
    if torn:
        yield Finding(
            "warning",
            "mixed-patients",
            f"{'folds' if len(torn) > 1 else 'fold'} {few(torn, 10)}: a site is in training and "
            "in test, and the patients of this cohort are mixed from several people, whose slides "
            "may be on both sides — split.kind=leave-one-site-out keeps whole sites apart",
            tuple(torn),
        )


def balance(folds: Iterable[Fold], cohort: Cohort) -> Iterator[Finding]:
    """Yield the classes and sites of each part, to be read rather than judged."""
    rows = {row.slide_id: row for row in cohort.rows}
    order = {name: k for k, name in enumerate(cohort.classes)}
    for fold in folds:
        for what, of in (("class", _label_of), ("site", _site_of)):
            found = {of(rows[s]) for ids in fold.parts().values() for s in ids} - {""}
            names = sorted(found)
            if what == "class":
                names.sort(key=lambda name: order.get(name, len(order)))
            if not names:
                continue
            told = []
            for part, ids in fold.parts().items():
                counts = Counter(of(rows[slide_id]) for slide_id in ids)
                told.append(f"{part} {'/'.join(str(counts[name]) for name in names)}")
            listed = few(names, 12)
            message = f"fold {fold.name}, slides by {what} ({listed}): {', '.join(told)}"
            yield Finding("info", f"{what}-balance", message)


def _label_of(row: SlideRow) -> str:
    return row.label or ""


def _site_of(row: SlideRow) -> str:
    return row.site or ""


def _absences(
    fold: Fold, rows: Mapping[str, SlideRow], classes: Sequence[str]
) -> Iterator[Finding]:
    """Yield empty parts and absent classes: errors in train, since they cannot be learnt."""
    for part, ids in fold.parts().items():
        if not ids:
            severity = "warning" if part == "val" else "error"
            yield Finding(severity, "empty-part", f"fold {fold.name}: no slide in {part}")
            continue
        slides: dict[str | None, int] = defaultdict(int)
        for slide_id in ids:
            slides[rows[slide_id].label] += 1
        absent = tuple(name for name in classes if not slides[name])
        if absent:
            severity = "error" if part == "train" else "warning"
            message = f"fold {fold.name}: no slide of {', '.join(absent)} in {part}"
            yield Finding(severity, "absent-class", message, absent)
