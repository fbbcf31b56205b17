"""A comparison as tables for a paper: Markdown, CSV and LaTeX of the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from wsi.evaluation import METRICS
from wsi.report.cells import MINUS, Json, interval, p_value, percent

_ESCAPED = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {MINUS: "$-$", "<": "$<$"}
)


def markdown(comparison: Json) -> str:
    """Return the runs and differences as a Markdown table, with what they are under it."""
    columns, rows = _shown(comparison)
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)
    return f"{table}\n\n{_caption(comparison)}\n"


def latex(comparison: Json) -> str:
    """Return the same table for LaTeX with booktabs."""
    columns, rows = _shown(comparison)
    lines = [f"{' & '.join(_tex(cell) for cell in row)} \\\\" for row in (columns, *rows)]
    head, *body = lines
    rule = [r"\begin{tabular}{l" + "r" * (len(columns) - 1) + "}", r"\toprule", head, r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}", f"% {_caption(comparison)}"]
    return "\n".join([*rule, *body, *end]) + "\n"


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
    return (
        f"{comparison['n']} slides of {comparison['n_patients']} patients, {told} seed"
        f"{'' if seeds == [1] else 's'} per run; brackets: {percent(comparison['level'])} "
        "intervals, bootstrap over patients; differences paired; p two-sided, of the bootstrap."
    )


def _tex(cell: str) -> str:
    return cell.translate(_ESCAPED)
