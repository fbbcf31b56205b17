"""What a sweep says and writes: trials.csv, best.yaml, results.json, the picture, the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pipelines.config
from pipelines.console import Console
from pipelines.floors import make_floors
from pipelines.scoring import report_run, score_run
from pipelines.sweep.book import name_of
from pipelines.sweep.folder import SweepDir
from pipelines.sweep.plan import Plan
from pipelines.sweep.results import as_csv
from pipelines.sweep.space import Space, shown
from pipelines.train import unlabelled_predictions
from wsi.evaluation import join_labels, write_predictions
from wsi.files import publish_bytes, publish_json

Json = dict[str, Any]
_SHOWN = 10  # trials on the terminal; trials.csv has all


def show_trials(rows: Sequence[Json], best: Json, space: Space, plan: Plan, out: Console) -> None:
    """Print the best trials, by validation."""
    sign = 1 if plan.lower else -1
    complete = [row for row in rows if row["state"] == "complete"]
    complete.sort(key=lambda row: (row is not best, sign * row["validation"], row["trial"]))
    keys = [one.key for one in space]
    lines = [
        [
            str(row["trial"]),
            *(shown(row["values"][key]) for key in keys),
            f"{row['validation']:.4f}",
            "" if row["sd"] is None else f"{row['sd']:.4f}",
        ]
        for row in complete[:_SHOWN]
    ]
    title = f"best of {len(complete)} trials, on validation"
    columns = ["trial", *keys, f"val {plan.config.fit.monitor}", "sd over folds"]
    out.table(columns, lines, title)


def finish_best(folder: SweepDir, best: Json, plan: Plan, console: Console) -> Json:
    """Join the test labels of the chosen trial, score it once, and write its report."""
    run = folder.run(name_of(best["trial"]))
    config = plan.settings(best["values"])
    cells = plan.cells_in(run.root, config)
    labelled = join_labels(unlabelled_predictions(cells, plan.material), plan.material.cohort)
    write_predictions(labelled, run.predictions)
    console.say(f"test figures of {run.root.name}, which validation chose:")
    floors = make_floors(config, plan.material, plan.splits, run, console)
    metrics = score_run(run, labelled, config.evaluate, console, floors)
    report_run(run, console)
    return metrics


def others_scored(folder: SweepDir, rows: Sequence[Json], best: Json) -> list[str]:
    """Return the other trials whose test figures somebody has asked for."""
    names = [name_of(row["trial"]) for row in rows if row["trial"] != best["trial"]]
    return [name for name in names if folder.run(name).metrics.is_file()]


def write_results(folder: SweepDir, result: Json, plan: Plan, console: Console) -> None:
    """Write trials.csv, best.yaml, results.json, sweep.svg and report.html."""
    from wsi.report.sweep import draw_sweep, write_sweep

    publish_bytes(folder.table, as_csv(result["trials"], plan.space).encode())
    pipelines.config.write_config(plan.settings(result["best"]["values"]), folder.best)
    publish_json(folder.results, result)
    picture = draw_sweep(result)
    publish_bytes(folder.figure, picture.encode())
    write_sweep(folder.report, result, picture)
    console.say(f"wrote {folder.table}, {folder.best.name} and {folder.results.name}")
