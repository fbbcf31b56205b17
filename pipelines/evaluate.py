"""`wsi evaluate`: scores of runs or prediction tables, with corrected labels on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pipelines.across import scores_by_cohort, tell_cohorts
from pipelines.console import Console, counted
from pipelines.external import told_by, without_leakage
from pipelines.floors import OFF, Floors, floors_of_run, with_floors
from pipelines.rundir import RunDir
from pipelines.scoring import refresh_card, show_metrics
from pipelines.sources import Foreign, is_ours, load_all, say_own_patients
from pipelines.summary import names_of
from wsi.cohorts import patients_of, read_cohort
from wsi.cohorts.cells import read_table
from wsi.cohorts.table import label_column
from wsi.errors import ConfigError
from wsi.evaluation import (
    Predictions,
    by_patient,
    evaluate,
    join_labels,
    write_predictions,
)
from wsi.evaluation.labels import changed_labels
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
        ordered: the classes are grades, though the predictions may not say so.
        foreign: how tables of other tools read.
        leave_out_trained: score new slides without those that trained their models.
    """

    by: tuple[str, ...] = ()
    cohort: Path | None = None
    label: str | None = None
    out: Path | None = None
    replicates: int = 2000
    level: Literal["slide", "patient"] = "slide"
    patient_rule: PatientRule | None = None
    ordered: bool = False
    foreign: Foreign = field(default_factory=Foreign)
    leave_out_trained: bool = False


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
    results, said, parts = {}, set(), []
    loaded = load_all(sources, options.foreign, console)
    for name, source, path, predictions in zip(names, sources, targets, loaded, strict=True):
        if options.ordered:
            predictions = replace(predictions, ordered=True)
        floors, reason = _floors(source, console)
        before = predictions
        if cohort is not None:
            predictions = relabelled(predictions, cohort, options.label, source, console)
            floors = floors and floors.changed(_labels_of(cohort, options.label, source))
        if (told := told_by(source)) is not None:
            leave_out = options.leave_out_trained
            predictions = without_leakage(
                before, predictions, told, leave_out=leave_out, console=console
            )
        if not is_ours(source):
            say_own_patients(source, predictions, console)
        more = {}
        if options.level == "patient" and predictions.unit == "slide":
            more["patient_rule"] = rule = options.patient_rule or rule_of(source)
            predictions = _of_patients(predictions, rule, path, console)
            floors = floors and floors.changed(partial(by_patient, rule=rule))
        metrics = with_floors(evaluate(predictions, spec), predictions, floors, spec, reason) | more
        shown = metrics | {"by": {k: v for k, v in metrics["by"].items() if not by or k in by}}
        show_metrics(shown, console, name, single=bool(by), said=said)
        publish_json(path, metrics)
        console.say(f"wrote {path}")
        if source.is_dir() and path == RunDir(source).metrics and RunDir(source).config.is_file():
            refresh_card(RunDir(source), console)
        results[name] = metrics
        if "cohort" in by:
            parts += scores_by_cohort(name, predictions, metrics, spec)
    if len(parts) > 1 or (parts and options.out is not None):
        across = tell_cohorts(parts, options.out, console)
        results |= {"across_cohorts": across} if len(sources) > 1 else {}
    console.result(results if len(sources) > 1 else next(iter(results.values())))
    return 0


def _check(options: Options) -> None:
    if options.label is not None and options.cohort is None:
        raise ConfigError("--label names a column of a table — give the table with --cohort")
    if options.patient_rule is not None and options.level != "patient":
        raise ConfigError("--patient-rule acts with --level patient only — give both")


def relabelled(
    predictions: Predictions, cohort: Path, label: str | None, source: Path, console: Console
) -> Predictions:
    """Return predictions with the labels of a table, or its patients and sites where it has none.

    A table without the usual label column is taken for patients alone where labels are there.
    """
    column = label or label_of(source)
    keep = label is None and not is_ours(source) and bool((predictions.y >= 0).all())
    keep = keep and label_column(read_table(cohort), column, required=False) is None
    if keep:
        console.say(f"{cohort} has no column '{column}': patients and sites are taken from it")
    joined = _labels_of(cohort, label, source, keep=keep)(predictions)
    changed = changed_labels(predictions, joined)
    if changed:
        console.warn(
            f"{len(changed)} labels differ from those of the run: "
            + few(f"{slide} {old} -> {new}" for slide, old, new in changed)
            + f" — with several folds these {predictions.unit}s also trained other folds, under "
            "the old labels"
        )
    return joined


def _labels_of(
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


def _floors(source: Path, console: Console) -> tuple[Floors | None, str]:
    """Return the floors of a run, made if need be; or None, and why."""
    run = RunDir(source)
    if not (source.is_dir() and run.config.is_file() and run.inputs.is_file()):
        return None, "they are made from the bags and splits of a run"
    floors, reason = floors_of_run(_settings(source), run, console)
    if floors is None and reason != OFF:
        console.say(f"no floors beside {source}: {reason}")
    return floors, reason


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


def label_of(source: Path) -> str:
    """Return the label column of the run that made predictions, `label` where none is known."""
    told = told_by(source)
    return told.label if told else _settings(source).data.label


def rule_of(source: Path) -> PatientRule:
    """Return how slides become patients by the settings of the run that made predictions."""
    told = told_by(source)
    return told.patient_rule if told else _settings(source).evaluate.patient_rule


def _settings(source: Path) -> Config:
    """Return the settings of a run; the defaults where there are none."""
    import pipelines.config

    config = RunDir(source).config
    return pipelines.config.read_config(config) if config.is_file() else Config()


def _target(source: Path, name: str, options: Options, n: int) -> Path:
    """Return where scores go; those of other labels, patients or rules never replace others."""
    ends = [options.cohort.stem] if options.cohort else []
    ends += ["patient"] if options.level == "patient" else []
    rule = options.patient_rule
    if rule is not None and rule != rule_of(source):
        ends.append(rule)
    if options.out is None:
        if source.is_dir() and not is_ours(source):
            ends = ["wsi", *ends]  # the folder of another tool may have a metrics.json
        own = RunDir(source).metrics if source.is_dir() else source.with_name("metrics.json")
        return own.with_name("-".join([own.stem, *ends]) + own.suffix)
    stem = name.replace("/", "-") if n > 1 else "metrics"
    return options.out / f"{stem}.json"
