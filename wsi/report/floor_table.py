"""Floors beside the headline of a run: their figures, the differences, what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from wsi.evaluation.floor_scores import JUDGED_BY, not_above
from wsi.report.cells import MINUS, Cell, Footnotes, Json, Table, interval, percent, short_title

_TITLES = {
    "majority": "majority: class frequencies",
    "tile-count": "tile-count: number of tiles alone",
    "site": "site: class frequencies at the site",
    "mean-features": "mean-features: logistic regression on their mean",
}

_WHY_BELOW_CHANCE = (
    "an AUC of the site floor below 0.5 is what small folds do: where many slides of a class at a "
    "site are tested, fewer are left to train on, so that its frequency in training is lower there"
)


@dataclass(frozen=True)
class ShownFloors:
    """The table of floors with what to read from it, and whether the run is above them all."""

    table: Table
    conclusion: str
    above: bool
    site: str


def shown_floors(metrics: Json) -> ShownFloors | None:
    """Return the floors of a run; None of metrics without any."""
    floors = metrics.get("floors")
    if not floors:
        return None
    table = floor_table(floors, metrics["level"])
    return ShownFloors(table, metrics["floors_note"], not not_above(floors), site_sentence(metrics))


def floor_table(floors: Json, level: float, run: str = "run") -> Table:
    """Return the figures of each floor, and the difference of what `run` names to it."""
    notes = Footnotes()
    columns = ["Floor"]
    for metric in JUDGED_BY:
        columns += [short_title(metric), f"{run} {MINUS} floor"]
    rows = []
    for name, scores in floors.items():
        cells = [Cell(_TITLES.get(name, name), notes=notes.numbers(scores["note"]))]
        for metric in JUDGED_BY:
            score = scores[metric]
            difference = score["run_minus_floor"]
            shown = interval(difference, signed=True)
            remarks = notes.numbers(score_remarks(name, metric, score))
            cells += [
                Cell(interval(score), score["value"], remarks),
                Cell(shown, difference["value"]),
            ]
        rows.append(tuple(cells))
    caption = f"Floors from the same bags and splits, with {percent(level)} intervals"
    return Table(caption, tuple(columns), tuple(rows), tuple(notes.texts))


def score_remarks(floor: str, metric: str, score: Json) -> str:
    """Return what to know of a figure: its notes, and why the site's AUC may lie below chance."""
    told = [score["note"]] if score.get("note") else []
    if (floor, metric) == ("site", "auc") and score["value"] is not None and score["value"] < 0.5:
        told.append(_WHY_BELOW_CHANCE)
    return "; ".join(told)


def site_sentence(metrics: Json) -> str:
    """Return how well mean features tell the site, in a sentence; none of scores without it."""
    found = metrics.get("site_from_features")
    if found is None:
        return ""
    if found["auc"] is None:
        return f"How well mean features tell the site is unknown: {found['note']}."
    accuracy, auc = found["balanced_accuracy"], found["auc"]
    left_out = f" Left out: {found['note']}." if found["note"] else ""
    remarks = [r for score in (accuracy, auc) for r in score.get("note", "").split("; ") if r]
    beware = f" Of these figures: {'; '.join(dict.fromkeys(remarks))}." if remarks else ""
    return (
        f"Mean features tell the {found['n_sites']} sites apart with a balanced accuracy of "
        f"{interval(accuracy)} (chance {accuracy['chance']:.2f}) and an AUC of {interval(auc)} "
        f"(chance 0.50), by patients that the regression has not seen.{left_out} "
        "Where this is far above chance, a model can learn any tie between class and site in its "
        f"training slides; read the site floor and the figures of sites left out.{beware}"
    )
