"""Scores of a run, said to people and written to metrics.json; and its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.console import Console
from pipelines.floors import Floors, with_floors
from pipelines.rundir import RunDir
from wsi.evaluation import Predictions, evaluate
from wsi.evaluation.floor_scores import JUDGED_BY
from wsi.evaluation.information_scores import BELOW_ZERO
from wsi.files import publish_json
from wsi.specs import EvaluateSpec

SHOWN = ("macro_f1", "auc", "micro_f1", "balanced_accuracy")


def score_run(
    run_dir: RunDir,
    predictions: Predictions,
    spec: EvaluateSpec,
    console: Console,
    floors: Floors | None = None,
) -> dict[str, Any]:
    """Return, write and print the scores of labelled predictions, with those of floors."""
    metrics = with_floors(evaluate(predictions, spec), predictions, floors, spec)
    publish_json(run_dir.metrics, metrics)
    show_metrics(metrics, console)
    return metrics


def show_metrics(
    metrics: dict[str, Any],
    console: Console,
    title: str = "",
    *,
    single: bool = False,
    said: set[str] | None = None,
) -> None:
    """Print the headline scores with intervals, by site too, and what to know about them.

    A site or cohort that is the only one repeats the whole, and is shown only when `single`.

    Args:
        said: notes that were said of other runs, and need not be said again.
    """
    parts = {"all": metrics}
    for kind in ("site", "cohort"):
        groups = metrics["by"].get(kind, {})
        if single or len(groups) > 1:
            parts |= {f"{kind} {name}": group for name, group in groups.items()}
    shown = shown_metrics(metrics)
    rows = [[name, *_row(part, shown)] for name, part in parts.items()]
    console.table(["part", "n", "patients", *shown], rows, title)
    show_floors(metrics, console)
    told = []
    if metrics.get("labels_from"):
        console.say(f"labels: {metrics['labels_from']}")
    console.say(information_line(metrics["information"]))
    if line := calibration_line(metrics):
        console.say(line)
    if metrics["information"]["as_predicted"] is None:
        told.append(f"the probabilities are {metrics['information']['probabilities']}")
    if any(_is_point(part[m]) for part in parts.values() for m in shown):
        told.append(
            "an interval of one point: all replicates are equal, as no misranked pair or wrong "
            "decision was seen; so few slides do not show that there are none"
        )
    say_notes([*told, *metrics["notes"]], console, said)


def show_floors(metrics: dict[str, Any], console: Console) -> None:
    """Print the floors beside the headline, what they mean for it, and what tells the site."""
    floors = metrics.get("floors")
    if floors is None:
        return
    columns = ["floor", *(name for metric in JUDGED_BY for name in (metric, "run minus floor"))]
    rows = []
    for name, scores in floors.items():
        pairs = [(scores[m], scores[m]["run_minus_floor"]) for m in JUDGED_BY]
        rows.append([name, *(interval(score) for pair in pairs for score in pair)])
    console.table(columns, rows, "floors from the same bags and splits")
    console.say(f"floors: {metrics['floors_note']}")
    say_notes([f"floor {k}: {of['note']}" for k, of in floors.items() if of["note"]], console)
    console.say(site_line(metrics["site_from_features"]))


def site_line(found: dict[str, Any]) -> str:
    """Return how well mean features tell the site, on one line."""
    if found["auc"] is None:
        return f"site from mean features: unknown, {found['note']}"
    told = [
        f"{name} {interval(found[key])} (chance {found[key]['chance']:.2f})"
        for key, name in (("balanced_accuracy", "balanced accuracy"), ("auc", "AUC"))
    ]
    return f"site from mean features, {found['n_sites']} sites: {', '.join(told)}"


def say_notes(notes: Sequence[str], console: Console, said: set[str] | None = None) -> None:
    """Say notes, without those that have been said; they join what was `said`."""
    said = set() if said is None else said
    for note in dict.fromkeys(notes):
        if note not in said:
            console.say(f"note: {note}")
    said.update(notes)


def information_line(found: dict[str, Any]) -> str:
    """Return what predictions tell about labels, on one line."""
    mi, share, ncmi = found["mi"], found["share"], found["ncmi"]
    told = f"information on the labels: {interval(mi)}"
    if mi["value"] is not None:
        told += f" nats, {share['value']:.0%} of their entropy ({found['label_entropy']:.3f})"
        told += f" ({BELOW_ZERO})" if mi["value"] < 0 else ""
    if ncmi["ncmi"] is None:
        return f"{told}; NCMI {ncmi['note']}"
    beware = f"; {ncmi['note']}" if ncmi["note"] else ""
    return (
        f"{told}; NCMI {ncmi['ncmi']:.3f} = CMI {ncmi['cmi']:.3f} / separation "
        f"{ncmi['separation']:.3f}, not comparable across classes, temperatures or simplex maps"
        f"{beware}"
    )


def shown_metrics(metrics: dict[str, Any]) -> list[str]:
    """Return the metrics that are printed; quadratic kappa where classes are ordered."""
    return [*SHOWN, *(("quadratic_kappa",) if "quadratic_kappa" in metrics else ())]


def _row(scores: dict[str, Any], shown: Sequence[str]) -> list[str]:
    first = scores[shown[0]]
    return [str(first["n"]), str(first["n_patients"]), *(interval(scores[m]) for m in shown)]


def calibration_line(metrics: dict[str, Any]) -> str:
    """Return what the temperatures of validation do to the calibration, on one line."""
    found = metrics["calibrated"]
    if found["reason"]:
        return ""
    fits = list(found["temperatures"].values())
    told = ", ".join(
        f"{name} {metrics[name]['value']:.3f} -> {found[name]['value']:.3f}"
        for name in ("nll", "brier", "ece")
    )
    span = f"{min(fits):.2f}" if len(fits) == 1 else f"{min(fits):.2f} to {max(fits):.2f}"
    line = f"at the temperatures of validation ({span}): {told}"
    return f"{line}; {found['note']}" if found["note"] else line


def _is_point(score: dict[str, Any]) -> bool:
    return score["low"] is not None and score["low"] == score["high"]


def interval(score: dict[str, Any]) -> str:
    """Return `0.71 [0.58, 0.82]`, or `undefined`."""
    if score["value"] is None:
        return "undefined"
    text = f"{score['value']:.3f}"
    if score["low"] is None or score["high"] is None:
        return text
    return f"{text} [{score['low']:.3f}, {score['high']:.3f}]"


def report_run(run_dir: RunDir, console: Console) -> Path:
    """Write the report and the model card of a run, and return the report's path."""
    from pipelines.summary import summarise
    from wsi.report import write_model_card, write_report

    summary = summarise(run_dir, console)
    write_report(run_dir.report, f"Run {summary.name}", [summary])
    write_model_card(run_dir.model_card, summary)
    console.say(f"report: {run_dir.report}")
    return run_dir.report


def refresh_card(run_dir: RunDir, console: Console) -> None:
    """Write the model card of a run anew, as its scores were."""
    from pipelines.summary import summarise
    from wsi.report import write_model_card

    write_model_card(run_dir.model_card, summarise(run_dir, console, draw=False))
    console.say(f"wrote {run_dir.model_card}")
