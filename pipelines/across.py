"""Several cohorts side by side: said, and written as tables for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.console import Console
from wsi.evaluation import Predictions, evaluate
from wsi.evaluation.across_cohorts import CohortScores, across_cohorts, cohorts_of
from wsi.files import publish_bytes, publish_json
from wsi.report.cohort_tables import csv_text, latex, markdown, shown
from wsi.specs import EvaluateSpec


def scores_by_cohort(
    name: str, predictions: Predictions, metrics: dict[str, Any], spec: EvaluateSpec
) -> list[CohortScores]:
    """Return the scores of each cohort in one source, which names it where its rows do not."""
    parts = cohorts_of(predictions)
    if len(parts) == 1:
        (cohort,) = parts
        return [CohortScores(cohort or name, name, predictions, metrics)]
    return [
        CohortScores(cohort or f"{name}, no cohort named", name, part, evaluate(part, spec))
        for cohort, part in parts.items()
    ]


def written_cohorts(
    parts: Sequence[CohortScores], out: Path | None, console: Console
) -> dict[str, Any]:
    """Return a row per cohort and their mean; with `out` also write them."""
    found = across_cohorts(parts)
    if out is not None:
        publish_json(out / "cohorts.json", found)
        for suffix, text in (("md", markdown), ("csv", csv_text), ("tex", latex)):
            publish_bytes(out / f"cohorts.{suffix}", text(found).encode())
        console.say(f"wrote {out / 'cohorts.json'}, .md, .csv and .tex")
    return found


def show_cohorts(found: dict[str, Any], console: Console) -> None:
    """Print a row per cohort."""
    console.table(*shown(found), "cohorts")
    for note in found["notes"]:
        console.say(f"note: {note}")
