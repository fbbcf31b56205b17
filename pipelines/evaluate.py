"""`wsi evaluate`: scores of runs or prediction tables, with corrected labels on request."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pipelines.console import Console
from pipelines.labelled import labelled_predictions
from pipelines.rundir import RunDir
from pipelines.scoring import show_metrics
from pipelines.summary import names_of
from wsi.cohorts import read_cohort
from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation import Predictions, evaluate, join_labels, read_predictions
from wsi.evaluation.predictions import changed_labels
from wsi.files import publish_json
from wsi.findings import few
from wsi.specs import EvaluateSpec


def run(
    sources: Sequence[Path],
    by: tuple[str, ...],
    cohort: Path | None,
    out: Path | None,
    replicates: int,
    console: Console,
) -> int:
    """Print and write the scores of each source."""
    if not sources:
        raise ConfigError("nothing to evaluate — give run folders or predictions.csv files")
    spec = EvaluateSpec(replicates=replicates)
    names = names_of(sources)
    targets = [
        _target(source, name, out, len(sources), cohort) for name, source in zip(names, sources)
    ]
    if len(set(targets)) < len(targets):
        raise ConfigError("several results would be written to one metrics.json — give --out DIR")
    results, said = {}, set()
    for name, source, path in zip(names, sources, targets, strict=True):
        predictions = load_predictions(source)
        if cohort is not None:
            predictions = _relabelled(predictions, cohort, source, console)
        metrics = evaluate(predictions, spec)
        shown = metrics | {"by": {k: v for k, v in metrics["by"].items() if not by or k in by}}
        show_metrics(shown, console, name, single=bool(by), said=said)
        publish_json(path, metrics)
        console.say(f"wrote {path}")
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


def _relabelled(
    predictions: Predictions, cohort: Path, source: Path, console: Console
) -> Predictions:
    table = read_cohort(cohort, _label_of(source), predictions.classes)
    joined = join_labels(predictions, table)
    changed = changed_labels(predictions, joined)
    if changed:
        console.warn(
            f"{len(changed)} labels differ from those of the run: "
            + few(f"{slide} {old} -> {new}" for slide, old, new in changed)
            + " — with several folds these slides also trained other folds, under the old labels"
        )
    return joined


def _label_of(source: Path) -> str:
    import pipelines.config

    config = RunDir(source).config
    return pipelines.config.read_config(config).data.label if config.is_file() else "label"


def _target(source: Path, name: str, out: Path | None, n: int, cohort: Path | None) -> Path:
    """Return where scores go; those under corrected labels never replace a run's own."""
    if out is None:
        own = RunDir(source).metrics if source.is_dir() else source.with_name("metrics.json")
        return own.with_name(f"metrics-{cohort.stem}.json") if cohort else own
    return out / (f"{name.replace('/', '-')}.json" if n > 1 else "metrics.json")
