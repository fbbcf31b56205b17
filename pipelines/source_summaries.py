"""What a report says of each source: a run of what it trained, a table of its rows alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.console import Console
from pipelines.rundir import RunDir
from pipelines.summary import summarise
from wsi.evaluation import Predictions, evaluate
from wsi.files import sha256_file
from wsi.report import RunSummary
from wsi.specs import EvaluateSpec

_KNOWN_FROM_TABLE = (
    "only predictions are known of it, not how the model was made, nor whether it has seen these "
    "slides or others of the same patients in training"
)


def is_run(source: Path) -> bool:
    """Return whether a source is the folder of a training, not of predictions alone."""
    return source.is_dir() and RunDir(source).config.is_file()


def summary_of(
    source: Path,
    name: str,
    predictions: Predictions,
    spec: EvaluateSpec,
    console: Console,
    cohort: Path | None = None,
) -> RunSummary:
    """Return what a report shows of a source.

    Args:
        predictions: as they are judged.
        cohort: the table that was joined to them; a run is scored anew where that changed it.
    """
    if not is_run(source):
        return _of_table(source, name, predictions, spec)
    found = summarise(RunDir(source), console, name)
    if cohort is None or _known(found.predictions) == _known(predictions):
        return found
    told = f"{name}: scored with the labels of {cohort.name}; it was trained with its own"
    return replace(
        found,
        metrics=evaluate(predictions, spec),
        predictions=predictions,
        warnings=[*found.warnings, told],
    )


def _known(predictions: Predictions) -> set[tuple[str, ...]]:
    """Return what is known of each slide."""
    columns = ["slide_id", "patient_id", "site", "y_true"]
    return set(predictions.table[columns].itertuples(index=False, name=None))


def _of_table(source: Path, name: str, predictions: Predictions, spec: EvaluateSpec) -> RunSummary:
    """Return what predictions alone tell."""
    path = RunDir(source).predictions if source.is_dir() else source
    known = f", sha256 {sha256_file(path)[:12]}" if path.is_file() else ""
    facts = {
        "predictions": f"{source.name}{known}",
        "labels": predictions.labels_from or "of the table",
        "decision": predictions.decision,
    }
    return RunSummary(
        name=name,
        metrics=evaluate(predictions, spec),
        predictions=predictions,
        facts=facts,
        warnings=[f"{name}: {_KNOWN_FROM_TABLE}"],
        ids=_ids(predictions),
    )


def _ids(predictions: Predictions) -> frozenset[str]:
    table = predictions.table
    return frozenset([*table["slide_id"], *table["patient_id"], *predictions.not_evaluable])
