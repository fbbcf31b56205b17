"""The rows to be scored, coded for resampling, and metrics as functions of patient weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from wsi.errors import PredictionsError
from wsi.evaluation.intervals import Statistic, merge_small_strata
from wsi.evaluation.metrics import Metric, mean_defined
from wsi.evaluation.predictions import Predictions
from wsi.findings import few

Array = np.ndarray


@dataclass(frozen=True)
class Rows:
    """Predictions of one seed: y (n,), p (n, C), decided (n,), fold (n,), patient code (n,)."""

    y: Array
    p: Array
    decided: Array
    fold: Array
    patient: Array


@dataclass(frozen=True)
class Sample:
    """The same slides as predicted under each seed.

    Args:
        slides: slide id of each row, the same for all seeds.
        sites: site of each row.
        cohorts: cohort of each row.
        patients: patient ids; `Rows.patient` indexes them.
        strata: stratum of each patient.
        seeds: names of the runs.
        runs: rows by seed.
        unit: what a row is of: slide or patient.
    """

    classes: tuple[str, ...]
    slides: Array
    sites: Array
    cohorts: Array
    patients: tuple[str, ...]
    strata: Array
    seeds: tuple[int, ...]
    runs: tuple[Rows, ...]
    unit: str = "slide"

    @property
    def n(self) -> int:
        """Return the number of slides, or of patients where these are predicted."""
        return len(set(self.slides))

    @property
    def sizes(self) -> Array:
        """Return how many rows of a seed each patient has (P,)."""
        return np.bincount(self.runs[0].patient, minlength=len(self.patients))

    def where(self, chosen: Array) -> Sample:
        """Return the sample of the rows chosen by a mask (n,)."""
        codes, patient = np.unique(self.runs[0].patient[chosen], return_inverse=True)
        runs = tuple(
            Rows(r.y[chosen], r.p[chosen], r.decided[chosen], r.fold[chosen], patient)
            for r in self.runs
        )
        return replace(
            self,
            slides=self.slides[chosen],
            sites=self.sites[chosen],
            cohorts=self.cohorts[chosen],
            patients=tuple(self.patients[code] for code in codes),
            strata=merge_small_strata(self.strata[codes]),
            runs=runs,
        )

    def of_seed(self, k: int) -> Sample:
        """Return the sample with the k-th seed only."""
        return replace(self, seeds=self.seeds[k : k + 1], runs=self.runs[k : k + 1])

    def ensemble(self) -> Sample:
        """Return the sample whose only run has the mean probabilities, and their largest."""
        p = np.mean([rows.p for rows in self.runs], axis=0)
        rows = replace(self.runs[0], p=p, decided=p.argmax(axis=1))
        return replace(self, seeds=self.seeds[:1], runs=(rows,))

    def pooled(self) -> Sample:
        """Return the sample with all folds taken as one."""
        return replace(
            self, runs=tuple(replace(rows, fold=np.zeros_like(rows.fold)) for rows in self.runs)
        )


def make_sample(predictions: Predictions) -> Sample:
    """Return the labelled test rows of predictions, one run per seed.

    Raises:
        PredictionsError: no test rows, rows without a label, or seeds over different slides.
    """
    table = predictions.table.assign(y=predictions.y, decided=predictions.decided)
    table = table.loc[table["split"].isin(["", "test"])].sort_values(by=["slide_id", "fold"])
    if table.empty:
        parts = Counter(predictions.table["split"])
        listed = ", ".join(f"{n} {part}" for part, n in sorted(parts.items()))
        raise PredictionsError(
            f"no test rows to score ({listed or 'no rows'}): slides that trained a model do not "
            "test it — give predictions of others; `wsi predict --out-of-fold` makes them of a "
            "run's own slides"
        )
    unlabelled = sorted(set(table.loc[table["y"] < 0, "slide_id"]))
    if unlabelled:
        raise PredictionsError(
            f"{len(unlabelled)} slides have no label: {few(unlabelled)} — "
            "join the labels of a cohort table (--cohort)"
        )
    seeds = sorted(set(table["seed"]))
    by_seed = [table.loc[table["seed"] == seed] for seed in seeds]
    _refuse_different_slides(seeds, by_seed)
    patients = sorted(set(table["patient_id"]))
    code = {patient: k for k, patient in enumerate(patients)}
    first = by_seed[0]
    return Sample(
        predictions.classes,
        first["slide_id"].to_numpy(str),
        first["site"].to_numpy(str),
        first["cohort"].to_numpy(str),
        tuple(patients),
        merge_small_strata(_main_sites(first, patients)),
        tuple(int(seed) for seed in seeds),
        tuple(_rows(part, predictions.classes, code) for part in by_seed),
        predictions.unit,
    )


def _rows(table: pd.DataFrame, classes: Sequence[str], code: Mapping[str, int]) -> Rows:
    return Rows(
        table["y"].to_numpy(np.int64),
        table[[f"p_{name}" for name in classes]].to_numpy(np.float64),
        table["decided"].to_numpy(np.int64),
        table["fold"].to_numpy(np.int64),
        np.array([code[patient] for patient in table["patient_id"]]),
    )


def _refuse_different_slides(seeds: Sequence[int], by_seed: Sequence[pd.DataFrame]) -> None:
    """Raise PredictionsError unless every seed predicts the same slides in the same folds."""
    first = set(zip(by_seed[0]["slide_id"], by_seed[0]["fold"]))
    for seed, table in zip(seeds[1:], by_seed[1:]):
        differing = first ^ set(zip(table["slide_id"], table["fold"]))
        if differing:
            slides = sorted({slide_id for slide_id, _ in differing})
            raise PredictionsError(
                f"seeds {seeds[0]} and {seed} differ in {len(slides)} slides or their folds: "
                f"{few(slides)} — finish the run, or give one seed"
            )


def _main_sites(table: pd.DataFrame, patients: Sequence[str]) -> Array:
    """Return the site of each patient (P,), the one of most slides where there are several."""
    sites: dict[str, list[str]] = defaultdict(list)
    for patient, site in zip(table["patient_id"], table["site"]):
        sites[patient].append(site)
    return np.array([Counter(sorted(sites[p])).most_common(1)[0][0] for p in patients])


def statistic(metric: Metric, sample: Sample) -> Statistic:
    """Return the mean over seeds of a metric, as a function of patient weights (P, R).

    Decisions are pooled over folds; probability metrics are averaged over the folds where they
    are defined.
    """
    of_run = _of_decisions if metric.of == "decisions" else _of_probabilities
    runs = [of_run(metric, rows, len(sample.patients)) for rows in sample.runs]
    return lambda weights: np.mean([run(weights) for run in runs], axis=0)


def point(metric: Metric, sample: Sample) -> float:
    """Return the metric of a sample as it is; NaN where undefined."""
    return float(statistic(metric, sample)(np.ones((len(sample.patients), 1)))[0])


def lacking_a_class(sample: Sample, weights: Array) -> int:
    """Return in how many replicates a class that the sample has is missing."""
    rows = sample.runs[0]
    counts = np.zeros((len(sample.patients), len(sample.classes)))
    np.add.at(counts, (rows.patient, rows.y), 1)
    present = counts[:, counts.sum(axis=0) > 0]
    return int((present.T @ weights == 0).any(axis=0).sum())


def _of_decisions(metric: Metric, rows: Rows, P: int) -> Callable[[Array], Array]:
    C = rows.p.shape[1]
    cells = rows.y * C + rows.decided
    of_patient = np.bincount(rows.patient * C * C + cells, minlength=P * C * C).reshape(P, C * C)
    return lambda weights: metric.compute((weights.T @ of_patient).reshape(-1, C, C))


def _of_probabilities(metric: Metric, rows: Rows, P: int) -> Callable[[Array], Array]:
    folds = [np.flatnonzero(rows.fold == fold) for fold in np.unique(rows.fold)]

    def values(weights: Array) -> Array:
        by_fold = [metric.compute(rows.y[k], rows.p[k], weights[rows.patient[k]]) for k in folds]
        return mean_defined(np.stack(by_fold, axis=-1))

    return values
