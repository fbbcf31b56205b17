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

METRIC_NAMES = ("macro_f1", "auc")
LEVEL = 0.95
_AT_ONCE = 25  # cohorts a process takes

Record = dict[str, Any]


@dataclass(frozen=True)
class Covered:
    """How often intervals hold the truth.

    Attributes:
        cohorts: those with an interval; `without` are the others.
        below, above: intervals that lie wholly below or above the truth.
    """

    truth: float
    cohorts: int
    without: int
    below: int
    above: int
    mean: float
    width: float

    @property
    def share(self) -> float:
        """Return the share of intervals that hold the truth."""
        return 1 - (self.below + self.above) / self.cohorts


def intervals_of(design: Design, cohorts: range, replicates: int) -> list[Record]:
    """Return value and bounds of every metric, for each cohort."""
    records = []
    for k, rng in zip(cohorts, streams(design, cohorts), strict=True):
        sample = make_sample(predictions(design, rng)[0])
        spec = EvaluateSpec(replicates=replicates, seed=k, level=LEVEL)
        weights = draw_weights(sample.strata, spec)
        record: Record = {}
        for name in METRIC_NAMES:
            found = bootstrap(
                statistic(METRICS[name], sample), weights, sample.strata, LEVEL, sample.sizes
            )
            record[name] = (found.value, found.low, found.high)
        records.append(record)
    return records


def covered(records: list[Record], truth: Mapping[str, float]) -> dict[str, Covered]:
    """Return how often the intervals of each metric hold the truth."""
    return {name: _covered(np.array([r[name] for r in records]), truth[name]) for name in truth}


def _covered(found: np.ndarray, truth: float) -> Covered:
    value, low, high = found.T
    known = ~np.isnan(low)
    return Covered(
        truth=truth,
        cohorts=int(known.sum()),
        without=int((~known).sum()),
        below=int((high[known] < truth).sum()),
        above=int((low[known] > truth).sum()),
        mean=float(np.nanmean(value)),
        width=float((high - low)[known].mean()),
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
            record[name] = {"p": row["p"], "outside": outside, **tests}
        records.append(record)
    return records


def false_positives(records: list[Record], metric: str, test: str) -> tuple[int, int]:
    """Return how many cohorts tell equal models apart at 5 %, and how many are tested at all.

    Args:
        test: `p` of the paired bootstrap, `outside` for an interval without 0, or a test's name.
    """
    found = [record[metric].get(test) for record in records]
    known = [value for value in found if value is not None]
    hits = sum(value if test == "outside" else value < 1 - LEVEL for value in known)
    return int(hits), len(known)


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
