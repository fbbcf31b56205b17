"""Scores of several cohorts side by side, and their mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsi.errors import PredictionsError
from wsi.evaluation.metrics import METRICS
from wsi.evaluation.predictions import Predictions, other_classes
from wsi.findings import few

SCHEMA = "wsi-cohorts/1"
_KEPT = ("value", "low", "high", "note", "seeds_sd")


@dataclass(frozen=True, eq=False)
class CohortScores:
    """The scores of one cohort.

    Attributes:
        source: whose predictions they are, by name.
        metrics: as `evaluate` returns them.
    """

    cohort: str
    source: str
    predictions: Predictions
    metrics: Mapping[str, Any]


def cohorts_of(predictions: Predictions) -> dict[str, Predictions]:
    """Return the predictions of each cohort by its name; rows of no named cohort under ``""``."""
    names = predictions.table["cohort"]
    return {
        str(name): replace(predictions, table=predictions.table.loc[names == name])
        for name in sorted(set(names))
    }


def across_cohorts(parts: Sequence[CohortScores]) -> dict[str, Any]:
    """Return a row of scores per cohort and their mean, ready for cohorts.json.

    The mean is over cohorts, each counted once however large, where the metric is defined. It has
    no interval: a handful of cohorts is no sample of hospitals.

    Raises:
        PredictionsError: nothing given, or cohorts of different classes or units.
    """
    if not parts:
        raise PredictionsError("no cohort to put into a table — give predictions")
    _refuse_unlike(parts)
    first = parts[0].metrics
    names = [name for name in METRICS if name in first]
    return {
        "schema": SCHEMA,
        "classes": list(first["classes"]),
        "scored": first["scored"],
        "level": first["level"],
        "cohorts": [_row(part, names) for part in parts],
        "mean_over_cohorts": {name: _mean(parts, name) for name in names},
        "notes": _notes(parts),
    }


def _row(part: CohortScores, names: Sequence[str]) -> dict[str, Any]:
    metrics = part.metrics
    worst = metrics["worst_site"]
    scores = {name: {key: metrics[name].get(key) for key in _KEPT} for name in names}
    return {
        "cohort": part.cohort,
        "source": part.source,
        "labels_from": metrics["labels_from"],
        "decision": metrics["decision"],
        "n": metrics["n"],
        "n_patients": metrics["n_patients"],
        "sites": len(metrics["by"].get("site", {})),
        "coverage": metrics["coverage"]["fraction"],
        **scores,
        "worst_site": {name: _worst(metrics, name) for name in names if name in worst},
    }


def _worst(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the worst site of a metric with the size of the first of them."""
    found = metrics["worst_site"][name]
    group = metrics["by"]["site"][found["site"]]
    return found | {key: group[key] for key in ("n", "n_patients")}


def _mean(parts: Sequence[CohortScores], name: str) -> dict[str, Any]:
    known = [v for part in parts if (v := part.metrics[name]["value"]) is not None]
    return {
        "value": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "count": len(known),
    }


def _refuse_unlike(parts: Sequence[CohortScores]) -> None:
    first = parts[0]
    for part in parts[1:]:
        mine, theirs = first.metrics["classes"], part.metrics["classes"]
        if mine != theirs:
            raise PredictionsError(
                f"{first.source} has the classes {', '.join(mine)}, {part.source} "
                f"{other_classes(mine, theirs)} — put cohorts of one task into a table"
            )
        if first.metrics["scored"] != part.metrics["scored"]:
            raise PredictionsError(
                f"{first.source} predicts {first.metrics['scored']}s, {part.source} "
                f"{part.metrics['scored']}s — score all by patient: --level patient"
            )


def _notes(parts: Sequence[CohortScores]) -> list[str]:
    notes = []
    if len(parts) > 1:
        notes.append(
            f"the mean over {len(parts)} cohorts counts each once, whatever its size; it has no "
            "interval, as so few cohorts are no sample of hospitals"
        )
    for column, what in (("slide_id", "slides"), ("patient_id", "patients")):
        counts = Counter(x for part in parts for x in set(part.predictions.table[column]))
        twice = sorted(x for x, n in counts.items() if n > 1)
        if twice:
            notes.append(
                f"{len(twice)} {what} have the same id in several cohorts: {few(twice)} — if they "
                "are the same, the cohorts are not apart"
            )
    decisions: dict[str, str] = {}
    for part in parts:
        decisions.setdefault(part.metrics["decision"], part.source)
    if len(decisions) > 1:
        listed = "; ".join(f"{source}: {rule}" for rule, source in decisions.items())
        notes.append(f"decisions were made in different ways ({listed})")
    unsaid = sorted({part.cohort for part in parts if not part.metrics["labels_from"]})
    if unsaid and len(unsaid) < len(parts):
        notes.append(f"nobody said which labels {few(unsaid)} used")
    for part in parts:
        absent = [name for name, of in part.metrics["per_class"].items() if not of["support"]]
        if absent:
            notes.append(
                f"{part.cohort}: no {part.metrics['scored']} of {few(absent)}, which counts 0 in "
                "macro-F1, so that it is not of the same classes as elsewhere"
            )
    own = (f"{part.source}: {note}" for part in parts for note in part.predictions.notes)
    return [*notes, *dict.fromkeys(own)]
