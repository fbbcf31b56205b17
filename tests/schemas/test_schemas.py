"""The published schemas: what evaluation writes satisfies them, what is broken does not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator

from wsi.bags.means import BagMeans
from wsi.evaluation import METRICS, Head, Predictions, by_patient, compare, evaluate
from wsi.evaluation.floor_scores import conclusion, score_floors
from wsi.evaluation.prediction_files import write_predictions
from wsi.evaluation.site_signal import site_from_features
from wsi.evaluation.staging import METRICS_OF_STAGES, STAGES
from wsi.evaluation.validated import fit_calibration, fit_name
from wsi.files import publish_json
from wsi.schemas import NAMES, read_schema
from wsi.specs import EvaluateSpec

FAST = EvaluateSpec(replicates=100)


def problems(document: Any, name: Any) -> list[str]:
    """Return what is wrong with a document that went through a file."""

    def no_constant(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    text = json.dumps(document)
    validator = Draft202012Validator(read_schema(name))
    found = validator.iter_errors(json.loads(text, parse_constant=no_constant))
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in found]


def made(n: int = 24, seeds: int = 2, sites: int = 2, present: int = 3) -> Predictions:
    """Three classes, of which the first `present` have slides."""
    tables = []
    for seed in range(seeds):
        p = np.random.default_rng([seed, n]).dirichlet(np.ones(3), n)
        table = pd.DataFrame(p, columns=["p_a", "p_b", "p_c"])
        table["slide_id"] = [f"s{k}" for k in range(n)]
        table["patient_id"] = [f"q{k // 2}" for k in range(n)]
        table["site"] = [f"h{(k // 2) % sites}" if sites else "" for k in range(n)]
        table["cohort"] = "c"
        table["fold"] = [(k // 2) % 3 for k in range(n)]
        table["seed"] = seed
        table["y_true"] = ["abc"[(k // 2) % present] for k in range(n)]
        tables.append(table)
    head = Head("training", dict.fromkeys(range(3), (3, 4, 5)))
    table = pd.concat(tables, ignore_index=True)
    rng = np.random.default_rng(n)
    settled = fit_calibration(np.arange(30) % present, rng.dirichlet(np.ones(3), 30), "abc")
    fits = {fit_name(fold, seed): settled for fold in range(3) for seed in range(seeds)}
    return Predictions(("a", "b", "c"), table, head=head, ordered=True, calibration=fits)


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return evaluate(made(), FAST, tuple(METRICS))


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_schemas(name: Any) -> None:
    schema = read_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["properties"]["schema"]["const"] == f"wsi-{name}/1"


@pytest.mark.parametrize(
    "predictions",
    [
        made(),
        made(seeds=1, sites=0),
        made(present=2),
        made(present=1),
        made(n=2, seeds=1),
        by_patient(made()),
    ],
    ids=["full", "one seed", "absent class", "one class", "one patient", "patients"],
)
def test_metrics_satisfy_their_schema(predictions: Predictions) -> None:
    assert problems(evaluate(predictions, FAST, tuple(METRICS)), "metrics") == []


@pytest.mark.parametrize("ordered", [True, False])
def test_default_metrics_satisfy_their_schema(ordered: bool) -> None:
    made_so = replace(made(sites=3), ordered=ordered)
    assert problems(evaluate(made_so, FAST), "metrics") == []


def test_metrics_of_stages_satisfy_their_schema_though_they_have_no_probabilities() -> None:
    k = np.arange(20)
    table = pd.DataFrame({f"p_{s}": (k % 5 == i) * 1.0 for i, s in enumerate(STAGES)})
    table = table.assign(
        slide_id=k.astype(str), patient_id=k.astype(str), y_true=[STAGES[j % 4] for j in k]
    )
    found = evaluate(Predictions(STAGES, table), FAST, METRICS_OF_STAGES)
    assert problems(found, "metrics") == []
    assert problems(found | {"classes": ["v", "w", "x", "y", "z"]}, "metrics") != []


def test_floors_satisfy_the_schema_of_metrics(metrics: dict[str, Any]) -> None:
    scores = score_floors(made(), {"majority": made(seeds=1)}, FAST, {"majority": "told"})
    ids = tuple(f"s{k}" for k in range(24))
    means = BagMeans(ids, np.ones(24, np.int64), np.random.default_rng(0).normal(size=(24, 4)))
    patients = {s: f"q{k // 2}" for k, s in enumerate(ids)}
    for sites in ("h0 h1", "h0 h0"):
        where = {s: sites.split()[k // 2 % 2] for k, s in enumerate(ids)}
        beside = {
            "floors": scores,
            "floors_note": conclusion(scores),
            "site_from_features": site_from_features(means, where, patients, FAST),
        }
        assert problems(metrics | beside, "metrics") == []
    scores["majority"]["auc"]["run_minus_floor"]["low"] = "NaN"
    assert len(problems(metrics | beside, "metrics")) == 1


def test_every_metric_is_in_the_schema() -> None:
    schema = read_schema("metrics")
    assert set(METRICS) <= set(schema["properties"])
    assert set(METRICS) == set(schema["$defs"]["scores"]["properties"])
    assert set(METRICS) == set(read_schema("comparison")["properties"]["metric"]["enum"])


def test_comparisons_satisfy_their_schema() -> None:
    other = made(n=24, seeds=1)
    table = other.table.assign(p_a=other.table["p_b"], p_b=other.table["p_a"])
    runs = [("x", made()), ("y", Predictions(other.classes, table.drop(columns="y_pred")))]
    for metric in METRICS:
        found = compare(runs, metric, FAST, controls={"y": ["x"]})
        assert problems(found, "comparison") == []


def test_sidecars_satisfy_their_schema(tmp_path: Path) -> None:
    for k, predictions in enumerate((made(), by_patient(made()))):
        write_predictions(predictions, tmp_path / f"{k}.csv")
        assert problems(json.loads((tmp_path / f"{k}.json").read_text()), "predictions") == []


Break = Callable[[dict[str, Any]], Any]
BROKEN: dict[str, Break] = {
    "text for a number": lambda m: m["macro_f1"].update(value="0.5"),
    "text NaN": lambda m: m["auc"].update(low="NaN"),
    "share above 1": lambda m: m["by"]["site"]["h0"]["auc"].update(value=1.5),
    "null without a reason": lambda m: m["auc"].update(value=None, note=""),
    "misspelt key": lambda m: m["macro_f1"].update(hihg=1.0),
    "key missing": lambda m: m["macro_f1"].pop("n_patients"),
    "unknown block": lambda m: m.update(makro_f1={}),
    "another schema": lambda m: m.update(schema="wsi-metrics/2"),
    "headline metric missing": lambda m: m.pop("macro_f1"),
    "no AUC": lambda m: m.pop("auc"),
    "grades without kappa": lambda m: m.pop("quadratic_kappa"),
    "worst site without its ties": lambda m: m["worst_site"]["macro_f1"].pop("sites"),
    "one class": lambda m: m.update(classes=["a"]),
    "negative count": lambda m: m["coverage"].update(total=-1),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_metrics_do_not(metrics: dict[str, Any], what: str) -> None:
    broken = copy.deepcopy(metrics)
    BROKEN[what](broken)
    assert len(problems(broken, "metrics")) > 0


def test_nan_never_reaches_a_file(metrics: dict[str, Any], tmp_path: Path) -> None:
    broken = copy.deepcopy(metrics)
    broken["auc"]["value"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish_json(tmp_path / "metrics.json", broken)
    assert not (tmp_path / "metrics.json").exists()
