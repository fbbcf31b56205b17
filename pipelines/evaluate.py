"""`wsi evaluate`: scores of runs or prediction tables, with corrected labels on request."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.console import Console, counted
from pipelines.labelled import labelled_predictions
from pipelines.rundir import RunDir
from pipelines.scoring import refresh_card, show_metrics
from pipelines.summary import names_of
from wsi.cohorts import patients_of, read_cohort
from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation import (
    Predictions,
    by_patient,
    evaluate,
    join_labels,
    read_predictions,
    write_predictions,
)
from wsi.evaluation.predictions import changed_labels
from wsi.files import publish_json
from wsi.findings import few
from wsi.specs import Config, EvaluateSpec, PatientRule


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        by: what the printed results are divided by.
        cohort: table of corrected labels.
        label: its column, when not that of the run.
        level: what is scored: slides, or patients by the predictions of all their slides.
        patient_rule: how slides become a patient, when not as the run's settings say.
    """

    by: tuple[str, ...] = ()
    cohort: Path | None = None
    label: str | None = None
    out: Path | None = None
    replicates: int = 2000
    level: Literal["slide", "patient"] = "slide"
    patient_rule: PatientRule | None = None


def run(sources: Sequence[Path], options: Options, console: Console) -> int:
    """Print and write the scores of each source."""
    if not sources:
        raise ConfigError("nothing to evaluate — give run folders or predictions.csv files")
    _check(options)
    spec, by, cohort = EvaluateSpec(replicates=options.replicates), options.by, options.cohort
    names = names_of(sources)
    targets = [_target(source, name, options, len(sources)) for name, source in zip(names, sources)]
    if len(set(targets)) < len(targets):
        raise ConfigError("several results would be written to one metrics.json — give --out DIR")
    results, said = {}, set()
    for name, source, path in zip(names, sources, targets, strict=True):
        predictions = load_predictions(source)
        if cohort is not None:
            predictions = _relabelled(predictions, cohort, options.label, source, console)
        more = {}
        if options.level == "patient" and predictions.unit == "slide":
            more["patient_rule"] = rule = (
                options.patient_rule or _settings(source).evaluate.patient_rule
            )
            predictions = _of_patients(predictions, rule, path, console)
        metrics = evaluate(predictions, spec) | more
        shown = metrics | {"by": {k: v for k, v in metrics["by"].items() if not by or k in by}}
        show_metrics(shown, console, name, single=bool(by), said=said)
        publish_json(path, metrics)
        console.say(f"wrote {path}")
        if source.is_dir() and path == RunDir(source).metrics and RunDir(source).config.is_file():
            refresh_card(RunDir(source), console)
        results[name] = metrics
    console.result(results if len(sources) > 1 else next(iter(results.values())))
    return 0


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
        )
    if path.with_suffix(".json").is_file():
        return labelled_predictions(RunDir(source)) if source.is_dir() else read_predictions(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            header = next(csv.reader(handle), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise PredictionsError(
            f"{path.name} is no CSV of text ({error}) — give a predictions.csv"
        ) from None
    classes = [column.removeprefix("p_") for column in header if column.startswith("p_")]
    if not classes:
        raise PredictionsError(
            f"{path.name} has no columns p_<class> — give one column of probabilities per class"
        )
    return read_predictions(path, classes)


def _check(options: Options) -> None:
    if options.label is not None and options.cohort is None:
        raise ConfigError("--label names a column of a table — give the table with --cohort")
    if options.patient_rule is not None and options.level != "patient":
        raise ConfigError("--patient-rule acts with --level patient only — give both")


def _relabelled(
    predictions: Predictions, cohort: Path, label: str | None, source: Path, console: Console
) -> Predictions:
    table = read_cohort(cohort, label or _settings(source).data.label, predictions.classes)
    if predictions.unit == "patient":
        table = patients_of(table)
    joined = join_labels(predictions, table)
    changed = changed_labels(predictions, joined)
    if changed:
        console.warn(
            f"{len(changed)} labels differ from those of the run: "
            + few(f"{slide} {old} -> {new}" for slide, old, new in changed)
            + f" — with several folds these {predictions.unit}s also trained other folds, under "
            "the old labels"
        )
    return joined


def _of_patients(
    predictions: Predictions, rule: PatientRule, metrics: Path, console: Console
) -> Predictions:
    """Return predictions of patients, written beside the metrics."""
    made = by_patient(predictions, rule)
    missing = len(predictions.not_evaluable)
    console.say(
        f"{counted(len(made.slides), 'patient')} of {counted(sum(made.slides.values()), 'slide')}: "
        f"{made.decision}"
        + (f"; {counted(missing, 'slide')} without a prediction left out" if missing else "")
    )
    renamed = metrics.stem.replace("metrics", "predictions", 1)
    stem = renamed if renamed != metrics.stem else f"{renamed}-predictions"
    path = metrics.with_name(f"{stem}.csv")
    write_predictions(made, path)
    console.say(f"wrote {path}")
    return made


def _settings(source: Path) -> Config:
    """Return the settings of a run; the defaults where there are none."""
    import pipelines.config

    config = RunDir(source).config
    return pipelines.config.read_config(config) if config.is_file() else Config()


def _target(source: Path, name: str, options: Options, n: int) -> Path:
    """Return where scores go; those of other labels or of patients never replace a run's own."""
    ends = [options.cohort.stem] if options.cohort else []
    ends += ["patient"] if options.level == "patient" else []
    if options.out is None:
        own = RunDir(source).metrics if source.is_dir() else source.with_name("metrics.json")
        return own.with_name("-".join([own.stem, *ends]) + own.suffix)
    stem = name.replace("/", "-") if n > 1 else "metrics"
    return options.out / f"{stem}.json"
