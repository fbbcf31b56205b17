"""What a study found: test figures of every arm, and paired differences to rival and controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.fits import Material, out_of_fold, read_probabilities
from pipelines.study.cells import PREDICTIONS, Summary
from pipelines.study.choices import Choice, Standing, best, standings
from pipelines.study.plan import CellId, Plan
from wsi.cohorts import Cohort
from wsi.evaluation import Predictions, compare, join_labels
from wsi.specs import Config, EvaluateSpec, StudySpec

Json = dict[str, Any]


def selection_results(
    plan: Plan,
    config: Config,
    material: Material,
    truth: Cohort,
    chosen: Mapping[str, Choice],
    final: Mapping[CellId, Summary],
) -> Json:
    """Return everything about one way of validating, ready for results.json.

    Args:
        truth: the slides with the labels that test predictions are scored against.
        chosen: rate of each arm.
        final: the final fits of this selection.
    """
    lower = config.fit.monitor == "loss"
    by_arm = {one.arm: one for one in standings(final)}
    sound = [arm for arm in chosen if by_arm[arm].failed is None]
    rival = best([by_arm[arm] for arm in sound if arm in config.study.rivals], lower=lower)
    runs = [(arm, _predictions(plan, material, truth, final, arm)) for arm in sound]
    result: Json = {
        "rival": rival.arm if rival else None,
        "best_on_validation": getattr(best([by_arm[a] for a in sound], lower=lower), "arm", None),
        "arms": {arm: _arm(chosen[arm], by_arm[arm]) for arm in chosen},
        "metrics": {},
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


def _arm(choice: Choice, validation: Standing) -> Json:
    return {
        "rate": choice.rate,
        "edge": choice.edge,
        "rates": [standing.to_json() for standing in choice.table],
        "validation": validation.to_json(),
    }


def _predictions(
    plan: Plan,
    material: Material,
    truth: Cohort,
    final: Mapping[CellId, Summary],
    arm: str,
) -> Predictions:
    """Return the labelled test predictions of one arm over all folds and seeds."""
    tables = []
    for cell in final:
        if cell.arm == arm:
            table = read_probabilities(plan.folder(cell) / PREDICTIONS)
            tests = table[table["part"] == "test"].drop(columns="part")
            tables.append((cell.fold, cell.seed, tests))
    made = out_of_fold(tables, material.cohort, material.cohort.classes, material.absent)
    return join_labels(made, truth)


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
    keys = ("metric", "higher_is_better", "level", "n", "n_patients", "runs", "differences")
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
