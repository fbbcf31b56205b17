"""A comparison as tables for a paper: Markdown, CSV and LaTeX of the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from wsi.evaluation import METRICS
from wsi.report.cells import Json, interval, p_value, percent
from wsi.report.paper_tables import as_latex, as_markdown


def markdown(comparison: Json) -> str:
    """Return the runs and differences as a Markdown table, with what they are under it."""
    return as_markdown(*_shown(comparison), _caption(comparison), comparison["notes"])


def latex(comparison: Json) -> str:
    """Return the same table for LaTeX with booktabs."""
    return as_latex(*_shown(comparison), _caption(comparison), comparison["notes"])


def csv_text(comparison: Json) -> str:
    """Return one row per run and per difference, numbers unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "minus", "test", "metric", "value", "low", "high", "p", "p_holm", "n"])
    writer.writerows(_numbers(comparison))
    return text.getvalue()


def _numbers(comparison: Json) -> Iterator[list[Any]]:
    metric, n = comparison["metric"], comparison["n"]
    for run in comparison["runs"]:
        yield [run["name"], "", "", metric, run["value"], run["low"], run["high"], "", "", n]
    for row in comparison["differences"]:
        found = [row["value"], row["low"], row["high"], row["p"], row["p_holm"]]
        yield [row["name"], row["minus"], "paired bootstrap", metric, *found, n]
        for name, test in row.get("tests", {}).items():
            found = [test["value"], test["low"], test["high"], test["p"], ""]
            yield [row["name"], row["minus"], name, metric, *found, n]


def _shown(comparison: Json) -> tuple[list[str], list[list[str]]]:
    title = METRICS[comparison["metric"]].title
    by_name = {row["name"]: row for row in comparison["differences"]}
    rows = []
    for run in comparison["runs"]:
        row = by_name.get(run["name"])
        beside = ["reference", "", ""]
        if row is not None:
            beside = [interval(row, 3, signed=True), p_value(row["p"]), p_value(row["p_holm"])]
        rows.append([run["name"], interval(run, 3), *beside])
    return ["run", title, f"difference to {comparison['reference']}", "p", "p (Holm)"], rows


def _caption(comparison: Json) -> str:
    seeds: Sequence[int] = sorted({run["seeds"] for run in comparison["runs"]})
    told = "/".join(map(str, seeds))
    of = f"{comparison['n_patients']} patients"
    if comparison["scored"] == "slide":
        of = f"{comparison['n']} slides of {of}"
    return (
        f"{of}, {told} seed"
        f"{'' if seeds == [1] else 's'} per run; brackets: {percent(comparison['level'])} "
        "intervals, bootstrap over patients; differences paired; p two-sided, of the bootstrap."
    )
