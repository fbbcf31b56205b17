"""What a study found: test figures of every arm, and paired differences to rival and controls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipelines.fits import (
    UNKNOWN_PRIOR,
    Material,
    head_of,
    out_of_fold,
    read_probabilities,
)
from pipelines.floors import Floors
from pipelines.study.cells import PREDICTIONS, Summary
from pipelines.study.choices import Choice, Standing, best, standings
from pipelines.study.plan import CellId, Plan
from wsi.cohorts import Cohort
from wsi.evaluation import Predictions, compare, join_labels
from wsi.evaluation.floor_scores import conclusion, score_floors
from wsi.evaluation.information_scores import accuracy_ncmi
from wsi.evaluation.sample import make_sample
from wsi.specs import Config, EvaluateSpec, StudySpec

Json = dict[str, Any]


def selection_results(
    config: Config,
    chosen: Mapping[str, Choice],
    final: Mapping[CellId, Summary],
    runs: Sequence[tuple[str, Predictions]],
) -> Json:
    """Return everything about one way of validating, ready for results.json.

    Args:
        chosen: rate of each arm.
        final: the final fits of this selection.
        runs: what `predictions_of` returns for them.
    """
    lower = config.fit.monitor == "loss"
    by_arm = {one.arm: one for one in standings(final)}
    sound = [arm for arm, _ in runs]
    rival = best([by_arm[arm] for arm in sound if arm in config.study.rivals], lower=lower)
    result: Json = {
        "rival": rival.arm if rival else None,
        "best_on_validation": getattr(best([by_arm[a] for a in sound], lower=lower), "arm", None),
        "arms": {arm: _arm(chosen[arm], by_arm[arm]) for arm in chosen},
        "metrics": {},
        "accuracy_ncmi": accuracy_ncmi({arm: make_sample(made) for arm, made in runs}),
        "notes": [],
    }
    if rival is not None and len(runs) > 1:
        for metric in config.study.metrics:
            result["metrics"][metric] = against(
                runs, metric, rival.arm, config.study, config.evaluate
            )
        first = result["metrics"][config.study.metrics[0]]
        result["notes"] = first["notes"]
    return result


def beside_floors(
    runs: Sequence[tuple[str, Predictions]],
    arm: str | None,
    floors: Floors | None,
    spec: EvaluateSpec,
) -> Json | None:
    """Return the floors, and what the arm that is best on validation is worth beside them."""
    if floors is None or arm is None:
        return None
    scores = score_floors(dict(runs)[arm], floors.predictions, spec, floors.notes)
    return {"run": arm, "scores": scores, "note": conclusion(scores)}


def _arm(choice: Choice, validation: Standing) -> Json:
    return {
        "rate": choice.rate,
        "edge": choice.edge,
        "rates": [standing.to_json() for standing in choice.table],
        "validation": validation.to_json(),
    }


def predictions_of(
    plan: Plan, material: Material, truth: Cohort, final: Mapping[CellId, Summary]
) -> list[tuple[str, Predictions]]:
    """Return the labelled test predictions of every arm none of whose `final` fits failed.

    Args:
        truth: the slides with the labels that test predictions are scored against.
        final: the final fits of one selection.
    """
    by_arm: dict[str, dict[CellId, Summary]] = {}
    for cell, summary in final.items():
        by_arm.setdefault(cell.arm, {})[cell] = summary
    return [
        (arm, join_labels(_unlabelled(plan, material, fits), truth))
        for arm, fits in by_arm.items()
        if not any(summary["failed"] for summary in fits.values())
    ]


def _ordered(plan: Plan) -> bool:
    return any(config.data.ordered for config in plan.configs.values())


def _unlabelled(plan: Plan, material: Material, fits: Mapping[CellId, Summary]) -> Predictions:
    """Return the test predictions of one arm over all folds and seeds."""
    cohort, tables = material.cohort, []
    for cell in fits:
        table = read_probabilities(plan.folder(cell) / PREDICTIONS)
        tests = table[table["part"] == "test"].drop(columns="part")
        tables.append((cell.fold, cell.seed, tests))
    priors = [summary.get("predicts_prior", UNKNOWN_PRIOR) for summary in fits.values()]
    folds = {cell.fold: plan.fold(cell) for cell in fits}
    training = {k: Counter(plan.labels[s] for s in fold.train) for k, fold in folds.items()}
    counts = material.bag_ids.counts()
    made = out_of_fold(tables, cohort, cohort.classes, material.absent, counts)
    head = head_of(priors, training, len(cohort.classes))
    return replace(made, head=head, ordered=_ordered(plan))


def against(
    runs: Sequence[tuple[str, Predictions]],
    metric: str,
    rival: str,
    study: StudySpec,
    spec: EvaluateSpec,
) -> Json:
    """Return the figures of all arms in one metric, and their differences.

    Those to the rival are corrected over all arms (Holm); those of arms outside study.rivals to
    each control over these arms.
    """
    names = [name for name, _ in runs]
    tested = [name for name in names if name not in study.rivals]
    controls = {
        control: [name for name in tested if name != control]
        for control in study.controls
        if control in names and control != rival
    }
    controls = {control: others for control, others in controls.items() if others}
    found = compare(runs, metric, spec, rival, controls)
    keys = ("metric", "higher_is_better", "level", "p_from", "n", "n_patients", "runs")
    keys += ("differences",)
    more = {"controls": found.get("controls", {}), "notes": found["notes"]}
    return {key: found[key] for key in keys} | more


def selection_table(selections: Mapping[str, Json], headline: str) -> list[Json]:
    """Return what choosing the best arm on validation would have brought on the test parts.

    One row per selection: the arm chosen, its validation and test figures, and the best and the
    mean test figure of all arms, which nobody can choose without the test labels.
    """
    rows = []
    for selection, result in selections.items():
        metric = result["metrics"].get(headline)
        arm = result["best_on_validation"]
        if metric is None or arm is None:
            continue
        test = {run["name"]: run["value"] for run in metric["runs"] if run["value"] is not None}
        sign = 1 if metric["higher_is_better"] else -1
        top = max(test, key=lambda name: sign * test[name], default=None)
        rows.append(
            {
                "selection": selection,
                "chosen": arm,
                "validation": result["arms"][arm]["validation"]["monitor"],
                "test": test.get(arm),
                "best_on_test": top,
                "best_test": None if top is None else test[top],
                "mean_test": sum(test.values()) / len(test) if test else None,
            }
        )
    return rows
