"""Labels, patients and sites of a cohort table joined to predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wsi.cohorts import Cohort, SlideRow, match_ids
from wsi.errors import PredictionsError
from wsi.evaluation.predictions import Predictions, other_classes
from wsi.findings import few
from wsi.registry import suggest


def join_labels(
    predictions: Predictions, cohort: Cohort, *, keep_labels: bool = False
) -> Predictions:
    """Return the predictions with the labels of a cohort table, its sites and name if missing.

    A slide whose patient is unknown, so that its own id stands there, gets that of the table. One
    that differs from the table's by its file extension gets the table's id, and a note says so.

    Args:
        keep_labels: leave the labels as they are, and take patients and sites alone.

    Raises:
        PredictionsError: a predicted slide is not in the cohort, has no label or another patient,
            or the classes differ.
    """
    if cohort.classes and tuple(cohort.classes) != predictions.classes:
        raise PredictionsError(
            f"predictions have the classes {', '.join(predictions.classes)}, cohort {cohort.name} "
            f"has {other_classes(predictions.classes, cohort.classes)} — read the cohort with "
            "the classes of the run"
        )
    table = predictions.table.copy()
    by_id = {row.slide_id: row for row in cohort.rows}
    matched = match_ids(cohort, set(table["slide_id"]))
    meant = {found: by_id[mine] for mine, found in matched.items()}
    unknown = sorted(s for s in set(table["slide_id"]) if s not in meant)
    near = suggest(unknown[0], by_id) if unknown else ""
    _refuse("are not in cohort", cohort, unknown, near)
    if not keep_labels:
        none = [s for s in table["slide_id"] if not meant[s].label]
        _refuse("have no label in cohort", cohort, none)
    rows = [meant[slide_id] for slide_id in table["slide_id"]]
    # A slide predicted without a table stands for its own patient.
    known = table["patient_id"] != table["slide_id"]
    others = [r.slide_id for r, p in zip(rows, table["patient_id"].where(known)) if _differs(r, p)]
    _refuse("have another patient in cohort", cohort, others)
    renamed, notes = _renamed(matched)
    table["slide_id"] = [renamed.get(slide_id, slide_id) for slide_id in table["slide_id"]]
    notes = (*predictions.notes, *notes)
    table["patient_id"] = [row.patient_id for row in rows]
    table["site"] = [kept or row.site or "" for kept, row in zip(table["site"], rows)]
    table["cohort"] = [kept or cohort.name for kept in table["cohort"]]
    if keep_labels:
        return replace(predictions, table=table, notes=notes)
    table["y_true"] = [row.label or "" for row in rows]
    return replace(predictions, table=table, labels_from=cohort.labels_from, notes=notes)


def _renamed(matched: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the table's ids by predicted ones that differ by an extension, and a note of them.

    Other tools' tables then pair with a run's, slide by slide.
    """
    renamed = {
        theirs: mine
        for mine, theirs in matched.items()
        if theirs.rsplit("/", 1)[-1] != mine.rsplit("/", 1)[-1]
    }
    if not renamed:
        return {}, []
    listed = few((f"{theirs} is {mine}" for theirs, mine in renamed.items()), 2)
    return renamed, [f"{len(renamed)} slide ids match but for a file extension: {listed}"]


def changed_labels(before: Predictions, after: Predictions) -> list[tuple[str, str, str]]:
    """Return slide_id, old and new label of every slide whose known label differs.

    Args:
        after: the same rows; ids may differ by an extension.
    """
    old, new = before.table["y_true"], after.table["y_true"]
    rows = set(zip(after.table["slide_id"], old, new, strict=True))
    return sorted(row for row in rows if row[1] and row[1] != row[2])


def known_labels(predictions: Predictions) -> int:
    """Return how many slides have a label."""
    table = predictions.table
    return len(set(table["slide_id"][table["y_true"] != ""]))


def renamed_classes(before: Predictions, after: Predictions) -> dict[str, str]:
    """Return old and new names of classes where all changes are such names exchanged, else none.

    All slides of a class that had a label must have one and the same other, which no other class
    has become.
    """
    pairs = {
        (old, new) for old, new in zip(before.table["y_true"], after.table["y_true"]) if old != ""
    }
    one_to_one = len(dict(pairs)) == len({new for _, new in pairs}) == len(pairs)
    changed = any(old != new for old, new in pairs)
    return dict(pairs) if one_to_one and changed else {}


def _refuse(what: str, cohort: Cohort, slides: Sequence[str], near: str = "") -> None:
    if slides:
        listed = sorted(set(slides))
        raise PredictionsError(
            f"{len(listed)} predicted slides {what} {cohort.name}: {few(listed)}{near} — "
            "use the cohort table of the run"
        )


def _differs(row: SlideRow, patient_id: object) -> bool:
    return isinstance(patient_id, str) and patient_id != row.patient_id
