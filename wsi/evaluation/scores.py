"""Scores of one predictions table: metrics.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsi.evaluation.calibration import at_temperatures, reliability, temperatures_of, unsettled
from wsi.evaluation.information_scores import information
from wsi.evaluation.intervals import (
    FEW_PATIENTS,
    Interval,
    Resampled,
    Score,
    draw_weights,
    interval_of,
    resample,
)
from wsi.evaluation.metrics import (
    Metric,
    classes_used,
    confusion_matrix,
    defined,
    metric_named,
    per_class,
)
from wsi.evaluation.operating_points import operating_points
from wsi.evaluation.predictions import Predictions
from wsi.evaluation.sample import Sample, lacking_a_class, make_sample, point, statistic
from wsi.findings import few
from wsi.specs import EvaluateSpec

SCHEMA = "wsi-metrics/1"
SMALL_CLASS = 5
HEADLINE = (
    "macro_f1",
    "auc",
    "micro_f1",
    "balanced_accuracy",
    "average_precision",
    "nll",
    "brier",
    "ece",
)
"""What is scored by default; for ordered classes `ORDERED`."""

ORDERED = (*HEADLINE[:2], "quadratic_kappa", *HEADLINE[2:])
CALIBRATED = ("nll", "brier", "ece")


def evaluate(
    predictions: Predictions,
    spec: EvaluateSpec | None = None,
    metrics: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return all scores of the test rows, ready for metrics.json: numbers, text and None.

    Headline values are means over seeds; the ensemble of seeds is a separate entry. Decisions
    (F1, accuracy) pool the out-of-fold rows; AUC, average precision and calibration are means over
    the folds where they are defined, with the pooled value beside. Intervals are patient-clustered
    bootstrap intervals; they say nothing about the spread over seeds, which is `seeds_sd`.

    Args:
        metrics: names; when not given `HEADLINE`, with quadratic_kappa where classes are ordered.

    Raises:
        PredictionsError: no test rows, missing labels, or seeds over different slides.
        UnknownNameError: an unknown metric.
    """
    spec = spec or EvaluateSpec()
    names = metrics or (ORDERED if predictions.ordered else HEADLINE)
    chosen = [metric_named(name) for name in names]
    sample = make_sample(predictions)
    by = {name: _by(name, sample, chosen, spec) for name in ("site", "cohort")}
    several = len(sample.seeds) > 1
    weights = draw_weights(sample.strata, spec)
    return {
        "schema": SCHEMA,
        "classes": list(sample.classes),
        "ordered": predictions.ordered,
        "decision": predictions.decision,
        "labels_from": predictions.labels_from or None,
        "scored": sample.unit,
        "n": sample.n,
        "n_patients": len(sample.patients),
        "level": spec.level,
        "replicates": spec.replicates,
        **_headline(sample, chosen, spec),
        "per_class": _per_class(sample),
        "information": information(sample, predictions.head, weights, spec.level),
        "confusion": _confusion(sample),
        "reliability": reliability(sample, weights, spec.level),
        "calibrated": _calibrated(predictions, sample, spec),
        "operating_points": operating_points(sample, predictions.calibration, weights, spec.level),
        "seeds": _seeds(sample, chosen),
        "ensemble": _scores(sample.ensemble(), chosen, spec) if several else None,
        "folds": _folds(sample, chosen),
        "by": {name: groups for name, groups in by.items() if groups},
        "worst_site": _worst(by["site"], chosen),
        "coverage": _coverage(predictions, sample),
        "notes": _notes(predictions, sample),
    }


@dataclass(frozen=True)
class Draw:
    """One draw of patients, which serves every metric of a sample."""

    sample: Sample
    spec: EvaluateSpec
    weights: np.ndarray
    lacking: int

    @staticmethod
    def of(sample: Sample, spec: EvaluateSpec) -> Draw:
        weights = draw_weights(sample.strata, spec)
        return Draw(sample, spec, weights, lacking_a_class(sample, weights))

    def resampled(self, metric: Metric) -> Resampled:
        """Return the metric of every replicate."""
        return resample(statistic(metric, self.sample), self.weights)

    def interval(self, resampled: Resampled) -> Interval:
        """Return the interval of what was resampled under this draw."""
        sample = self.sample
        return interval_of(resampled, sample.strata, self.spec.level, sample.sizes)

    def score(self, metric: Metric, resampled: Resampled) -> Score:
        """Return the metric with its interval."""
        sample, interval = self.sample, self.interval(resampled)
        return Score(
            metric.name,
            defined(interval.value),
            defined(interval.low),
            defined(interval.high),
            sample.n,
            len(sample.patients),
            note=self._note(metric, interval),
        )

    def _note(self, metric: Metric, interval: Interval) -> str:
        P, R = len(self.sample.patients), self.weights.shape[1]
        if np.isnan(interval.value):
            return "undefined: only one class present"
        if P < 2:
            return "no interval: one patient"
        notes = []
        if P < FEW_PATIENTS:
            notes.append(f"interval expanded: {P} patients, fewer than {FEW_PATIENTS}")
        if self.lacking:
            notes.append(f"{self.lacking} of {R} replicates lack a class")
        if interval.undefined:
            notes.append(f"{interval.undefined} of {R} replicates undefined and left out")
        if interval.one_sided:
            notes.append("no interval: resampling shifts this figure to one side")
        elif np.isnan(interval.low):
            notes.append("no interval: no replicate is defined")
        elif interval.low == interval.high:
            notes.append(_of_one_point(metric, interval, self.sample.n))
        if metric.name == "macro_f1":
            notes += _small_classes(self.sample)
        return "; ".join(notes)


def _of_one_point(metric: Metric, interval: Interval, n: int) -> str:
    seen = "no misranked pair" if metric.name == "auc" else "no error"
    perfect = interval.value == (1.0 if metric.higher_is_better else 0.0)
    why = f"{seen} was seen in {n} slides" if perfect else "nothing varies"
    return f"degenerate interval: {why}, so all replicates are equal and its width means nothing"


def _small_classes(sample: Sample) -> list[str]:
    counts = np.bincount(sample.runs[0].y, minlength=len(sample.classes))
    small = [f"{name} ({n})" for name, n in zip(sample.classes, counts) if n < SMALL_CLASS]
    return [f"fewer than {SMALL_CLASS} {sample.unit}s of {', '.join(small)}"] if small else []


def _scores(sample: Sample, metrics: Sequence[Metric], spec: EvaluateSpec) -> dict[str, Any]:
    """Return value, bounds, counts and note of each metric."""
    draw = Draw.of(sample, spec)
    return {metric.name: score_of(draw, metric, draw.resampled(metric)) for metric in metrics}


def score_of(draw: Draw, metric: Metric, resampled: Resampled) -> dict[str, Any]:
    """Return a score, ready for JSON, of a metric as it was resampled under a draw."""
    score = asdict(draw.score(metric, resampled))
    del score["metric"]
    sample = draw.sample
    if metric.averages != "none":
        used = classes_used(sample.runs[0].y, len(sample.classes), metric.averages)
        score["classes_used"] = used
    return score


def _headline(sample: Sample, metrics: Sequence[Metric], spec: EvaluateSpec) -> dict[str, Any]:
    """Return the scores over all folds and seeds, each with the spread of seeds and folds."""
    scores = _scores(sample, metrics, spec)
    for metric in metrics:
        score = scores[metric.name]
        values = [point(metric, sample.of_seed(k)) for k in range(len(sample.seeds))]
        score["seeds_sd"] = _sd(values)
        if metric.of == "probabilities":
            per_fold = [point(metric, sample.where(rows)) for rows in _fold_masks(sample).values()]
            score["folds_defined"] = int(np.isfinite(per_fold).sum())
            score["folds"] = len(per_fold)
            score["pooled"] = defined(point(metric, sample.pooled()))
    return scores


def _calibrated(predictions: Predictions, sample: Sample, spec: EvaluateSpec) -> dict[str, Any]:
    """Return the calibration metrics at the temperatures that validation settled."""
    temperatures, reason = temperatures_of(sample, predictions.calibration)
    found: dict[str, Any] = {"temperatures": temperatures, "reason": reason}
    found["note"] = unsettled(temperatures)
    if reason:
        return found | dict.fromkeys(CALIBRATED)
    metrics = [metric_named(name) for name in CALIBRATED]
    return found | _headline(at_temperatures(sample, temperatures), metrics, spec)


def _sd(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def _per_class(sample: Sample) -> dict[str, dict[str, float | int | None]]:
    """Return the figures of each class, the mean over seeds where defined; AUC over pooled rows."""
    by_seed = [per_class(rows.y, rows.p, rows.decided) for rows in sample.runs]
    result: dict[str, dict[str, float | int | None]] = {}
    for c, name in enumerate(sample.classes):
        result[name] = {}
        for key in by_seed[0][c]:
            values = [value for seed in by_seed if (value := seed[c][key]) is not None]
            mean = float(np.mean(values)) if values else None
            result[name][key] = by_seed[0][c]["support"] if key == "support" else mean
    return result


def _confusion(sample: Sample) -> dict[str, Any]:
    C = len(sample.classes)
    counts = np.mean([confusion_matrix(r.y, r.decided, C) for r in sample.runs], axis=0)
    return {"rows": "true", "columns": "predicted", "mean_over_seeds": counts.tolist()}


def _seeds(sample: Sample, metrics: Sequence[Metric]) -> dict[str, dict[str, float | None]]:
    return {
        str(seed): {m.name: defined(point(m, sample.of_seed(k))) for m in metrics}
        for k, seed in enumerate(sample.seeds)
    }


def _fold_masks(sample: Sample) -> dict[int, np.ndarray]:
    fold = sample.runs[0].fold
    return {int(index): fold == index for index in np.unique(fold)}


def _folds(sample: Sample, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Return the metrics of every fold, and their mean, sd and count over folds."""
    each = {}
    for index, rows in _fold_masks(sample).items():
        part = sample.where(rows)
        values = {metric.name: defined(point(metric, part)) for metric in metrics}
        each[str(index)] = {"n": part.n, "n_patients": len(part.patients), **values}
    summary = {}
    for metric in metrics:
        known = [v for fold in each.values() if (v := fold[metric.name]) is not None]
        mean = float(np.mean(known)) if known else None
        summary[metric.name] = {"mean": mean, "sd": _sd(known), "count": len(known)}
    return {"each": each, "summary": summary}


def _by(name: str, sample: Sample, metrics: Sequence[Metric], spec: EvaluateSpec) -> dict[str, Any]:
    """Return the scores of each site or cohort that is named."""
    values = sample.sites if name == "site" else sample.cohorts
    groups = {}
    for value in sorted(set(values) - {""}):
        part = sample.where(values == value)
        scores = _scores(part, metrics, spec)
        groups[str(value)] = {"n": part.n, "n_patients": len(part.patients), **scores}
    return groups


def _worst(sites: dict[str, Any], metrics: Sequence[Metric]) -> dict[str, Any]:
    """Return the site of the worst defined value of each metric, where sites differ in it.

    `sites` are all that have this value, of which `site` is the first.
    """
    worst = {}
    for metric in metrics:
        values = {s: v for s, g in sites.items() if (v := g[metric.name]["value"]) is not None}
        if len(set(values.values())) > 1:
            lowest = (min if metric.higher_is_better else max)(values.values())
            tied = [site for site, value in values.items() if value == lowest]
            worst[metric.name] = {"site": tied[0], "value": lowest, "sites": tied}
    return worst


def _coverage(predictions: Predictions, sample: Sample) -> dict[str, Any]:
    missing = dict(predictions.not_evaluable)
    total = sample.n + len(missing)
    return {
        "evaluable": sample.n,
        "total": total,
        "fraction": sample.n / total,
        "not_evaluable": missing,
    }


def _notes(predictions: Predictions, sample: Sample) -> list[str]:
    notes = list(predictions.notes)
    other = Counter(predictions.table["split"])
    left_out = {part: n for part, n in other.items() if part not in ("", "test")}
    if left_out:
        listed = ", ".join(f"{n} {part}" for part, n in sorted(left_out.items()))
        notes.append(f"rows of other parts were left out: {listed}")
    absent = [c for k, c in enumerate(sample.classes) if not (sample.runs[0].y == k).any()]
    if absent:
        notes.append(f"no {sample.unit} of {', '.join(absent)}: it counts 0 in macro-F1")
    if len(sample.runs[0].y) > sample.n:
        notes.append(f"some {sample.unit}s are tested in several folds; intervals allow for it")
    without = sorted(set(sample.slides[sample.sites == ""]))
    if without and len(without) < sample.n:
        notes.append(f"{len(without)} {sample.unit}s have no site: {few(without)}")
    if len(sample.seeds) == 1:
        notes.append("one seed: the spread over seeds is unknown")
    if predictions.not_evaluable:
        count = len(predictions.not_evaluable)
        notes.append(
            f"{count} {sample.unit}s could not be evaluated and are in no figure but coverage"
        )
    return notes
