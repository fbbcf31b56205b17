"""Scores of several cohorts as tables for a paper: Markdown, CSV and LaTeX of the same rows."""

from __future__ import annotations

import csv
import io

from wsi.findings import counted, few
from wsi.report.cells import (
    UNKNOWN,
    Json,
    interval,
    metrics_of,
    number,
    percent,
    short_title,
    worst_sites,
)
from wsi.report.paper_tables import as_latex, as_markdown

SHOWN = ("macro_f1", "auc", "balanced_accuracy")
_WORST = SHOWN[0]


def markdown(across: Json) -> str:
    """Return a row per cohort and their mean as a Markdown table."""
    return as_markdown(*shown(across), _caption(across), across["notes"])


def latex(across: Json) -> str:
    """Return the same table for LaTeX with booktabs."""
    return as_latex(*shown(across), _caption(across), across["notes"])


def csv_text(across: Json) -> str:
    """Return one row per cohort and metric, and the means, numbers unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["cohort", "source", "labels_from", "n", "n_patients", "metric", "value", "low", "high"]
    writer.writerow([*head, "seeds_sd", "worst_site", "worst_site_value", "worst_site_n"])
    for row in across["cohorts"]:
        of = [row["cohort"], row["source"], row["labels_from"] or "", row["n"], row["n_patients"]]
        for name in metrics_of(across["mean_over_cohorts"]):
            score, worst = row[name], row["worst_site"].get(name, {})
            found = [score["value"], score["low"], score["high"], score["seeds_sd"]]
            writer.writerow(
                [*of, name, *found, *(worst.get(key) for key in ("site", "value", "n"))]
            )
    for name, mean in across["mean_over_cohorts"].items():
        label = f"mean over {mean['count']} cohorts"
        writer.writerow([label, "", "", "", "", name, mean["value"], *[""] * 6])
    return text.getvalue()


def shown(across: Json) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows that people read."""
    names = [name for name in SHOWN if name in across["mean_over_cohorts"]]
    unit = f"{across['scored']}s"
    counts = [unit] if unit == "patients" else [unit, "patients"]
    titles = [short_title(name) for name in names]
    columns = ["cohort", "predictions", *counts, *titles, f"worst site ({titles[0]})", "labels"]
    rows = []
    for row in across["cohorts"]:
        n = [str(row["n"]), str(row["n_patients"])][-len(counts) :]
        worst = row["worst_site"].get(_WORST)
        scores = [interval(row[name], 3) for name in names]
        rows.append(
            [
                row["cohort"],
                row["source"],
                *n,
                *scores,
                _worst_shown(worst, across["scored"]),
                row["labels_from"] or "as given",
            ]
        )
    if len(rows) > 1:
        rows.append(_mean_row(across, names, len(counts)))
    return columns, rows


def _worst_shown(worst: Json | None, unit: str) -> str:
    """Return the worst site with its value and size, and the sites that are as bad."""
    if worst is None:
        return UNKNOWN
    first, *others = worst_sites(worst)
    size = counted(worst["n"], unit)
    size += f", {counted(worst['n_patients'], 'patient')}" if unit != "patient" else ""
    also = f"; the same at {few(others)}" if others else ""
    return f"{first} {number(worst['value'], 3)} ({size}{also})"


def _mean_row(across: Json, names: list[str], counts: int) -> list[str]:
    total = len(across["cohorts"])
    means = []
    for name in names:
        mean = across["mean_over_cohorts"][name]
        few = "" if mean["count"] == total else f" (of {mean['count']})"
        means.append(number(mean["value"], 3) + few)
    return [f"mean over {total} cohorts", "", *[""] * counts, *means, "", ""]


def _caption(across: Json) -> str:
    mean = " The mean counts every cohort once." if len(across["cohorts"]) > 1 else ""
    worst = any(_WORST in row["worst_site"] for row in across["cohorts"])
    absent = " At a site, a class without slides counts 0 in macro-F1." if worst else ""
    return f"Brackets: {percent(across['level'])} intervals, bootstrap over patients.{mean}{absent}"
