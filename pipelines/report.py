"""`wsi report`: one page about runs or tables of predictions, and the model card of each run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.console import Console
from pipelines.rundir import RunDir
from pipelines.sources import Foreign, load_all, with_own_patients_noted
from pipelines.summary import names_of, summarise
from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation import Predictions, compare, evaluate
from wsi.evaluation.metrics import metric_named
from wsi.files import sha256_file
from wsi.report import RunSummary, write_model_card, write_report
from wsi.specs import EvaluateSpec

_KNOWN_FROM_TABLE = (
    "only predictions are known of it, not how the model was made, nor whether it has seen these "
    "slides or others of the same patients in training"
)


@dataclass(frozen=True)
class Options:
    """What the command line decides.

    Attributes:
        out: the page; beside its scores for a single run when not given.
        metric: what several sources are compared by.
        replicates: of the bootstrap, for tables and comparisons; runs keep their scores.
        foreign: how tables of other tools read.
    """

    out: Path | None = None
    metric: str = "macro_f1"
    replicates: int = 2000
    foreign: Foreign = field(default_factory=Foreign)


def run(sources: Sequence[Path], options: Options, console: Console) -> int:
    """Write the page, and RUN/model-card.md of each run folder."""
    if not sources:
        raise ConfigError("nothing to report — give run folders or predictions.csv files")
    metric_named(options.metric)
    out = _target(sources, options.out)
    spec = EvaluateSpec(replicates=options.replicates)
    named = list(zip(names_of(sources), sources, strict=True))
    for source in sources:
        _check(source)
    loaded = load_all(sources, options.foreign, console)
    runs = [
        summarise(RunDir(source), console, name)
        if source.is_dir()
        else _of_table(source, name, predictions, spec, console)
        for (name, source), predictions in zip(named, loaded, strict=True)
    ]
    compared, lead = _compared(runs, options.metric, spec, console)
    title = " against ".join(run.name for run in runs)
    write_report(out, title if len(runs) > 1 else f"Run {title}", runs, compared, lead)
    console.say(f"report: {out}")
    cards = [
        _card(source, one, console) for (_, source), one in zip(named, runs) if source.is_dir()
    ]
    console.result({"report": str(out), "model_cards": [str(card) for card in cards]})
    return 0


def _target(sources: Sequence[Path], out: Path | None) -> Path:
    if out is None:
        if len(sources) > 1 or not sources[0].is_dir():
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


def _of_table(
    source: Path, name: str, predictions: Predictions, spec: EvaluateSpec, console: Console
) -> RunSummary:
    """Return what a table alone tells."""
    predictions = with_own_patients_noted(source, predictions, console)
    facts = {
        "predictions": f"{source.name}, sha256 {sha256_file(source)[:12]}",
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
