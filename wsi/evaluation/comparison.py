"""Paired comparison of runs on the same slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation.information_scores import accuracy_ncmi
from wsi.evaluation.intervals import (
    FEW_PATIENTS,
    Resampled,
    draw_weights,
    expanded_p,
    interval_of,
    resample,
)
from wsi.evaluation.metrics import Metric, defined, metric_named
from wsi.evaluation.paired_tests import paired_tests
from wsi.evaluation.predictions import Predictions, other_classes
from wsi.evaluation.sample import Sample, make_sample, point, statistic
from wsi.findings import few
from wsi.specs import EvaluateSpec

SCHEMA = "wsi-comparison/1"
P_FROM = (
    "p is of the two-sided bootstrap test: how many replicates stray from the difference as far as "
    "it is from 0, expanded for few patients as the interval is; the interval (BCa) also corrects "
    "bias and skewness, so near its level the two need not agree"
)
"""What `p` is, beside an interval that is made another way."""


def compare(
    runs: Sequence[tuple[str, Predictions]],
    metric: str = "macro_f1",
    spec: EvaluateSpec | None = None,
    reference: str | None = None,
    controls: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return the runs with their intervals, and the difference of each to a reference.

    One draw of patients serves all runs (a paired, patient-clustered bootstrap). `p` is the share
    of replicates whose deviation from the observed difference is at least that difference, two
    sided (Efron & Tibshirani 1993, section 16.4), expanded for few patients as intervals are;
    `p_from` says so in words. `p_holm` is corrected for the number of differences (Holm 1979).

    Args:
        runs: names and predictions; the mean over seeds of each is compared.
        reference: name of the run to compare with; the first when not given. The best of several
            is no fair reference: it was picked by the same slides.
        controls: further references by name, with the runs compared with each; `p_holm` of each
            is corrected for its own number of differences.

    Raises:
        ConfigError: fewer than two runs, repeated names or an unknown reference or control.
        PredictionsError: the runs are of different classes, slides, patients or labels.
    """
    spec = spec or EvaluateSpec()
    chosen = metric_named(metric)
    names = [name for name, _ in runs]
    base = reference or (names[0] if names else "")
    further = dict(controls or {})
    wanted = {base, *further, *(name for those in further.values() for name in those)}
    if len(runs) < 2 or len(set(names)) < len(names) or not wanted <= set(names):
        raise ConfigError(
            f"cannot compare runs {', '.join(names) or 'of no name'} with "
            f"'{', '.join(sorted(wanted - set(names)) or [base])}' — "
            "give two or more runs of different names, the reference among them"
        )
    samples = {name: make_sample(predictions) for name, predictions in runs}
    for name in names:
        refuse_other_slides(base, samples[base], name, samples[name])
    strata = samples[base].strata
    weights = draw_weights(strata, spec)
    resampled = {name: resample(statistic(chosen, samples[name]), weights) for name in names}
    training = {name: _training_slides(predictions) for name, predictions in runs}

    def differences(minus: str, of: Sequence[str]) -> list[dict[str, Any]]:
        made = []
        for name in of:
            if name == minus:
                continue
            pair = samples[name], samples[minus]
            known = training[name] if training[name] == training[minus] else None
            tests = paired_tests(chosen, *pair, spec.level, known, (name, minus))
            made.append(_difference(name, minus, resampled, samples[base], spec) | {"tests": tests})
        _add_holm(made)
        return made

    more = {"controls": {k: differences(k, of) for k, of in further.items()}} if further else {}
    return {
        "schema": SCHEMA,
        "metric": metric,
        "higher_is_better": chosen.higher_is_better,
        "reference": base,
        "level": spec.level,
        "p_from": P_FROM,
        "scored": samples[base].unit,
        "n": samples[base].n,
        "n_patients": len(strata),
        "runs": [_run(chosen, n, samples[n], resampled[n], strata, spec) for n in names],
        "differences": differences(base, names),
        "by_site": _by_site(chosen, samples, base, spec),
        "accuracy_ncmi": accuracy_ncmi(samples),
        "notes": [
            *_order_notes(chosen, runs),
            *_labels_told(runs),
            *_notes(base, samples),
            *(f"{name}: {note}" for name, of in runs for note in of.notes),
        ],
        **more,
    }


def _labels_told(runs: Sequence[tuple[str, Predictions]]) -> list[str]:
    """Return which labels the runs are held against, where they say."""
    said = dict.fromkeys(predictions.labels_from for _, predictions in runs)
    return [f"labels: {line}" for line in said if line]


def _training_slides(predictions: Predictions) -> dict[int, int] | None:
    """Return the training slides by fold, where the predictions say."""
    head = predictions.head
    if head is None or not head.training_counts:
        return None
    return {fold: sum(counts) for fold, counts in head.training_counts.items()}


def _by_site(
    metric: Metric, samples: Mapping[str, Sample], base: str, spec: EvaluateSpec
) -> list[dict[str, Any]]:
    """Return the runs and their differences on each site alone, where there are several."""
    sites = samples[base].sites
    names = sorted(set(sites) - {""})
    if len(names) < 2:
        return []
    found = []
    # Tables of other tools may not say the sites: those of the reference hold for all.
    site_of = dict(zip(samples[base].slides, sites))
    all_sites = {name: np.array([site_of[s] for s in of.slides]) for name, of in samples.items()}
    for site in names:
        here = {name: of.where(all_sites[name] == site) for name, of in samples.items()}
        strata = here[base].strata
        weights = draw_weights(strata, spec)
        resampled = {n: resample(statistic(metric, sample), weights) for n, sample in here.items()}
        found.append(
            {
                "site": site,
                "n": here[base].n,
                "n_patients": len(here[base].patients),
                "runs": [_run(metric, n, here[n], resampled[n], strata, spec) for n in here],
                "differences": [
                    _difference(n, base, resampled, here[base], spec) for n in here if n != base
                ],
            }
        )
    return found


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down rule."""
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    ranked = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(ranked), 1)
    return corrected.tolist()


def _run(
    metric: Metric,
    name: str,
    sample: Sample,
    resampled: Resampled,
    strata: np.ndarray,
    spec: EvaluateSpec,
) -> dict[str, Any]:
    interval = interval_of(resampled, strata, spec.level, sample.sizes)
    values = [point(metric, sample.of_seed(k)) for k in range(len(sample.seeds))]
    return {
        "name": name,
        "value": defined(interval.value),
        "low": defined(interval.low),
        "high": defined(interval.high),
        "seeds": len(values),
        "seeds_sd": defined(float(np.std(values, ddof=1))) if len(values) > 1 else None,
        "by_seed": {str(seed): defined(v) for seed, v in zip(sample.seeds, values, strict=True)},
    }


def _difference(
    name: str,
    base: str,
    resampled: Mapping[str, Resampled],
    sample: Sample,
    spec: EvaluateSpec,
) -> dict[str, Any]:
    interval = interval_of(
        resampled[name] - resampled[base], sample.strata, spec.level, sample.sizes
    )
    p = None
    if not np.isnan(interval.low):
        farther = np.abs(interval.replicates - interval.value) >= abs(interval.value)
        share = float((1 + farther.sum()) / (1 + len(farther)))
        p = expanded_p(share, sample.strata, sample.sizes)
    return {
        "name": name,
        "minus": base,
        "value": defined(interval.value),
        "low": defined(interval.low),
        "high": defined(interval.high),
        "p": p,
        "undefined_replicates": interval.undefined,
    }


def _add_holm(differences: list[dict[str, Any]]) -> None:
    known = [difference for difference in differences if difference["p"] is not None]
    for difference in differences:
        difference["p_holm"] = None
    for difference, corrected in zip(known, holm([d["p"] for d in known])):
        difference["p_holm"] = corrected


def refuse_other_slides(base: str, first: Sample, name: str, other: Sample) -> None:
    """Raise PredictionsError unless both are of the same classes, slides, patients and labels."""
    if first.classes != other.classes:
        raise PredictionsError(
            f"{base} has the classes {', '.join(first.classes)}, {name} "
            f"{other_classes(first.classes, other.classes)} — compare runs of one task, trained "
            "with one data.classes"
        )
    if first.unit != other.unit:
        raise PredictionsError(
            f"{base} predicts {first.unit}s, {name} {other.unit}s — compare patients: "
            "`wsi compare --level patient` brings slides to their patients"
        )
    units = f"{first.unit}s"
    for what, of_sample in ((units, _slides), ("patients", _patients), ("labels", _labels)):
        mine, theirs = of_sample(first), of_sample(other)
        if mine != theirs:
            differing = sorted({row[0] for row in mine ^ theirs})
            raise PredictionsError(
                f"{base} and {name} have different {what} for {len(differing)} {units}: "
                f"{few(differing)} — compare predictions of the same {units} and labels"
            )


def _slides(sample: Sample) -> set[tuple[str, ...]]:
    return {(str(slide),) for slide in sample.slides}


def _patients(sample: Sample) -> set[tuple[str, ...]]:
    owners = (sample.patients[code] for code in sample.runs[0].patient)
    return {(str(slide), patient) for slide, patient in zip(sample.slides, owners)}


def _labels(sample: Sample) -> set[tuple[str, ...]]:
    return {(str(s), sample.classes[y]) for s, y in zip(sample.slides, sample.runs[0].y)}


def _order_notes(metric: Metric, runs: Sequence[tuple[str, Predictions]]) -> list[str]:
    if metric.name != "quadratic_kappa" or all(of.ordered for _, of in runs):
        return []
    order = " < ".join(runs[0][1].classes)
    return [f"quadratic_kappa takes the classes as grades, {order}, which the runs do not say"]


def _notes(base: str, samples: dict[str, Sample]) -> list[str]:
    notes = []
    n_patients = len(samples[base].patients)
    if n_patients < FEW_PATIENTS:
        notes.append(f"intervals expanded: {n_patients} patients, fewer than {FEW_PATIENTS}")
    folds = {tuple(zip(s.slides, s.runs[0].fold)) for s in samples.values()}
    if len(folds) > 1:
        notes.append("the runs were trained on different folds: part of a difference is the split")
    counts = {name: len(sample.seeds) for name, sample in samples.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {n}" for name, n in counts.items())
        notes.append(f"the runs have different numbers of seeds: {listed}")
    elif set(counts.values()) == {1}:
        notes.append("one seed each: the spread over seeds is unknown")
    return notes
