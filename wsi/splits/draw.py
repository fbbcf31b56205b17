"""Drawing folds: k-fold by patient, official parts, one site left out, or listed test sites.

Rows are sorted before any draw, so the order of the table never matters.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wsi.cohorts import Cohort, SlideRow
from wsi.errors import CohortError, ConfigError
from wsi.findings import few
from wsi.registry import suggest
from wsi.specs import SplitSpec, ValidationSpec
from wsi.splits.folds import PARTS, Fold, Splits, audited

Rows = list[SlideRow]
Cut = tuple[str, Mapping[str, Rows]]
"""The name of a fold and its rows by part; without a `val` part one is drawn from `train`."""


def make_splits(cohort: Cohort, spec: SplitSpec) -> Splits:
    """Return the folds that `spec` describes, validation taken from the training patients.

    Raises:
        ConfigError: an unknown test site.
        CohortError: too few patients, a slide without the site or part that is needed, an empty
            part, or a class absent from a training part.
        LeakageError: a patient would stand on two sides.
    """
    rows = sorted(cohort.rows, key=lambda row: (row.patient_id, row.slide_id))
    cuts = list(_CUTS[spec.kind](rows, spec))
    _refuse_unknown_patients(cohort, spec, cuts)
    folds = [_fold(index, cut, spec) for index, cut in enumerate(cuts)]
    drawn = any("val" not in parts for _, parts in cuts)
    return audited(folds, cohort, _settings(spec, folds, drawn))


def _refuse_unknown_patients(cohort: Cohort, spec: SplitSpec, cuts: Sequence[Cut]) -> None:
    """Raise CohortError where patients would be divided who are not known to be patients."""
    if cohort.record is None or cohort.record.patients_known:
        return
    drawn = any("val" not in parts for _, parts in cuts)
    if spec.kind == "kfold" or (drawn and spec.val.by == "patient"):
        what = (
            "split.kind=kfold divides" if spec.kind == "kfold" else "split.val.by=patient divides"
        )
        raise CohortError(
            f"cohort {cohort.name} does not know its patients, and {what} by patient — build its "
            "table with the patients, or use split.kind=official"
        )


def revalidated(splits: Splits, cohort: Cohort, spec: ValidationSpec, seed: int) -> Splits:
    """Return the same test parts with validation parts drawn anew from train and val by `spec`.

    Raises:
        CohortError: too few patients or sites, or a class absent from what is left to train on.
        LeakageError: a patient would stand on two sides.
    """
    by_id = {row.slide_id: row for row in cohort.rows}
    folds = []
    for fold in splits.folds:
        learnt = [by_id[slide_id] for slide_id in (*fold.train, *fold.val)]
        learnt.sort(key=lambda row: (row.patient_id, row.slide_id))
        chosen = validation_part(learnt, spec, seed, fold.index)
        train = tuple(sorted(row.slide_id for row in learnt if row.slide_id not in chosen))
        folds.append(Fold(fold.index, fold.name, train, tuple(sorted(chosen)), fold.test))
    settings = {"val": spec.model_dump(mode="json"), "leaking": spec.by == "slide"}
    return audited(folds, cohort, dict(splits.settings) | settings)


def _settings(spec: SplitSpec, folds: Sequence[Fold], drawn: bool) -> dict[str, Any]:
    settings = spec.model_dump(mode="json")
    settings["leaking"] = drawn and spec.val.by == "slide"
    settings["names"] = [fold.name for fold in folds]
    if not drawn:
        settings["val"] = "official"
    return settings


def _fold(index: int, cut: Cut, spec: SplitSpec) -> Fold:
    name, parts = cut
    if "val" not in parts:
        held_out = validation_part(parts["train"], spec.val, spec.seed, index)
        train = [row for row in parts["train"] if row.slide_id not in held_out]
        val = [row for row in parts["train"] if row.slide_id in held_out]
        parts = {**parts, "train": train, "val": val}
    return Fold(index, name, *(tuple(sorted(r.slide_id for r in parts[p])) for p in PARTS))


def _kfold(rows: Rows, spec: SplitSpec) -> Iterator[Cut]:
    """Yield folds grouped by patient and stratified by the labels of slides (scikit-learn)."""
    from sklearn.model_selection import StratifiedGroupKFold

    patients = [row.patient_id for row in rows]
    labels = [row.label or "" for row in rows]
    if len(set(patients)) < spec.folds:
        raise CohortError(
            f"{len(set(patients))} patients cannot fill {spec.folds} folds — lower split.folds"
        )
    if max(Counter(labels).values()) < spec.folds:
        raise CohortError(
            f"no class has as many slides as there are folds ({spec.folds}) — lower split.folds"
        )
    splitter = StratifiedGroupKFold(spec.folds, shuffle=True, random_state=spec.seed)
    with warnings.catch_warnings():
        # Rare classes are reported by the audit, fold by fold and by name.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        tests = [set(test) for _, test in splitter.split(rows, labels, patients)]
    for index, test in enumerate(tests):
        yield (
            str(index),
            _parted(rows, ["test" if k in test else "train" for k in range(len(rows))]),
        )


def _official(rows: Rows, _: SplitSpec) -> Iterator[Cut]:
    without = [row.slide_id for row in rows if row.split is None]
    if without:
        raise CohortError(
            f"{len(without)} slides have no official part: {few(without)} — "
            "fill the split column with train, val or test"
        )
    yield "official", _parted(rows, [row.split or "" for row in rows])


def _leave_one_site_out(rows: Rows, _: SplitSpec) -> Iterator[Cut]:
    sites = _sites(rows)
    if len(sites) < 2:
        raise CohortError(
            f"one site only ({sites[0]}): none can be left out — use split.kind=kfold"
        )
    for site in sites:
        yield site, _parted(rows, ["test" if row.site == site else "train" for row in rows])


def _listed_sites(rows: Rows, spec: SplitSpec) -> Iterator[Cut]:
    sites = _sites(rows)
    unknown = [site for site in spec.test if site not in sites]
    if unknown:
        raise ConfigError(
            f"split.test names unknown sites: {', '.join(unknown)}{suggest(unknown[0], sites)} — "
            f"the cohort has: {', '.join(sites)}"
        )
    yield "sites", _parted(rows, ["test" if row.site in spec.test else "train" for row in rows])


_CUTS = {
    "kfold": _kfold,
    "official": _official,
    "leave-one-site-out": _leave_one_site_out,
    "sites": _listed_sites,
}


def _parted(rows: Rows, parts: Sequence[str]) -> dict[str, Rows]:
    parted: dict[str, Rows] = {"train": [], "test": []}
    for row, part in zip(rows, parts):
        parted.setdefault(part, []).append(row)
    return parted


def _sites(rows: Rows) -> list[str]:
    without = [row.slide_id for row in rows if row.site is None]
    if without:
        raise CohortError(
            f"{len(without)} slides have no site: {few(without)} — fill the site column"
        )
    return sorted({str(row.site) for row in rows})


def validation_part(rows: Rows, spec: ValidationSpec, seed: int, index: int) -> set[str]:
    """Return the slide ids of a validation part taken from the training rows of a fold.

    Args:
        rows: sorted by patient and slide; their order enters the draw.
        index: of the fold.

    Raises:
        CohortError: too few patients or sites for one.
    """
    if spec.by == "site":
        sites = _sites(rows)
        if len(sites) < 2:
            raise CohortError(
                f"one training site only ({', '.join(sites)}): split.val.by=site leaves nothing "
                "to train on — use split.val.by=patient"
            )
        chosen = sites[(index + seed) % len(sites)]
        return {row.slide_id for row in rows if row.site == chosen}
    unit_of = {
        row.slide_id: row.patient_id if spec.by == "patient" else row.slide_id for row in rows
    }
    chosen = _drawn(_strata(rows, unit_of), spec, np.random.default_rng([seed, index]))
    return {slide_id for slide_id, unit in unit_of.items() if unit in chosen}


def _strata(rows: Rows, unit_of: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the units (patients or slides) by label; several labels count as the rarest."""
    frequency = Counter(row.label or "" for row in rows)
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[unit_of[row.slide_id]].add(row.label or "")
    strata: dict[str, list[str]] = defaultdict(list)
    for unit in sorted(labels):
        strata[min(labels[unit], key=lambda label: (frequency[label], label))].append(unit)
    return strata


def _drawn(
    strata: Mapping[str, list[str]], spec: ValidationSpec, rng: np.random.Generator
) -> set[str]:
    """Return `spec.fraction` of the units, spread over strata by largest remainder.

    No stratum is taken whole, so validation never robs training of a class.
    """
    total = max(1, round(spec.fraction * sum(len(units) for units in strata.values())))
    quota = {name: int(spec.fraction * len(units)) for name, units in strata.items()}
    by_remainder = sorted(
        strata, key=lambda name: (quota[name] - spec.fraction * len(strata[name]), name)
    )
    for name in by_remainder:
        if sum(quota.values()) < total and quota[name] + 1 < len(strata[name]):
            quota[name] += 1
    if not any(quota.values()):
        raise CohortError(
            f"too few training {spec.by}s of each class for a validation part — "
            "add slides or give an official one"
        )
    return {
        str(unit)
        for name in sorted(strata)
        for unit in rng.permutation(strata[name])[: quota[name]]
    }
