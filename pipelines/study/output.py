"""What a study says and writes: tables on the terminal, results.json, .csv, .md and the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.console import Console, counted
from pipelines.scoring import interval, say_notes
from pipelines.study.choices import Choice, Standing
from pipelines.study.folder import StudyDir
from wsi.evaluation import Predictions, write_predictions
from wsi.files import publish_bytes, publish_json
from wsi.report.cells import p_value

Json = Mapping[str, Any]
_COLUMNS: tuple[str, ...] = (
    "selection",
    "metric",
    "kind",
    "arm",
    "minus",
    "value",
    "low",
    "high",
    "seeds_sd",
    "p",
    "p_holm",
    "rate",
    "rate_edge",
    "validation_monitor",
    "validation_nll",
    "validation_macro_f1",
)


def show_rates(
    found: Sequence[Standing],
    chosen: Mapping[str, Mapping[str, Choice]],
    monitor: str,
    console: Console,
) -> None:
    """Print validation figures of every arm and rate, the chosen rate marked."""
    rows = []
    for one in found:
        choice = chosen.get(one.selection, {}).get(one.arm)
        mark = "chosen" if choice and choice.rate == one.rate else ""
        figures = (one.monitor, one.nll, one.macro_f1)
        shown = ["failed" if f is None else f"{f:.3f}" for f in figures]
        rows.append([one.selection, one.arm, f"{one.rate:g}", str(one.fits), *shown, mark])
    columns = ["selection", "arm", "rate", "fits", f"val {monitor}", "val NLL", "val macro-F1", ""]
    console.table(columns, rows, "rates, on validation")


def show_results(result: Json, console: Console) -> None:
    """Print test figures and differences of the headline metric, by selection."""
    metric = result["metrics"][0]
    notes: list[str] = []
    for selection, found in result["selections"].items():
        scores = found["metrics"].get(metric)
        if scores is None:
            console.warn(f"selection by {selection}: nothing to compare")
            continue
        rows = [
            [
                run["name"],
                f"{found['arms'][run['name']]['rate']:g}",
                f"{found['arms'][run['name']]['validation']['monitor']:.3f}",
                interval(run),
                "" if run["seeds_sd"] is None else f"{run['seeds_sd']:.3f}",
                *_difference(scores["differences"], run["name"]),
            ]
            for run in scores["runs"]
        ]
        columns = ["arm", "rate", f"val {result['monitor']}", f"test {metric}", "seeds sd"]
        columns += [f"minus {found['rival']}", "p", "p (Holm)"]
        console.table(columns, rows, f"selection by {selection}")
        if found["floors"]:
            console.say(f"{found['floors']['run']}, best on validation: {found['floors']['note']}")
        notes += [*found["notes"], scores["p_from"]]
    if notes:
        every, tuning = counted(len(result["seeds"]), "seed"), counted(result["rate_seeds"], "seed")
        notes.append(
            f"val {result['monitor']} here is the mean over all {every}, in the table of rates "
            f"that over the {tuning} tuning them"
        )
    say_notes(notes, console)


def _difference(differences: Sequence[Json], arm: str) -> list[str]:
    row = next((d for d in differences if d["name"] == arm), None)
    if row is None:
        return ["rival", "", ""]
    return [interval(dict(row)), p_value(row["p"]), p_value(row["p_holm"])]


def write_arms(folder: StudyDir, selection: str, runs: Sequence[tuple[str, Predictions]]) -> None:
    """Write the test predictions of every arm, for `wsi compare` and `wsi evaluate`."""
    for arm, predictions in runs:
        write_predictions(predictions, folder.predictions(selection, arm))


def write_results(folder: StudyDir, result: dict[str, Any], console: Console) -> None:
    """Write results.json, results.csv, results.md and report.html."""
    from wsi.report.study import as_markdown, write_study

    publish_json(folder.root / "results.json", result)
    publish_bytes(folder.root / "results.csv", as_csv(result).encode())
    publish_bytes(folder.root / "results.md", as_markdown(result).encode())
    write_study(folder.report, result)
    console.say(f"wrote {folder.root / 'results.json'}, results.csv and results.md")


def as_csv(result: Json) -> str:
    """Return one row per figure: test scores of arms, and differences to rival and controls."""
    text = io.StringIO()
    columns: list[str] = list(_COLUMNS)
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(result))
    return text.getvalue()


def _rows(result: Json) -> Iterator[dict[str, Any]]:
    for selection, found in result["selections"].items():
        for metric, scores in found["metrics"].items():
            about = {"selection": selection, "metric": metric}
            for run in scores["runs"]:
                arm = found["arms"][run["name"]]
                more = {"rate": arm["rate"], "rate_edge": arm["edge"]}
                more |= {
                    f"validation_{k}": arm["validation"][k] for k in ("monitor", "nll", "macro_f1")
                }
                yield about | {"kind": "test", "arm": run["name"]} | run | more
            for row in scores["differences"]:
                yield about | {"kind": "rival", "arm": row["name"]} | row
            for rows in scores["controls"].values():
                for row in rows:
                    yield about | {"kind": "control", "arm": row["name"]} | row
