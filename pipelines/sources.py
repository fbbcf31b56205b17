"""Predictions to be judged: run folders, our tables, and tables of other tools."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipelines.console import Console
from pipelines.external import external_predictions, told_by
from pipelines.labelled import labelled_predictions
from pipelines.rundir import RunDir
from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation import Predictions, read_predictions
from wsi.evaluation.foreign import Given, Tool, read_foreign_predictions, tool_of
from wsi.evaluation.twice_normalised import doubted, doubts, inverted


@dataclass(frozen=True)
class Foreign:
    """What the command line says of tables that wsi did not write; its own ones need nothing.

    Attributes:
        tool: which tool wrote them; None for tables with our columns.
        columns: their columns by ours.
        classes: the classes in order.
        invert_softmax: their probabilities went through a softmax twice.
    """

    tool: Tool | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    invert_softmax: bool = False


def load_all(sources: Sequence[Path], foreign: Foreign, console: Console) -> list[Predictions]:
    """Return the predictions of each source; what is weak about those of others is said.

    Raises:
        ConfigError: no such file, or options that act on none of them.
        PredictionsError: a table cannot be scored.
    """
    _check(foreign, sources)
    loaded: dict[Path, Predictions] = {s: load_predictions(s) for s in sources if is_ours(s)}
    classes = next((made.classes for made in loaded.values()), ())
    for source in sources:
        if source not in loaded:
            loaded[source] = _of_others(source, foreign, classes, console)
    return [loaded[source] for source in sources]


def load_predictions(source: Path) -> Predictions:
    """Return the predictions of a run folder or a CSV; classes in the order of its columns.

    Raises:
        ConfigError: there is no such file or folder.
        PredictionsError: the table cannot be scored.
    """
    path = RunDir(source).predictions if source.is_dir() else source
    if not path.is_file():
        raise ConfigError(
            f"{source} is neither a run folder nor a predictions.csv — check the path"
            + (", or say with --from which tool wrote it" if source.is_dir() else "")
        )
    if path.with_suffix(".json").is_file():
        if not source.is_dir():
            return read_predictions(path)
        return (
            external_predictions(source)
            if told_by(source)
            else labelled_predictions(RunDir(source))
        )
    header = _header(path)
    classes = [column.removeprefix("p_") for column in header if column.startswith("p_")]
    hint = _hint(header)
    if not classes or hint:
        lack = "" if classes else " has no columns p_<class>"
        raise PredictionsError(f"{path.name}{lack}{hint or _ONE_COLUMN}")
    try:
        return doubted(read_predictions(path, classes))
    except PredictionsError as error:
        if "lack the columns" not in str(error):
            raise
        raise PredictionsError(
            f"{error}; or name columns with --from csv --columns ours=theirs"
        ) from error


_ONE_COLUMN = (
    " — give one column of probabilities per class, or name columns with --from csv --columns "
    "p_<class>=<column>"
)


def is_ours(source: Path) -> bool:
    """Return whether a source is a folder of predictions, or a table with our sidecar."""
    path = RunDir(source).predictions if source.is_dir() else source
    return path.is_file() and path.with_suffix(".json").is_file()


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            return next(csv.reader(handle), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise PredictionsError(
            f"{path.name} is no CSV of text ({error}) — give a predictions.csv"
        ) from None


def _hint(header: Sequence[str]) -> str:
    tool = tool_of(list(header))
    return f" looks like a table of {tool.upper()} — read it with --from {tool}" if tool else ""


def _check(foreign: Foreign, sources: Sequence[Path]) -> None:
    said = foreign.tool or foreign.columns or foreign.classes or foreign.invert_softmax
    if said and all(is_ours(source) for source in sources):
        raise ConfigError(
            "--from, --columns, --classes and --invert-softmax are for tables that wsi did not "
            "write, and wsi wrote all of these — leave them out"
        )
    if foreign.tool is None and (foreign.columns or foreign.classes):
        raise ConfigError(
            "--columns and --classes say how a table of another tool reads — name the tool with "
            "--from stamp, clam or csv"
        )


def _of_others(
    source: Path, foreign: Foreign, classes: Sequence[str], console: Console
) -> Predictions:
    """Return predictions of a table without our sidecar, in the order of `classes` if the same."""
    if foreign.tool is None:
        made = load_predictions(source)
    else:
        given = Given(foreign.columns, foreign.classes)
        made = read_foreign_predictions(source, foreign.tool, given)
    if not foreign.classes and sorted(classes) == sorted(made.classes):
        made = replace(made, classes=tuple(classes))
    if foreign.invert_softmax:
        made = inverted(made)
    for doubt in doubts(made):
        console.warn(f"{source}: {doubt}")
    return made


OWN_PATIENTS = (
    "patients are unknown (their ids are those of the slides): each slide counts as a patient of "
    "its own, and intervals are too narrow where patients have several"
)


def with_own_patients_noted(
    source: Path, predictions: Predictions, console: Console
) -> Predictions:
    """Return predictions that note where each slide stands for its own patient, and warn of it.

    In a run patients have been named; `wsi predict` and other tools may not know them.
    """
    if predictions.unit != "slide" or (is_ours(source) and told_by(source) is None):
        return predictions
    table = predictions.table
    if not bool(np.all(table["slide_id"].to_numpy() == table["patient_id"].to_numpy())):
        return predictions
    console.warn(f"{source}: {OWN_PATIENTS} — name patients with --cohort CSV")
    return replace(predictions, notes=(*predictions.notes, OWN_PATIENTS))
