"""What the intervals and tests of `wsi.evaluation` say of simulated cohorts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.coverage.cohorts import Design, predictions, streams
from wsi.evaluation import METRICS, compare
from wsi.evaluation.intervals import bootstrap, draw_weights
from wsi.evaluation.sample import make_sample, statistic
from wsi.specs import EvaluateSpec

PAIRED = (Design("40 patients", 40), Design("100 patients", 100))
"""Cohorts on which two equally good models are compared."""

METRIC_NAMES = ("macro_f1", "auc")
LEVEL = 0.95
OUTSIDE = "outside"
TESTS = {
    "p": "paired bootstrap, p < .05",
    OUTSIDE: "its interval without 0",
    "delong": "DeLong, p < .05",
    "mcnemar": "McNemar, p < .05",
}
"""What may tell two models apart, by name in the records."""

_AT_ONCE = 25  # cohorts a process takes

Record = dict[str, Any]


@dataclass(frozen=True)
class Covered:
    """How often intervals hold the truth.

    Attributes:
        cohorts: those with an interval; `without` are the others.
        below, above: intervals that lie wholly below or above the truth.
        lacking: cohorts without a slide of some class.
        lacking_missed: intervals of these that do not hold the truth.
    """

    truth: float
    cohorts: int
    without: int
    below: int
    above: int
    mean: float
    width: float
    lacking: int
    lacking_missed: int


def intervals_of(design: Design, cohorts: range, replicates: int) -> list[Record]:
    """Return value and bounds of every metric, for each cohort."""
    records = []
    for k, rng in zip(cohorts, streams(design, cohorts), strict=True):
        sample = make_sample(predictions(design, rng)[0])
        spec = EvaluateSpec(replicates=replicates, seed=k, level=LEVEL)
        weights = draw_weights(sample.strata, spec)
        support = np.bincount(sample.runs[0].y, minlength=len(sample.classes))
        record: Record = {"lacking": bool((support == 0).any())}
        for name in METRIC_NAMES:
            found = bootstrap(
                statistic(METRICS[name], sample), weights, sample.strata, LEVEL, sample.sizes
            )
            record[name] = (found.value, found.low, found.high)
        records.append(record)
    return records


def covered(records: list[Record], truth: Mapping[str, float]) -> dict[str, Covered]:
    """Return how often the intervals of each metric hold the truth."""
    lacking = np.array([record["lacking"] for record in records])
    by_name = {name: np.array([record[name] for record in records]) for name in truth}
    return {name: _covered(found, truth[name], lacking) for name, found in by_name.items()}


def _covered(found: np.ndarray, truth: float, lacking: np.ndarray) -> Covered:
    value, low, high = found.T
    known = ~np.isnan(low)
    missed = (high < truth) | (low > truth)
    return Covered(
        truth=truth,
        cohorts=int(known.sum()),
        without=int((~known).sum()),
        below=int((high[known] < truth).sum()),
        above=int((low[known] > truth).sum()),
        mean=float(np.nanmean(value)),
        width=float((high - low)[known].mean()),
        lacking=int((lacking & known).sum()),
        lacking_missed=int((lacking & missed).sum()),
    )


def differences_of(design: Design, cohorts: range, replicates: int) -> list[Record]:
    """Return, for each cohort, the p values and intervals of two equally good models."""
    records = []
    for k, rng in zip(cohorts, streams(design, cohorts), strict=True):
        runs = list(zip("ab", predictions(design, rng, models=2), strict=True))
        spec = EvaluateSpec(replicates=replicates, seed=k, level=LEVEL)
        record: Record = {}
        for name in METRIC_NAMES:
            (row,) = compare(runs, name, spec)["differences"]
            tests = {test: of["p"] for test, of in row["tests"].items()}
            outside = None if row["low"] is None else not row["low"] <= 0 <= row["high"]
            record[name] = {"p": row["p"], OUTSIDE: outside, **tests}
        records.append(record)
    return records


def false_positives(records: list[Record]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return by metric and test how many cohorts tell equal models apart at 5 %, of how many."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for metric in METRIC_NAMES:
        found[metric] = {}
        for test in TESTS:
            values = [v for record in records if (v := record[metric].get(test)) is not None]
            if values:
                hits = sum(v if test == OUTSIDE else v < 1 - LEVEL for v in values)
                found[metric][test] = int(hits), len(values)
    return found


def many(
    make: Callable[[Design, range, int], list[Record]],
    design: Design,
    cohorts: int,
    replicates: int,
    jobs: int,
) -> list[Record]:
    """Return the records of all cohorts, in order, made by several processes."""
    ranges = list(_chunks(cohorts))
    if jobs < 2:
        return [record for chunk in ranges for record in make(design, chunk, replicates)]
    n = len(ranges)
    with ProcessPoolExecutor(jobs) as pool:
        found = pool.map(make, [design] * n, ranges, [replicates] * n)
        return [record for records in found for record in records]


def _chunks(cohorts: int) -> Iterator[range]:
    for start in range(0, cohorts, _AT_ONCE):
        yield range(start, min(start + _AT_ONCE, cohorts))
