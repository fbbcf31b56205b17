"""What a sweep found: a row per trial, the best on validation, and what to know about it."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from pipelines.console import counted
from pipelines.sweep.book import FITS, REASON, name_of, word_of
from pipelines.sweep.plan import Plan
from pipelines.sweep.space import Space, shown

Json = dict[str, Any]
SCHEMA = "wsi-sweep/1"
_DIGITS = 9  # means that differ by less are the same number, summed in another order
_FEW_TRIALS = 10


def rows_of(trials: Sequence[FrozenTrial], space: Space) -> list[Json]:
    """Return one row per trial: trial, state, values, validation, sd, nll, fits, seconds, reason.

    `validation` is the mean over folds and seeds, `sd` that over folds of the means over seeds.
    """
    return [_row(trial, space) for trial in trials]


def _row(trial: FrozenTrial, space: Space) -> Json:
    fits = trial.user_attrs.get(FITS, {})
    complete = word_of(trial) == "complete"
    folds = _folds(fits)
    return {
        "trial": trial.number,
        "state": word_of(trial),
        "values": {one.key: trial.params[one.key] for one in space},
        "validation": trial.value if complete else None,
        "sd": float(np.std(folds, ddof=1)) if complete and len(folds) > 1 else None,
        "folds": folds,
        "nll": float(np.mean([one["nll"] for one in fits.values()])) if complete else None,
        "fits": len(fits),
        "seconds": round(sum(one["seconds"] for one in fits.values()), 2),
        "reason": trial.user_attrs.get(REASON),
    }


def _folds(fits: Mapping[str, Json]) -> list[float]:
    """Return the validation figure of each fold, a mean over its seeds."""
    found: dict[int, list[float]] = {}
    for name in sorted(fits):
        if not fits[name]["failed"]:
            fold = int(name.removeprefix("fold").partition("-")[0])
            found.setdefault(fold, []).append(fits[name]["monitor"])
    return [float(np.mean(found[fold])) for fold in sorted(found)]


def best_of(rows: Sequence[Json], *, lower: bool) -> Json | None:
    """Return the complete trial of the best figure, ties going to the smaller NLL, then number.

    None where no trial is complete.
    """

    def key(row: Json) -> tuple[float, float, int]:
        value = row["validation"] if lower else -row["validation"]
        return round(value, _DIGITS), round(row["nll"], _DIGITS), row["trial"]

    return min((row for row in rows if row["state"] == "complete"), key=key, default=None)


def edges_of(best: Json, space: Space) -> dict[str, str]:
    """Return which settings of a trial lie at an end of what was searched, and at which."""
    found = {one.key: one.edge(best["values"][one.key]) for one in space}
    return {key: edge for key, edge in found.items() if edge}


def warnings_of(rows: Sequence[Json], best: Json, space: Space) -> list[str]:
    """Return what may have gone wrong: edges, few trials, failed ones."""
    said = [
        f"{key}={shown(best['values'][key])} of the best trial lies at the {end} end of its range "
        "— a better one may lie beyond; widen sweep.space"
        for key, end in edges_of(best, space).items()
    ]
    reasons = Counter(row["reason"] for row in rows if row["state"] == "failed")
    if reasons:
        told, n = reasons.most_common(1)[0]
        failed = counted(sum(reasons.values()), "trial")
        said.append(f"{failed} failed, {n} of them so: {told}")
    if len(rows) < _FEW_TRIALS:
        said.append(f"{counted(len(rows), 'trial')}: the best of so few says little of the rest")
    return said


def notes_of(rows: Sequence[Json], best: Json, plan: Plan) -> list[str]:
    """Return how the figure of the best trial is to be read."""
    n = sum(row["state"] == "complete" for row in rows)
    said = [
        f"the validation figure of {name_of(best['trial'])} is the best of {n}, and so optimistic: "
        "report its test figures, read once"
    ]
    if best["sd"] is not None:
        error = best["sd"] / math.sqrt(len(best["folds"]))
        near = sum(
            row["state"] == "complete" and abs(row["validation"] - best["validation"]) <= error
            for row in rows
        )
        others = counted(near - 1, "other trial") if near > 1 else "no other trial"
        said.append(
            f"{others} within one standard error over folds "
            f"({error:.3g}) of it: differences of that size are noise"
        )
    if len(plan.config.fit.seeds) == 1:
        said.append("one seed: train best.yaml with fit.seeds=5 before reporting")
    return said


def results(
    rows: Sequence[Json], best: Json, plan: Plan, warnings: Sequence[str], notes: Sequence[str]
) -> Json:
    """Return everything about a sweep, ready for results.json."""
    cohort = plan.material.cohort
    return {
        "schema": SCHEMA,
        "cohort": cohort.name,
        "classes": list(cohort.classes),
        "slides": len(cohort.rows),
        "patients": len({row.patient_id for row in cohort.rows}),
        "label": plan.config.data.label,
        "aggregator": plan.config.aggregator.model_dump(mode="json"),
        "objective": plan.config.objective.model_dump(mode="json"),
        "monitor": plan.config.fit.monitor,
        "higher_is_better": not plan.lower,
        "sampler": plan.config.sweep.sampler,
        "seed": plan.config.sweep.seed,
        "prune": plan.config.sweep.prune,
        "space": {one.key: one.to_json() for one in plan.space},
        "folds": len(plan.splits.folds),
        "seeds": list(plan.config.fit.seeds),
        "epochs": plan.config.fit.epochs,
        "splits_sha256": plan.splits.hash,
        "fits": sum(row["fits"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "trials": list(rows),
        "best": {
            **{key: best[key] for key in ("trial", "values", "validation", "sd", "nll")},
            "run": name_of(best["trial"]),
            "edges": edges_of(best, plan.space),
        },
        "test": None,
        "warnings": list(warnings),
        "notes": list(notes),
    }


def as_csv(rows: Sequence[Json], space: Space) -> str:
    """Return one line per trial."""
    text = io.StringIO()
    keys = [one.key for one in space]
    columns = ["trial", "state", *keys, "validation", "sd", "fits", "seconds", "reason"]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **row["values"]} for row in rows)
    return text.getvalue()
