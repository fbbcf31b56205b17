"""Scores of floors, and the paired difference of a run to each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wsi.evaluation.comparison import refuse_other_slides
from wsi.evaluation.metrics import METRICS, defined, metric_named
from wsi.evaluation.predictions import Predictions
from wsi.evaluation.sample import make_sample
from wsi.evaluation.scores import Draw, score_of
from wsi.specs import EvaluateSpec

FLOOR_METRICS = ("macro_f1", "auc", "micro_f1", "balanced_accuracy")
JUDGED_BY = ("macro_f1", "auc")
"""The metrics in which a run has to be above its floors."""


def score_floors(
    run: Predictions,
    floors: Mapping[str, Predictions],
    spec: EvaluateSpec | None = None,
    notes: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the scores of each floor by name, ready for JSON.

    Each score is one of `evaluate`, and holds as `run_minus_floor` the difference of the run to the
    floor, with an interval from the same draws of patients for both.

    Args:
        floors: by name.
        notes: what is to be known of a floor, by its name.

    Raises:
        PredictionsError: a floor is of other slides, patients, classes or labels than the run.
    """
    spec = spec or EvaluateSpec()
    metrics = [metric_named(name) for name in FLOOR_METRICS]
    draw = Draw.of(make_sample(run), spec)
    of_run = {metric.name: draw.resampled(metric) for metric in metrics}
    found = {}
    for name, floor in floors.items():
        sample = make_sample(floor)
        refuse_other_slides("the run", draw.sample, f"floor {name}", sample)
        beside = replace(draw, sample=sample)  # the same patients, drawn together
        scores: dict[str, Any] = {}
        for metric in metrics:
            resampled = beside.resampled(metric)
            difference = draw.interval(of_run[metric.name] - resampled)
            scores[metric.name] = score_of(beside, metric, resampled) | {
                "run_minus_floor": {
                    key: defined(getattr(difference, key)) for key in ("value", "low", "high")
                }
            }
        found[name] = scores | {"note": (notes or {}).get(name, "")}
    return found


def not_above(floors: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return, by metric, the floors that a run is not shown to be above: the interval reaches 0."""
    found = {}
    for metric in JUDGED_BY:
        reached = [
            name
            for name, one in _differences(floors, metric).items()
            if one["low"] is None or one["low"] <= 0
        ]
        found |= {metric: reached} if reached else {}
    return found


def conclusion(floors: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what a reader should take from `score_floors`, in one line."""
    reached = not_above(floors)
    if reached:
        told = "; ".join(f"{', '.join(of)} in {_title(metric)}" for metric, of in reached.items())
        return (
            f"not shown to be above these floors: {told} (the interval of the difference reaches "
            "0) — these slides do not show that the model sees more than they do"
        )
    judged = [_title(metric) for metric in JUDGED_BY if _differences(floors, metric)]
    return (
        f"above every floor in {' and '.join(judged)}: the interval of each difference lies above 0"
    )


def _differences(floors: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Return the defined differences of the run to each floor, by its name."""
    found = {name: scores[metric]["run_minus_floor"] for name, scores in floors.items()}
    return {name: one for name, one in found.items() if one["value"] is not None}


def _title(metric: str) -> str:
    return METRICS[metric].title.partition(" (")[0]
