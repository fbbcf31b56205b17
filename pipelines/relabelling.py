"""Predictions with the labels, patients and sites of another table, and what that changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipelines.console import Console
from pipelines.external import told_by
from pipelines.rundir import RunDir
from pipelines.sources import Foreign, is_ours
from wsi.cohorts import patients_of, read_cohort
from wsi.cohorts.cells import read_table
from wsi.cohorts.table import label_column
from wsi.errors import ConfigError
from wsi.evaluation import Predictions, join_labels
from wsi.evaluation.labels import changed_labels, known_labels, renamed_classes
from wsi.files import sha256_file
from wsi.findings import few
from wsi.specs import Config


def check_label(label: str | None, cohort: Path | None) -> None:
    """Refuse a label column without the table that it is of."""
    if label is not None and cohort is None:
        raise ConfigError("--label names a column of a table — give the table with --cohort")


def relabelled(
    predictions: Predictions,
    cohort: Path,
    label: str | None,
    source: Path,
    foreign: Foreign,
    console: Console,
) -> Predictions:
    """Return predictions with the labels of a table, or its patients and sites where it has none.

    A table without the usual label column is taken for patients alone where labels are there. Which
    labels these are stands in `labels_from`, and how many are others than before in `notes`.

    Raises:
        ConfigError: the table has no such column; the nearest name is suggested.
    """
    wanted = label or label_of(source)
    keep = label is None and not is_ours(source) and bool((predictions.y >= 0).all())
    column = label_column(read_table(cohort), wanted, not keep, "name its column with --label:")
    if keep and column is None:
        console.say(f"{cohort} has no column '{wanted}': patients and sites are taken from it")
    joined = labels_of(cohort, label, source, keep=keep and column is None)(predictions)
    for note in joined.notes[len(predictions.notes) :]:
        console.say(f"note: {note}")
    if keep and column is None:
        return joined
    table = f"{cohort.name}, column {column}, sha256 {sha256_file(cohort)[:12]}"
    joined = replace(joined, labels_from=joined.labels_from or table)
    if note := _of_changes(predictions, joined, cohort, source, foreign):
        console.warn(note)
        joined = replace(joined, notes=(*joined.notes, note))
    return joined


def labels_of(
    cohort: Path, label: str | None, source: Path, *, keep: bool = False
) -> Callable[[Predictions], Predictions]:
    """Return what gives predictions the labels of a table, or only patients and sites."""
    column = label or label_of(source)

    def joined(predictions: Predictions) -> Predictions:
        classes = None if keep else predictions.classes
        table = read_cohort(cohort, column, classes, require_label=not keep)
        if predictions.unit == "patient":
            table = patients_of(table)
        return join_labels(predictions, table, keep_labels=keep)

    return joined


def label_of(source: Path) -> str:
    """Return the label column of the run that made predictions, `label` where none is known."""
    told = told_by(source)
    return told.label if told else settings_of(source).data.label


def settings_of(source: Path) -> Config:
    """Return the settings of a run; the defaults where there are none."""
    import pipelines.config

    config = RunDir(source).config
    return pipelines.config.read_config(config) if config.is_file() else Config()


def _of_changes(
    before: Predictions, after: Predictions, cohort: Path, source: Path, foreign: Foreign
) -> str:
    """Return how many labels are others than before, and what that may mean; else nothing."""
    changed = changed_labels(before, after)
    if not changed:
        return ""
    of_run = is_ours(source) and told_by(source) is None
    whose = "of the run" if of_run else "that the predictions came with"
    note = (
        f"{len(changed)} of {known_labels(before)} labels in {cohort.name} differ from those "
        f"{whose}: " + few(f"{slide} {old} -> {new}" for slide, old, new in changed)
    )
    if of_run and len(set(before.table["fold"])) > 1:
        note += f"; these {before.unit}s also trained other folds, under the old labels"
    if not is_ours(source) and foreign.tool == "clam":
        note += _of_order(before, after, len(changed))
    return note


def _of_order(before: Predictions, after: Predictions, changed: int) -> str:
    """Return that classes by number may be in another order, where changes look like that."""
    renamed = renamed_classes(before, after)
    if not renamed and 2 * changed < known_labels(before):
        return ""
    order = [renamed.get(name, "") for name in before.classes]
    agree = sorted(order) == sorted(before.classes)
    right = f": the labels agree with --classes {','.join(order)}" if agree else ""
    return f"; --classes may name the numbers of the classes in another order{right}"
