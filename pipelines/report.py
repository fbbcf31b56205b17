"""`wsi report`: one page about runs or tables of predictions, and the model card of each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.console import Console
from pipelines.relabelling import check_label, relabelled
from pipelines.rundir import RunDir
from pipelines.source_summaries import summary_of
from pipelines.sources import Foreign, load_all, with_own_patients_noted
from pipelines.summary import names_of
from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation import Predictions, compare
from wsi.evaluation.metrics import metric_named
from wsi.report import RunSummary, write_model_card, write_report
from wsi.specs import EvaluateSpec


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        out: the page; beside its scores for a single run when not given.
        metric: what several sources are compared by.
        replicates: of the bootstrap, for tables and comparisons; runs keep their scores.
        foreign: how tables of other tools read.
        cohort: table of labels and patients, joined to all sources.
        label: its column, when not that of the first run.
    """

    out: Path | None = None
    metric: str = "macro_f1"
    replicates: int = 2000
    foreign: Foreign = field(default_factory=Foreign)
    cohort: Path | None = None
    label: str | None = None


def run(sources: Sequence[Path], options: Options, console: Console) -> int:
    """Write the page, and RUN/model-card.md of each run folder."""
    if not sources:
        raise ConfigError("nothing to report — give run folders or predictions.csv files")
    metric_named(options.metric)
    out = _target(sources, options)
    spec = EvaluateSpec(replicates=options.replicates)
    named = list(zip(names_of(sources), sources, strict=True))
    for source in sources:
        _check(source)
    runs = [
        summary_of(source, name, predictions, spec, console, options.cohort)
        for (name, source), predictions in zip(named, _loaded(sources, options, console))
    ]
    compared, lead = _compared(runs, options.metric, spec, console)
    title = " against ".join(run.name for run in runs)
    write_report(out, title if len(runs) > 1 else f"Run {title}", runs, compared, lead)
    console.say(f"report: {out}")
    cards = []
    if options.cohort is None:  # a card tells the scores that lie beside it
        cards = [_card(s, one, console) for s, one in zip(sources, runs) if s.is_dir()]
    console.result({"report": str(out), "model_cards": [str(card) for card in cards]})
    return 0


def _loaded(sources: Sequence[Path], options: Options, console: Console) -> list[Predictions]:
    """Return the predictions of each source, with the labels and patients of the cohort."""
    ready = []
    for source, predictions in zip(sources, load_all(sources, options.foreign, console)):
        if options.cohort is not None:
            table, label = options.cohort, options.label
            predictions = relabelled(predictions, table, label, source, options.foreign, console)
        ready.append(with_own_patients_noted(source, predictions, console))
    return ready


def _target(sources: Sequence[Path], options: Options) -> Path:
    out = options.out
    check_label(options.label, options.cohort)
    if out is None:
        if options.cohort is not None or len(sources) > 1 or not sources[0].is_dir():
            raise ConfigError("say where the page goes: --out report.html")
        return RunDir(sources[0]).report
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: give a file name that ends in .html")
    return out


def _check(source: Path) -> None:
    """Refuse folders that are no finished run before anything is drawn."""
    if source.is_dir():
        run_dir = RunDir(source)
        run_dir.read_inputs()
        if not run_dir.metrics.is_file():
            raise ConfigError(f"{source} has no scores yet — run wsi evaluate {source}")


def _compared(
    runs: Sequence[RunSummary], metric: str, spec: EvaluateSpec, console: Console
) -> tuple[dict[str, Any] | None, str]:
    """Return the comparison of several runs, or why there is none."""
    if len(runs) < 2:
        return None, ""
    try:
        return compare([(run.name, run.predictions) for run in runs], metric, spec), ""
    except PredictionsError as error:
        console.warn(f"not compared: {error}")
        return None, f"Not compared: {error}."


def _card(source: Path, summary: RunSummary, console: Console) -> Path:
    path = RunDir(source).model_card
    write_model_card(path, summary)
    console.say(f"model card: {path}")
    return path
