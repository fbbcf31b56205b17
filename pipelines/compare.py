"""`wsi compare`: paired differences between runs on the same slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.console import Console
from pipelines.evaluate import rule_of
from pipelines.external import told_by, without_leakage
from pipelines.relabelling import check_label, relabelled
from pipelines.rundir import RunDir
from pipelines.scoring import interval
from pipelines.source_summaries import is_run, summary_of
from pipelines.sources import Foreign, load_all, with_own_patients_noted
from pipelines.summary import names_of, summarise
from wsi.errors import ConfigError
from wsi.evaluation import Predictions, by_patient, compare
from wsi.files import publish_bytes, publish_json
from wsi.report.cells import p_value
from wsi.report.comparison_tables import csv_text, latex, markdown
from wsi.specs import EvaluateSpec, PatientRule


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        metric: what is compared.
        level: slides, or patients by the predictions of all their slides.
        patient_rule: how slides become a patient, when not as each run's settings say.
        cohort: table of labels and patients, joined to all sources.
        label: its column, when not that of the first run.
        foreign: how tables of other tools read.
    """

    metric: str = "macro_f1"
    out: Path | None = None
    replicates: int = 2000
    level: Literal["slide", "patient"] = "slide"
    patient_rule: PatientRule | None = None
    cohort: Path | None = None
    label: str | None = None
    foreign: Foreign = field(default_factory=Foreign)


def run(sources: Sequence[Path], options: Options, console: Console) -> int:
    """Print the comparison; with `out` also write it, and a report of all runs."""
    out = options.out
    if len(sources) < 2:
        raise ConfigError("a comparison needs two runs or more — wsi compare RUN RUN")
    check_label(options.label, options.cohort)
    if options.patient_rule is not None and options.level != "patient":
        raise ConfigError("--patient-rule acts with --level patient only — give both")
    named = list(zip(names_of(sources), sources, strict=True))
    loaded = _loaded(named, options, console)
    result = compare(loaded, options.metric, EvaluateSpec(replicates=options.replicates))
    if out is not None:  # before it is printed: a pipe may close
        publish_json(out / "comparison.json", result)
        for suffix, text in (("md", markdown), ("csv", csv_text), ("tex", latex)):
            publish_bytes(out / f"comparison.{suffix}", text(result).encode())
        console.say(f"wrote {out / 'comparison.json'}, .md, .csv and .tex")
        write_accuracy_ncmi(out / "accuracy-ncmi.svg", result, console)
        _report(out / "report.html", named, loaded, result, options, console)
    show_comparison(result, console)
    console.result(result)
    return 0


def _report(
    path: Path,
    named: Sequence[tuple[str, Path]],
    loaded: Sequence[tuple[str, Predictions]],
    result: dict[str, Any],
    options: Options,
    console: Console,
) -> None:
    """Write one page about all sources, or say why there is none."""
    if options.level == "patient":
        console.say("no report: the page is of slides, and patients were compared")
        return
    bare = [s for _, s in named if is_run(s) and not RunDir(s).metrics.is_file()]
    if bare:
        console.say(f"no report: {bare[0]} has no scores yet — run wsi evaluate {bare[0]}")
        return
    from wsi.report import write_report

    spec = EvaluateSpec(replicates=options.replicates)
    summaries = [
        summary_of(source, name, predictions, spec, console, options.cohort)
        for (name, source), (_, predictions) in zip(named, loaded, strict=True)
    ]
    write_report(path, " against ".join(name for name, _ in named), summaries, result)
    console.say(f"report: {path}")


def _loaded(
    named: Sequence[tuple[str, Path]], options: Options, console: Console
) -> list[tuple[str, Predictions]]:
    """Return the predictions to compare, all of slides or all of patients."""
    loaded = load_all([source for _, source in named], options.foreign, console)
    ready = []
    for (name, source), predictions in zip(named, loaded, strict=True):
        before = predictions
        if options.cohort is not None:
            table, label = options.cohort, options.label
            predictions = relabelled(predictions, table, label, source, options.foreign, console)
        if (told := told_by(source)) is not None:
            predictions = without_leakage(
                before, predictions, told, leave_out=True, console=console
            )
        predictions = with_own_patients_noted(source, predictions, console)
        if options.level == "patient":
            rule = options.patient_rule or rule_of(source)
            predictions = by_patient(predictions, rule)
            console.say(f"{name}: {predictions.decision}")
        ready.append((name, predictions))
    return ready


def show_comparison(result: dict[str, Any], console: Console) -> None:
    """Print each run's figure and each difference to the reference."""
    console.table(
        ["run", result["metric"]], [[r["name"], interval(r)] for r in result["runs"]], "runs"
    )
    show_differences(result, console)


def show_differences(result: dict[str, Any], console: Console) -> None:
    """Print each difference to the reference."""
    rows = [
        [d["name"], d["minus"], interval(d), p_value(d["p"]), p_value(d["p_holm"])]
        for d in result["differences"]
    ]
    columns = ["run", "minus", f"difference in {result['metric']}", "p", "p (Holm)"]
    console.table(columns, rows, "paired differences")
    tests = [
        [d["name"], d["minus"], name, interval(test), p_value(test["p"]), test["note"]]
        for d in result["differences"]
        for name, test in d["tests"].items()
    ]
    if tests:
        columns = ["run", "minus", "test", "difference", "p", "note"]
        console.table(columns, tests, "other tests of the same differences")
    console.say(f"note: {result['p_from']}")
    for note in result["notes"]:
        console.say(f"note: {note}")


def write_accuracy_ncmi(path: Path, result: dict[str, Any], console: Console) -> None:
    """Write the figure of accuracy against NCMI, where two models or more have both."""
    from wsi.report.figures import accuracy_ncmi

    points = [point for point in result["accuracy_ncmi"]["points"] if point["ncmi"] is not None]
    if len(points) < 2:
        console.say("no figure of accuracy against NCMI: fewer than two models have an NCMI")
        return
    runs = [run["name"] for run in result["runs"]]
    drawn = accuracy_ncmi(points, "accuracy-ncmi", runs)
    publish_bytes(path, drawn.encode())
    console.say(f"wrote {path}")


def write_comparison_report(
    path: Path,
    runs: dict[str, Path],
    result: dict[str, Any],
    console: Console,
    lead: str = "",
    title: str = "",
    next_steps: Sequence[str] = (),
) -> None:
    """Write one page about all runs and their differences."""
    from wsi.report import write_report

    summaries = [summarise(RunDir(root), console, name) for name, root in runs.items()]
    write_report(path, title or " against ".join(runs), summaries, result, lead, next_steps)
    console.say(f"report: {path}")
