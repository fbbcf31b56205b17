"""`wsi evaluate`: scores of runs or prediction tables, with corrected labels on request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pipelines.across import scores_by_cohort, show_cohorts, written_cohorts
from pipelines.console import Console, counted
from pipelines.external import told_by, without_leakage
from pipelines.floors import OFF, Floors, floors_of_run, with_floors
from pipelines.relabelling import check_label, labels_of, relabelled, settings_of
from pipelines.rundir import RunDir
from pipelines.scoring import refresh_card, show_metrics
from pipelines.sources import Foreign, is_ours, load_all, with_own_patients_noted
from pipelines.summary import names_of
from wsi.errors import ConfigError
from wsi.evaluation import Predictions, by_patient, evaluate, write_predictions
from wsi.files import publish_json
from wsi.findings import few
from wsi.specs import EvaluateSpec, PatientRule

_PLAIN = re.compile(r"[^\w.=+-]+")  # what a file name had better not have


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


@dataclass(frozen=True)
class _Scored:
    """What was scored and written; `told` are the notes that have been said already."""

    predictions: Predictions
    metrics: dict[str, Any]
    told: frozenset[str]


def run(sources: Sequence[Path], options: Options, console: Console) -> int:
    """Write and print the scores of each source; files first, for a pipe may close."""
    if not sources:
        raise ConfigError("nothing to evaluate — give run folders or predictions.csv files")
    _check(options)
    names = names_of(sources)
    targets = [_target(source, name, options, len(sources)) for name, source in zip(names, sources)]
    _refuse_replacing(sources, targets, options)
    loaded = load_all(sources, options.foreign, console)
    spec, by = EvaluateSpec(replicates=options.replicates), options.by
    scored = {
        name: _score(source, path, predictions, options, spec, console)
        for name, source, path, predictions in zip(names, sources, targets, loaded, strict=True)
    }
    parts = [
        part
        for name, one in scored.items()
        if "cohort" in by
        for part in scores_by_cohort(name, one.predictions, one.metrics, spec)
    ]
    across = None
    if len(parts) > 1 or (parts and options.out is not None):
        across = written_cohorts(parts, options.out, console)
    said: set[str] = set()
    for name, one in scored.items():
        said |= one.told
        shown = {k: v for k, v in one.metrics["by"].items() if not by or k in by}
        show_metrics(one.metrics | {"by": shown}, console, name, single=bool(by), said=said)
    if across is not None:
        show_cohorts(across, console)
    results = {name: one.metrics for name, one in scored.items()}
    more = {"across_cohorts": across} if across is not None else {}
    console.result(results | more if len(sources) > 1 else next(iter(results.values())))
    return 0


def _score(
    source: Path,
    path: Path,
    predictions: Predictions,
    options: Options,
    spec: EvaluateSpec,
    console: Console,
) -> _Scored:
    """Return the scores of one source, which are written to `path`."""
    floors, reason = _floors(source, console)
    before, cohort, label = predictions, options.cohort, options.label
    if options.ordered:
        predictions = replace(predictions, ordered=True)
    if cohort is not None:
        predictions = relabelled(predictions, cohort, label, source, options.foreign, console)
        floors = floors and floors.changed(labels_of(cohort, label, source))
    if (told := told_by(source)) is not None:
        leave_out = options.leave_out_trained
        predictions = without_leakage(
            before, predictions, told, leave_out=leave_out, console=console
        )
    predictions = with_own_patients_noted(source, predictions, console)
    said = frozenset(predictions.notes) - frozenset(before.notes)
    more = {}
    if options.level == "patient" and predictions.unit == "slide":
        more["patient_rule"] = rule = options.patient_rule or rule_of(source)
        predictions = _of_patients(predictions, rule, path, console)
        floors = floors and floors.changed(partial(by_patient, rule=rule))
    metrics = with_floors(evaluate(predictions, spec), predictions, floors, spec, reason) | more
    publish_json(path, metrics)
    console.say(f"wrote {path}")
    if source.is_dir() and path == RunDir(source).metrics and RunDir(source).config.is_file():
        refresh_card(RunDir(source), console)
    return _Scored(predictions, metrics, said)


def _check(options: Options) -> None:
    check_label(options.label, options.cohort)
    if options.patient_rule is not None and options.level != "patient":
        raise ConfigError("--patient-rule acts with --level patient only — give both")


def _floors(source: Path, console: Console) -> tuple[Floors | None, str]:
    """Return the floors of a run, made if need be; or None, and why."""
    run = RunDir(source)
    if not (source.is_dir() and run.config.is_file() and run.inputs.is_file()):
        return None, "they are made from the bags and splits of a run"
    floors, reason = floors_of_run(settings_of(source), run, console)
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
    path = _patients_table(metrics)
    write_predictions(made, path)
    console.say(f"wrote {path}")
    return made


def _patients_table(metrics: Path) -> Path:
    """Return where predictions of patients go, beside their scores."""
    renamed = metrics.stem.replace("metrics", "predictions", 1)
    stem = renamed if renamed != metrics.stem else f"{renamed}-predictions"
    return metrics.with_name(f"{stem}.csv")


def rule_of(source: Path) -> PatientRule:
    """Return how slides become patients by the settings of the run that made predictions."""
    told = told_by(source)
    return told.patient_rule if told else settings_of(source).evaluate.patient_rule


def _refuse_replacing(sources: Sequence[Path], targets: Sequence[Path], options: Options) -> None:
    """Raise where results would replace each other, or what they are made from."""
    if len(set(targets)) < len(targets):
        raise ConfigError("several results would be written to one metrics.json — give --out DIR")
    if options.level == "slide":
        return
    made = {_patients_table(path).resolve() for path in targets}
    given = {(RunDir(s).predictions if s.is_dir() else s).resolve() for s in sources}
    if made & given:
        raise ConfigError(
            f"the predictions of patients would replace {few(map(str, sorted(made & given)))} — "
            "give another --out"
        )


def _own_target(source: Path) -> Path:
    """Return where scores go without --out; tables that lie together have one file each."""
    if source.is_dir():
        return RunDir(source).metrics
    run = RunDir(source.parent)
    return (
        run.metrics
        if source.name == run.predictions.name
        else (source.with_name(f"{source.stem}-{run.metrics.name}"))
    )


def _target(source: Path, name: str, options: Options, n: int) -> Path:
    """Return where scores go; those of other labels, patients or rules never replace others."""
    ends = []
    if options.cohort is not None:
        column = f".{_PLAIN.sub('_', options.label)}" if options.label else ""
        ends.append(f"{options.cohort.stem}{column}")
    ends += ["patient"] if options.level == "patient" else []
    rule = options.patient_rule
    if rule is not None and rule != rule_of(source):
        ends.append(rule)
    if options.out is None:
        if source.is_dir() and not is_ours(source):
            ends = ["wsi", *ends]  # the folder of another tool may have a metrics.json
        own = _own_target(source)
        return own.with_name("-".join([own.stem, *ends]) + own.suffix)
    stem = name.replace("/", "-") if n > 1 else "metrics"
    return options.out / f"{stem}.json"
