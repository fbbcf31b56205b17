"""The page: everything a report says, rendered into one offline HTML file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from wsi.errors import ConfigError
from wsi.evaluation import METRICS
from wsi.files import publish_bytes
from wsi.report import figures, run_figures, slides, tables, validated_tables
from wsi.report.accuracy_ncmi import accuracy_against_ncmi
from wsi.report.cells import Table, interval, percent
from wsi.report.floor_table import shown_floors
from wsi.report.pictures import data_uris
from wsi.report.run_figures import Figure
from wsi.report.summary import Epochs, RunSummary
from wsi.report.templates import script, template

MOST_BYTES = 4_900_000
"""Of a page: it can be sent by mail, and opened anywhere."""

_CARDS = ("macro_f1", "auc", "balanced_accuracy")


def write_report(
    path: Path,
    title: str,
    runs: Sequence[RunSummary],
    comparison: Mapping[str, Any] | None = None,
    lead: str = "",
    next_steps: Sequence[str] = (),
) -> None:
    """Write one self-contained HTML page about `runs` to `path`, atomically.

    The page asks for nothing over a network, and a policy in it forbids to. The same input gives
    the same bytes.

    Args:
        comparison: of `wsi.evaluation.compare`, over these runs.
        lead: one sentence under the title.
        next_steps: what to do now; words between backticks are set as code.

    Raises:
        ConfigError: no run, repeated names, or a comparison of other runs.
        ResourceError: the disk is full.
    """
    _check(runs, comparison)
    publish_bytes(path, render(title, runs, comparison, lead, next_steps).encode())


def render(
    title: str,
    runs: Sequence[RunSummary],
    comparison: Mapping[str, Any] | None = None,
    lead: str = "",
    next_steps: Sequence[str] = (),
) -> str:
    """Return the page as text; see `write_report`."""
    fixed = {
        "title": title,
        "lead": lead,
        "next_steps": next_steps,
        "script": script("sort.js"),
        "side_by_side": tables.side_by_side(runs) if len(runs) > 1 else None,
        "comparison": _comparison(comparison),
        "facts": tables.facts(runs) if any(run.facts for run in runs) else None,
        "parts": _parts(runs),
        "n_warnings": sum(len(run.warnings) for run in runs),
    }
    shown = [_run(k, run) for k, run in enumerate(runs)]
    return _within(MOST_BYTES, fixed, runs, shown)


def _within(
    most_bytes: int,
    fixed: Mapping[str, Any],
    runs: Sequence[RunSummary],
    shown: Sequence[dict[str, Any]],
) -> str:
    """Return the page at its best that keeps to the bytes.

    Pictures of slides give way first, in size and then in number, learning curves after them.
    """

    def page(uris: Sequence[Sequence[str | None]], curves: int | None) -> str:
        sections = [
            one | {"slides": slides.section(run, of), "learning": _shortened(one, curves)}
            for one, run, of in zip(shown, runs, uris, strict=True)
        ]
        alarmed = [one for one in sections if one["learning"] and one["learning"]["alarms"]]
        return template("page.html.j2").render(**fixed, runs=sections, alarmed=alarmed)

    bare = [[""] * len(run.examples) for run in runs]
    for curves in (None, 1, 0):
        room = most_bytes - len(page(bare, curves).encode())
        if room >= 0:
            break
    return page(_fitting(runs, room), curves)


def _shortened(run: Mapping[str, Any], most: int | None) -> dict[str, Any] | None:
    """Return the learning curves of the first folds only, and how many are left out."""
    learning = run["learning"]
    if learning is None or most is None:
        return learning
    svgs = learning["svgs"]
    return learning | {"svgs": svgs[:most], "left_out": len(svgs) - len(svgs[:most])}


def _fitting(runs: Sequence[RunSummary], most_bytes: int) -> list[list[str | None]]:
    """Return the data URIs of each run's pictures; the first of every run come before others."""
    places = sorted((k, r) for r, run in enumerate(runs) for k in range(len(run.examples)))
    pictures = [runs[r].examples[k].picture for k, r in places]
    found = dict(zip(places, data_uris(pictures, most_bytes), strict=True))
    return [[found[k, r] for k in range(len(run.examples))] for r, run in enumerate(runs)]


def _check(runs: Sequence[RunSummary], comparison: Mapping[str, Any] | None) -> None:
    names = [run.name for run in runs]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"cannot report the runs {', '.join(names) or '(none)'} — "
            "give at least one, of different names"
        )
    compared = {row["name"] for row in comparison["runs"]} if comparison else set()
    if not compared <= set(names):
        raise ConfigError(
            f"the comparison is of {', '.join(sorted(compared))}, the report of "
            f"{', '.join(names)} — compare the runs that are reported"
        )


def _comparison(comparison: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    metric = METRICS[comparison["metric"]]
    drawn = figures.forest(
        metric.title,
        comparison["runs"],
        comparison["differences"],
        comparison["reference"],
        "forest",
    )
    better = "right" if metric.higher_is_better else "left"
    level = percent(comparison["level"])
    caption = (
        f"Left: {metric.title} of each run. Right: difference to {comparison['reference']}, on the "
        f"same resampled patients; an advantage over it lies to the {better} of the line. "
        f"Bars are {level} intervals. Overlap on the left says nothing about the difference."
    )
    shown = [Figure(Markup(drawn), caption, wide=True), *_by_site(comparison)]
    return {
        "tables": [
            t for t in (tables.differences(comparison), tables.other_tests(comparison)) if t
        ],
        "figures": [*shown, *_accuracy_ncmi(comparison)],
        "notes": comparison["notes"],
    }


def _by_site(comparison: Mapping[str, Any]) -> list[Figure]:
    """Return the differences on each site, where there are several."""
    sites = comparison.get("by_site")
    if not sites:
        return []
    metric = METRICS[comparison["metric"]]
    runs = [run["name"] for run in comparison["runs"]]
    drawn = figures.forest_by_site(
        metric.title, sites, comparison["differences"], runs, "forest-site"
    )
    caption = (
        f"Difference in {metric.title} to {comparison['reference']} on the slides of each site "
        "(their number in brackets), paired and resampled by patients of that site. A site of few "
        "patients has a wide bar or none."
    )
    return [Figure(Markup(drawn), caption, wide=True)]


def _accuracy_ncmi(comparison: Mapping[str, Any]) -> list[Figure]:
    """Return accuracy against NCMI, where two models or more have both."""
    runs = [run["name"] for run in comparison["runs"]]
    drawn = accuracy_against_ncmi(comparison.get("accuracy_ncmi"), runs, "accuracy-ncmi")
    return [Figure(*drawn)] if drawn else []


def _run(index: int, run: RunSummary) -> dict[str, Any]:
    metrics = run.metrics
    grouped = [tables.by_group(metrics, "site"), tables.by_group(metrics, "cohort")]
    spread = [tables.by_fold(metrics), tables.by_seed(metrics)]
    return {
        "id": f"run-{index}",
        "name": run.name,
        "n": metrics["n"],
        "unit": metrics.get("scored", "slide"),
        "n_patients": metrics["n_patients"],
        "level": percent(metrics["level"]),
        "replicates": metrics["replicates"],
        "decision": metrics["decision"],
        "coverage": metrics["coverage"],
        "cards": _cards(metrics),
        "headline": tables.headline(metrics),
        "floors": shown_floors(metrics),
        "groups": [
            table
            for table in (*grouped, tables.by_class(metrics), tables.information(metrics))
            if table
        ],
        "figures": run_figures.beside_each_other(index, run),
        "validated": [
            table
            for table in (
                validated_tables.calibrated(metrics),
                validated_tables.operating_points(metrics),
            )
            if table
        ],
        "uncalibrated": validated_tables.uncalibrated(metrics),
        "panels": run_figures.by_class(index, run),
        "spread": [table for table in spread if table],
        "learning": _learning(index, run),
        "warnings": run.warnings,
        "notes": metrics["notes"],
    }


def _cards(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return title, value and interval of the figures that open a run."""
    cards = []
    for name in _CARDS:
        if name in metrics:
            value, _, bounds = interval(metrics[name]).partition(" ")
            cards.append((METRICS[name].title, value, bounds))
    return cards


def _learning(index: int, run: RunSummary) -> dict[str, Any] | None:
    """Return one figure per fold, with a legend for all."""
    limits = figures.learning_limits(run.histories)
    if "loss" not in limits:
        return None
    folds: dict[str, dict[str, Epochs]] = {}
    for name, rows in run.histories.items():
        fold = re.sub(r"^fold(?=\d)", "fold ", name.partition("-seed")[0])
        folds.setdefault(fold, {})[name] = rows
    monitor = tables.short_title(run.monitor)
    svgs = [
        Markup(
            figures.learning(trainings, run.chosen, monitor, limits, f"r{index}-learning-{k}", fold)
        )
        for k, (fold, trainings) in enumerate(folds.items())
    ]
    validated = any(r.get("val_loss") is not None for rows in run.histories.values() for r in rows)
    legend = [("train", "training loss")]
    legend += [("val", "validation loss")] if validated else []
    legend += [("monitor", f"validation {monitor}")] if "monitor" in limits else []
    legend += [("kept", "epoch kept")] if run.chosen else []
    alarms = tables.alarms(run.histories)
    legend += [("alarmed", "alarm")] if alarms else []
    watched = any("alarms" in row for rows in run.histories.values() for row in rows)
    return {
        "svgs": svgs,
        "legend": legend,
        "several": len(run.histories) > len(folds),
        "alarms": alarms,
        "silent": watched and alarms is None,
        "left_out": 0,
    }


def _parts(runs: Sequence[RunSummary]) -> list[tuple[str, Table]]:
    """Return the parts of the folds with a heading, once where all runs share them."""
    made = [(r.name, tables.parts(r.parts, r.metrics["classes"])) for r in runs if r.parts]
    shared = len({table for _, table in made}) == 1 and len(made) == len(runs)
    return [("", made[0][1])] if shared else made
