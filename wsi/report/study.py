"""The page and the Markdown table of a study: rates, test figures, differences, selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from wsi.files import publish_bytes
from wsi.findings import counted
from wsi.report import figures
from wsi.report.accuracy_ncmi import accuracy_against_ncmi
from wsi.report.cells import (
    MINUS,
    UNKNOWN,
    Cell,
    Table,
    interval,
    metric_title,
    number,
    p_value,
    percent,
    short_title,
)
from wsi.report.floor_table import floor_table
from wsi.report.templates import script, template

Json = Mapping[str, Any]


def write_study(path: Path, result: Json) -> None:
    """Write one self-contained HTML page about a study to `path`, atomically.

    Args:
        result: of schema wsi-study/1.
    """
    publish_bytes(path, render_study(result).encode())


def render_study(result: Json) -> str:
    """Return the page as text; see `write_study`."""
    return template("study.html.j2").render(
        title=f"Study of {len(result['arms'])} arms on {result['cohort']}",
        lead=_lead(result),
        script=script("sort.js"),
        n_warnings=len(result["warnings"]),
        warnings=result["warnings"],
        selection=[_selection_table(result), _side_by_side(result)],
        sections=[_section(k, name, result) for k, name in enumerate(result["selections"])],
        settings=_settings(result),
    )


def as_markdown(result: Json) -> str:
    """Return the tables of a study as Markdown."""
    parts = [f"# Study on {result['cohort']}", _lead(result)]
    parts += [f"- {warning}" for warning in result["warnings"]]
    for name in result["selections"]:
        section = _section(0, name, result, drawn=False)
        parts.append(f"## {section['heading']}")
        parts += [_markdown(table) for table in section["tables"]]
        parts += [f"- {note}" for note in section["notes"]]
    if result["selection_table"]:
        both = (_selection_table(result), _side_by_side(result))
        parts += ["## What selection brings", *map(_markdown, both)]
    return "\n\n".join(parts) + "\n"


def _lead(result: Json) -> str:
    noisy = f" Test labels are those of column {result['truth']}." if result["truth"] else ""
    return (
        f"{counted(result['slides'], 'slide')} of {counted(result['patients'], 'patient')}; "
        f"{_seeds(len(result['seeds']))}; the rate of every arm is the best of "
        f"{', '.join(f'{rate:g}' for rate in result['rates'])} on validation; "
        f"{result['fits']['all']} fits of {counted(result['epochs'], 'epoch')}, "
        f"{counted(result['bags_per_step'], 'bag')} per step.{noisy} Differences are paired, "
        f"intervals patient-clustered ({percent(result['level'])}), p values corrected over all "
        "arms (Holm), in each metric and way of validating by itself."
    )


def _section(index: int, selection: str, result: Json, *, drawn: bool = True) -> dict[str, Any]:
    found = result["selections"][selection]
    tables = [_scores(found, result)]
    drawings = []
    for metric, scores in found["metrics"].items():
        tables.append(_differences(metric, scores, found["rival"]))
        tables += [_controls(metric, control, rows) for control, rows in scores["controls"].items()]
        if drawn:
            svg = figures.forest(
                short_title(metric),
                scores["runs"],
                scores["differences"],
                found["rival"],
                f"s{index}-{metric}",
            )
            drawings.append(
                {
                    "svg": Markup(svg),
                    "wide": True,
                    "caption": f"{metric_title(metric)} on the test parts, mean over seeds, and "
                    f"differences to {found['rival']}, the best rival on validation.",
                }
            )
    compared = list(found["metrics"].values())[:1]  # none, where no rival is left
    arms = [run["name"] for scores in compared for run in scores["runs"]]
    ncmi = found.get("accuracy_ncmi") if drawn and arms else None
    against = accuracy_against_ncmi(ncmi, arms, f"s{index}-ncmi")
    if against:
        drawings.append({"svg": against[0], "wide": False, "caption": against[1]})
    floors = found.get("floors")
    if floors:
        tables.append(floor_table(floors["scores"], result["level"], floors["run"]))
    tables.append(_rates(found, result["monitor"], _seeds(result["rate_seeds"])))
    return {
        "id": f"selection-{selection}",
        "heading": f"Selection by {selection}",
        "figures": drawings,
        "tables": tables,
        "notes": [
            *_about_floors(floors),
            *found["notes"],
            *_about_p(found),
            _about_validation(result),
        ],
    }


def _about_floors(floors: Json | None) -> list[str]:
    """Return what the best arm on validation is worth beside the floors."""
    return [f"{floors['run']}, best on validation: {floors['note']}"] if floors else []


def _about_p(found: Json) -> list[str]:
    """Return what p is, where the study says so."""
    return list(dict.fromkeys(m["p_from"] for m in found["metrics"].values() if "p_from" in m))


def _about_validation(result: Json) -> str:
    """Return why an arm has two validation figures."""
    return (
        f"validation figures of the arms are means over all {_seeds(len(result['seeds']))}, those "
        f"of the rates tried over the {_seeds(result['rate_seeds'])} that tune"
        f"{'s' if result['rate_seeds'] == 1 else ''} the rate, so the two differ"
    )


def _seeds(n: int) -> str:
    return counted(n, "seed")


def _scores(found: Json, result: Json) -> Table:
    """Return rate, validation and test figures of every arm."""
    metrics = found["metrics"]
    rows = []
    for arm, about in found["arms"].items():
        validation = about["validation"]
        remark = "rival" if arm == found["rival"] else ""
        cells = [
            Cell(arm, remark=remark),
            Cell(f"{about['rate']:g}", about["rate"], remark="edge" if about["edge"] else ""),
            Cell(number(validation["monitor"], 3), validation["monitor"]),
            Cell(number(validation["nll"], 3), validation["nll"]),
        ]
        for scores in metrics.values():
            run = next((run for run in scores["runs"] if run["name"] == arm), None)
            value = None if run is None else run["value"]
            cells.append(Cell(UNKNOWN if run is None else interval(run), value))
            sd = None if run is None else run["seeds_sd"]
            cells.append(Cell(number(sd, 3), sd))
        rows.append(tuple(cells))
    columns = ["Arm", "Rate", f"Validation {short_title(result['monitor'])}", "Validation NLL"]
    for metric in metrics:
        columns += [f"Test {short_title(metric)}", "SD over seeds"]
    caption = f"Arms at their chosen rates, over all {_seeds(len(result['seeds']))}"
    return Table(caption, tuple(columns), tuple(rows))


def _differences(metric: str, scores: Json, rival: str) -> Table:
    caption = f"Paired differences to the rival, {rival}, in {metric_title(metric)}"
    return _difference_table(caption, scores["differences"])


def _controls(metric: str, control: str, rows: Sequence[Json]) -> Table:
    caption = f"Paired differences to the control, {control}, in {metric_title(metric)}"
    return _difference_table(caption, rows)


def _difference_table(caption: str, rows: Sequence[Json]) -> Table:
    made = tuple(
        (
            Cell(f"{row['name']} {MINUS} {row['minus']}"),
            Cell(_signed(row), row["value"]),
            Cell(p_value(row["p"]), row["p"]),
            Cell(p_value(row["p_holm"]), row["p_holm"]),
        )
        for row in rows
    )
    return Table(caption, ("Arms", "Difference", "p", "p (Holm)"), made)


def _signed(row: Json) -> str:
    value = number(row["value"], 3, signed=True)
    if row["low"] is None or row["high"] is None:
        return value
    low, high = (number(row[key], 3, signed=True) for key in ("low", "high"))
    return f"{value} [{low}, {high}]"


def _rates(found: Json, monitor: str, seeds: str) -> Table:
    rows = []
    for arm, about in found["arms"].items():
        for row in about["rates"]:
            remark = "chosen" if row["rate"] == about["rate"] else ""
            rows.append(
                (
                    Cell(arm),
                    Cell(f"{row['rate']:g}", row["rate"], remark=remark),
                    *(Cell(number(row[k], 3), row[k]) for k in ("monitor", "nll", "macro_f1")),
                    Cell(row["failed"] or ""),
                )
            )
    columns = ("Arm", "Rate", short_title(monitor), "NLL", "macro-F1", "Failed")
    caption = f"Rates tried, means over folds and {seeds} on validation"
    return Table(caption, columns, tuple(rows), text_columns=(0, 5))


def _selection_table(result: Json) -> Table:
    metric = result["metrics"][0]
    keys = ("validation", "test", "best_test", "mean_test")
    rows = tuple(
        (
            Cell(row["selection"]),
            Cell(row["chosen"]),
            *(Cell(number(row[key], 3), row[key]) for key in keys[:2]),
            Cell(row["best_on_test"] or UNKNOWN),
            *(Cell(number(row[key], 3), row[key]) for key in keys[2:]),
        )
        for row in result["selection_table"]
    )
    columns = (
        "Validation by",
        "Arm chosen",
        f"Its validation {short_title(result['monitor'])}",
        f"Its test {short_title(metric)}",
        "Best arm on test",
        f"Best test {short_title(metric)}",
        "Mean of all arms",
    )
    caption = "What choosing the best arm on validation brings on the test parts"
    return Table(caption, columns, rows, text_columns=(0, 1, 4))


def _side_by_side(result: Json) -> Table:
    """Return rate, validation and test figure of every arm under each way of validating."""
    metric = result["metrics"][0]
    columns = ["Arm"]
    for name in result["selections"]:
        columns += [f"Rate by {name}", f"Validation by {name}", f"Test by {name}"]
    rows = []
    for arm in (arm["label"] for arm in result["arms"]):
        cells = [Cell(arm)]
        for found in result["selections"].values():
            about = found["arms"].get(arm)
            runs = found["metrics"].get(metric, {"runs": []})["runs"]
            test = next((run["value"] for run in runs if run["name"] == arm), None)
            rate = about["rate"] if about else None
            validation = about["validation"]["monitor"] if about else None
            cells.append(Cell(UNKNOWN if rate is None else f"{rate:g}", rate))
            cells += [Cell(number(value, 3), value) for value in (validation, test)]
        rows.append(tuple(cells))
    validated, tested = short_title(result["monitor"]), short_title(metric)
    caption = f"Selection side by side: validation {validated} and test {tested}"
    return Table(caption, tuple(columns), tuple(rows))


def _settings(result: Json) -> Table:
    facts = {
        "classes": ", ".join(result["classes"]),
        "label": result["label"],
        "truth": result["truth"] or result["label"],
        "seeds": ", ".join(map(str, result["seeds"])),
        "seeds that tune the rate": str(result["rate_seeds"]),
        "monitor": result["monitor"],
        "fits": f"{result['fits']['rates']} for rates, {result['fits']['final']} final, "
        f"{result['fits']['all']} together, {len(result['fits']['failed'])} failed",
        "seconds of fitting": f"{result['fits']['seconds']:.0f}",
    }
    facts |= {f"arm {arm['label']}": _arm_text(arm) for arm in result["arms"]}
    facts |= {f"splits by {k}": v[:16] for k, v in result["splits_sha256"].items()}
    rows = tuple((Cell(key), Cell(value)) for key, value in facts.items())
    return Table("Settings", ("", "Value"), rows, text_columns=(0, 1))


def _arm_text(arm: Json) -> str:
    return ", ".join(f"{key}={value}" for key, value in arm.items() if key != "label")


def _markdown(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns)]
    lines += [[_plain(cell) for cell in row] for row in table.rows]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table.caption}:\n\n{rows}"


def _plain(cell: Cell) -> str:
    text = f"{cell.text} ({cell.remark})" if cell.remark else cell.text
    return text.replace("|", "\\|")
