"""`wsi compare`: paired differences between runs on the same slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.console import Console
from pipelines.evaluate import load_predictions
from pipelines.rundir import RunDir
from pipelines.scoring import interval
from pipelines.summary import names_of, summarise
from wsi.errors import ConfigError
from wsi.evaluation import compare
from wsi.files import publish_bytes, publish_json
from wsi.report.cells import p_value
from wsi.report.comparison_tables import csv_text, latex, markdown
from wsi.specs import EvaluateSpec


def run(
    sources: Sequence[Path], metric: str, out: Path | None, replicates: int, console: Console
) -> int:
    """Print the comparison; with `out` also write it, and a report of all runs."""
    if len(sources) < 2:
        raise ConfigError("a comparison needs two runs or more — wsi compare RUN RUN")
    named = list(zip(names_of(sources), sources, strict=True))
    loaded = [(name, load_predictions(source)) for name, source in named]
    result = compare(loaded, metric, EvaluateSpec(replicates=replicates))
    show_comparison(result, console)
    if out is not None:
        publish_json(out / "comparison.json", result)
        for suffix, text in (("md", markdown), ("csv", csv_text), ("tex", latex)):
            publish_bytes(out / f"comparison.{suffix}", text(result).encode())
        console.say(f"wrote {out / 'comparison.json'}, .md, .csv and .tex")
        write_accuracy_ncmi(out / "accuracy-ncmi.svg", result, console)
        bare = [s for s in sources if s.is_dir() and not RunDir(s).metrics.is_file()]
        if bare:
            console.say(f"no report: {bare[0]} has no scores yet — run wsi evaluate {bare[0]}")
        elif all(source.is_dir() for source in sources):
            write_comparison_report(out / "report.html", dict(named), result, console)
    console.result(result)
    return 0


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
