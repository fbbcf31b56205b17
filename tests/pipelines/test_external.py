"""External validation: a run on another cohort, without those whom its models know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator
from sklearn.metrics import f1_score

from pipelines.cli import run_command
from tests.pipelines.conftest import CLASSES, Row, put_bag, write_table
from wsi.bags import create_store
from wsi.schemas import read_schema

Json = Callable[..., Any]
Refused = Callable[..., str]

FAST = ("--replicates", "100")
RECIPE = "texture-v1_0.5um_256px"
P = [f"p_{name}" for name in CLASSES]


def outside() -> list[Row]:
    """Return nine slides of six patients whom the run never saw."""
    return [
        Row(f"{label}-new-{k}", f"{label}-{k // 2}", label, "w")
        for label in CLASSES
        for k in (0, 1, 2)
    ]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bags and the table `away.csv` of another cohort; never written to."""
    root = tmp_path_factory.mktemp("elsewhere")
    store = create_store(root / "bags" / RECIPE)
    for seed, row in enumerate(outside()):
        put_bag(store, row.slide_id, row.label, 100 + seed)
    put_bag(store, "stray", "itc", 0)
    write_table(root / "away.csv", outside())
    return root


def predict(run: Path, root: Path, out: Path, *more: object) -> int:
    where = ["--bags", str(root / "bags"), "--cohort", str(root / "away.csv")]
    return run_command(["predict", str(run), "--out", str(out), *where, *map(str, more)])


@pytest.fixture(scope="module")
def predicted(shared_run: Path, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("external") / "out"
    assert predict(shared_run, elsewhere, out) == 0
    return out


def test_the_slides_of_the_table_are_predicted_with_its_patients_and_name(predicted: Path) -> None:
    table = pd.read_csv(predicted / "predictions.csv", keep_default_na=False)
    assert dict(zip(table["slide_id"], table["patient_id"])) == {
        row.slide_id: row.patient_id for row in outside()
    }
    assert set(table["cohort"]) == {"away"}
    assert set(table["site"]) == {"w"}
    assert set(table["y_true"]) == {""}  # labels are not read


def test_each_seed_is_the_mean_over_folds_and_scored_as_a_seed(
    predicted: Path, said_json: Json
) -> None:
    single = pd.read_csv(predicted / "predictions_by_model.csv")
    expected = single.groupby(["seed", "slide_id"])[P].mean()
    seeds = pd.read_csv(predicted / "predictions_by_seed.csv").set_index(["seed", "slide_id"])
    np.testing.assert_allclose(seeds.loc[expected.index, P], expected, atol=1e-12)
    found = said_json(["evaluate", predicted, *FAST])
    truth = {row.slide_id: row.label for row in outside()}
    values = []
    for _, rows in expected.groupby("seed"):
        labels = [truth[slide_id] for _, slide_id in rows.index]
        decided = [CLASSES[k] for k in rows.to_numpy().argmax(axis=1)]
        values.append(f1_score(labels, decided, labels=list(CLASSES), average="macro"))
    assert found["macro_f1"]["value"] == pytest.approx(np.mean(values))
    assert found["macro_f1"]["seeds_sd"] == pytest.approx(np.std(values, ddof=1))
    whole = pd.read_csv(predicted / "predictions.csv")
    together = f1_score(
        [truth[s] for s in whole["slide_id"]],
        whole["y_pred"],
        labels=list(CLASSES),
        average="macro",
    )
    assert found["ensemble"]["macro_f1"]["value"] == pytest.approx(together)
    assert found["n_patients"] == 6


def test_external_figures_stand_beside_internal_ones(
    shared_run: Path, predicted: Path, tmp_path: Path, said_json: Json
) -> None:
    given = ["evaluate", shared_run, predicted, "--by", "cohort", "--out", tmp_path / "t", *FAST]
    found = said_json(given)["across_cohorts"]
    assert [(row["cohort"], row["source"], row["n"]) for row in found["cohorts"]] == [
        ("cohort", "ce", 27),
        ("away", "out", 9),
    ]
    inner, outer = (row["auc"]["value"] for row in found["cohorts"])
    assert found["mean_over_cohorts"]["auc"]["value"] == pytest.approx((inner + outer) / 2)
    n_folds = len(list(shared_run.glob("fold*-seed0")))
    told = f"out: rows are means of up to {n_folds} models, where a row of the run itself is of one"
    assert told in found["notes"]


def test_the_sidecars_satisfy_the_published_schema(predicted: Path) -> None:
    validator = Draft202012Validator(read_schema("predictions"))
    for name in ("predictions", "predictions_by_seed", "predictions_by_model"):
        validator.validate(json.loads((predicted / f"{name}.json").read_text()))


def test_other_slides_of_training_patients_are_refused_by_name_or_left_out(
    shared_run: Path, elsewhere: Path, tmp_path: Path, said_json: Json, refused: Refused
) -> None:
    rows = outside()
    rows[0] = Row(rows[0].slide_id, "x-normal-0", rows[0].label, "w")  # of the run
    table = write_table(tmp_path / "away.csv", rows)
    out = tmp_path / "out"
    given = ["predict", shared_run, "--out", out, "--bags", elsewhere / "bags", "--cohort", table]
    assert run_command([str(word) for word in given]) == 0
    for source in (out, out / "predictions_by_model.csv"):
        told = refused(["evaluate", source, "--cohort", table, *FAST], 5)
        assert "LEAKAGE" in told
        assert "x-normal-0" in told
        assert rows[0].slide_id in told
    found = said_json(["evaluate", out, "--leave-out-trained", *FAST])
    assert found["n"] == 8
    assert any("left out: 2 train" in note for note in found["notes"])


def test_training_patients_whom_the_evaluation_first_names_are_found_too(
    shared_run: Path, elsewhere: Path, tmp_path: Path, said_json: Json, refused: Refused
) -> None:
    out = tmp_path / "out"
    given = ["predict", shared_run, "--out", out, "--bags", elsewhere / "bags"]
    assert run_command([str(word) for word in given]) == 0
    rows = [*outside(), Row("stray", "x-normal-0", "itc", "w")]
    table = write_table(tmp_path / "away.csv", rows)
    told = refused(["evaluate", out, "--cohort", table, *FAST], 5)
    assert "1 slide of 1 patient trained models that predict them here" in told
    found = said_json(["evaluate", out, "--cohort", table, "--leave-out-trained", *FAST])
    assert found["n"] == 9
    assert list(found["by"]["cohort"]) == ["away"]


def test_slides_of_the_table_without_a_bag_are_not_evaluable(
    shared_run: Path, elsewhere: Path, tmp_path: Path, said_json: Json
) -> None:
    rows = [*outside(), Row("lost", "q", "itc", "w")]
    table = write_table(tmp_path / "away.csv", rows)
    out = tmp_path / "out"
    given = ["predict", shared_run, "--out", out, "--bags", elsewhere / "bags", "--cohort", table]
    assert run_command([str(word) for word in given]) == 3
    found = said_json(["evaluate", out, *FAST])
    assert found["coverage"]["not_evaluable"].keys() == {"lost"}
    assert found["coverage"]["total"] == 10


def test_another_class_list_or_a_table_of_other_slides_is_refused(
    shared_run: Path, elsewhere: Path, predicted: Path, tmp_path: Path, refused: Refused
) -> None:
    strange = [Row(row.slide_id, row.patient_id, f"{row.label}er", "w") for row in outside()]
    table = write_table(tmp_path / "strange.csv", strange)
    assert "labels that are none of the classes" in refused(
        ["evaluate", predicted, "--cohort", table, *FAST], 5
    )
    table = write_table(tmp_path / "others.csv", [Row("a", "b", "itc", "w")])
    given = ["predict", shared_run, "--out", tmp_path / "o", "--bags", elsewhere / "bags"]
    assert "no slide of others.csv is among the 10" in refused([*given, "--cohort", table], 2)


def test_a_changed_table_gives_no_labels(
    shared_run: Path, elsewhere: Path, tmp_path: Path, refused: Refused
) -> None:
    table = write_table(tmp_path / "away.csv", outside())
    out = tmp_path / "out"
    given = ["predict", shared_run, "--out", out, "--bags", elsewhere / "bags", "--cohort", table]
    assert run_command([str(word) for word in given]) == 0
    write_table(table, outside()[:-1])
    assert "have no label" in refused(["evaluate", out, *FAST], 5)
