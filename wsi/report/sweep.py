"""The page of a sweep: what was chosen on validation, its test figures, all trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from wsi.files import publish_bytes
from wsi.report import sweep_figure
from wsi.report.cells import (
    UNKNOWN,
    Cell,
    Table,
    interval,
    metric_title,
    number,
    percent,
    short_title,
)
from wsi.report.templates import script, template

Json = Mapping[str, Any]
_TESTED = ("macro_f1", "auc", "micro_f1", "balanced_accuracy")
_REASON_CHARS = 120


def write_sweep(path: Path, result: Json, picture: str) -> None:
    """Write one self-contained HTML page about a sweep to `path`, atomically.

    Args:
        result: of schema wsi-sweep/1.
        picture: what `draw_sweep` returns.
    """
    publish_bytes(path, render_sweep(result, picture).encode())


def draw_sweep(result: Json) -> str:
    """Return the picture of a sweep as SVG: validation against each searched setting."""
    svg = sweep_figure.draw(result, "sweep")
    return (
        svg
        if "xmlns=" in svg
        else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    )


def render_sweep(result: Json, picture: str) -> str:
    """Return the page as text; see `write_sweep`."""
    drawing = {
        "svg": Markup(picture),
        "wide": True,
        "caption": "Validation figures of all complete trials, means over folds and seeds.",
    }
    return template("sweep.html.j2").render(
        title=f"Sweep of {len(result['trials'])} trials on {result['cohort']}",
        lead=_lead(result),
        script=script("sort.js"),
        n_warnings=len(result["warnings"]),
        warnings=result["warnings"],
        notes=result["notes"],
        figure=drawing,
        chosen=_chosen(result),
        test=_test(result),
        trials=_trials(result),
        settings=_settings(result),
    )


def _lead(result: Json) -> str:
    best = result["best"]
    values = ", ".join(f"{key}={_shown(value)}" for key, value in best["values"].items())
    return (
        f"Of {len(result['trials'])} trials on {result['slides']} slides of {result['patients']} "
        f"patients, {best['run']} has the best validation {short_title(result['monitor'])}, "
        f"{number(best['validation'], 3)}: {values}. Test labels were joined for this trial only, "
        "after the choice."
    )


def _chosen(result: Json) -> Table:
    best = result["best"]
    rows = [
        (Cell(key), Cell(_shown(value), remark=_edge(best["edges"].get(key))), Cell(_span(space)))
        for (key, value), space in zip(best["values"].items(), result["space"].values())
    ]
    caption = f"Settings of {best['run']}, in best.yaml"
    return Table(caption, ("Setting", "Chosen", "Searched"), tuple(rows), text_columns=(0, 1, 2))


def _edge(edge: str | None) -> str:
    return f"{edge} end" if edge else ""


def _span(space: Any) -> str:
    if not isinstance(space, Mapping):
        return ", ".join(map(_shown, space))
    words = "".join(f", {word}" for word in ("log", "int") if space.get(word))
    step = f", by {space['step']:g}" if space.get("step") else ""
    return f"{space['low']:g} to {space['high']:g}{step}{words}"


def _test(result: Json) -> Table | None:
    scores = result["test"]
    if scores is None:
        return None
    rows = tuple(
        (Cell(metric_title(name)), Cell(interval(scores[name], 3)), Cell(str(scores[name]["n"])))
        for name in _TESTED
        if name in scores
    )
    level = percent(scores["level"]) if "level" in scores else "95%"
    caption = f"Test figures of {result['best']['run']}, patient-clustered intervals ({level})"
    return Table(caption, ("Metric", "Test", "Slides"), rows)


def _trials(result: Json) -> Table:
    keys = list(result["space"])
    rows = []
    for row in result["trials"]:
        chosen = "chosen" if row["trial"] == result["best"]["trial"] else ""
        rows.append(
            (
                Cell(str(row["trial"]), row["trial"], remark=chosen),
                Cell(row["state"]),
                *(Cell(_shown(row["values"][key]), _sortable(row["values"][key])) for key in keys),
                Cell(number(row["validation"], 4), row["validation"]),
                Cell(number(row["sd"], 4), row["sd"]),
                Cell(str(row["fits"]), row["fits"]),
                Cell(f"{row['seconds']:.1f}", row["seconds"]),
                Cell((row["reason"] or "")[:_REASON_CHARS]),
            )
        )
    validation = f"Validation {short_title(result['monitor'])}"
    columns = ("Trial", "State", *keys, validation, "SD over folds", "Fits", "Seconds", "Reason")
    worded = [
        k
        for k, key in enumerate(keys)
        if any(isinstance(r["values"][key], str) for r in result["trials"])
    ]
    words = (1, *(2 + k for k in worded), len(columns) - 1)
    return Table(
        "Means over folds and seeds, on validation", columns, tuple(rows), text_columns=words
    )


def _settings(result: Json) -> Table:
    facts = {
        "aggregator": _component(result["aggregator"]),
        "objective": _component(result["objective"]),
        "classes": ", ".join(result["classes"]),
        "label": result["label"],
        "chosen by": f"validation {short_title(result['monitor'])}, mean over "
        f"{result['folds']} folds and seeds {', '.join(map(str, result['seeds']))}",
        "sampler": f"{result['sampler']}, seed {result['seed']}",
        "stopped early": "by the median of other trials" if result["prune"] else "no",
        "epochs": str(result["epochs"]),
        "fits": f"{result['fits']}, {result['seconds']:.0f} s",
        "splits": result["splits_sha256"][:16],
    }
    rows = tuple((Cell(key), Cell(value)) for key, value in facts.items())
    return Table("Settings", ("", "Value"), rows, text_columns=(0, 1))


def _component(component: Json) -> str:
    params = ", ".join(f"{k}={v}" for k, v in component.items() if k != "name")
    return f"{component['name']} ({params})" if params else component["name"]


def _shown(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _sortable(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
