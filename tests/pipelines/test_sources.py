"""`wsi evaluate` and `wsi compare` on predictions of other tools, alone and beside runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jsonschema import Draft202012Validator
from scipy.special import softmax
from sklearn.metrics import f1_score, log_loss

from pipelines.cli import run_command
from tests.report.conftest import Page
from wsi.evaluation import read_predictions
from wsi.evaluation.prediction_files import write_table

Json = Callable[..., Any]
Refused = Callable[..., str]

CLASSES = ["normal", "itc", "macro"]
P = [f"p_{name}" for name in CLASSES]
FAST = ("--replicates", "100")
NAMED = ("--classes", ",".join(CLASSES))


@pytest.fixture(scope="session")
def first_seed(shared_run: Path) -> pd.DataFrame:
    table = pd.read_csv(shared_run / "predictions.csv")
    return table.loc[table["seed"] == 0]


@pytest.fixture
def clam(first_seed: pd.DataFrame, tmp_path: Path) -> Path:
    """The run's predictions of one seed as CLAM would write them."""
    folder = tmp_path / "EVAL_x"
    folder.mkdir()
    for fold, rows in first_seed.groupby("fold"):
        table = pd.DataFrame({"slide_id": rows["slide_id"]})
        table["Y"] = [float(CLASSES.index(y)) for y in rows["y_true"]]
        table["Y_hat"] = rows[P].to_numpy().argmax(axis=1).astype(float)
        table[["p_0", "p_1", "p_2"]] = rows[P]
        table.to_csv(folder / f"fold_{fold}.csv", index=False)
    return folder


@pytest.fixture
def stamp(first_seed: pd.DataFrame, tmp_path: Path) -> Path:
    """The same by patient, the mean of the slides, as STAMP would write them."""
    folder = tmp_path / "crossval"
    for fold, rows in first_seed.groupby("fold"):
        groups = rows.groupby("patient_id")
        p = groups[P].mean()
        table = pd.DataFrame({"PATIENT": p.index, "met": groups["y_true"].first().to_numpy()})
        table["pred"] = [CLASSES[k] for k in p.to_numpy().argmax(axis=1)]
        for name in sorted(CLASSES):
            table[f"met_{name}"] = p[f"p_{name}"].to_numpy()
        table["loss"] = 1.0
        (folder / f"split-{fold}").mkdir(parents=True)
        table.to_csv(folder / f"split-{fold}" / "patient-preds.csv", index=False)
    return folder


def test_clams_folds_are_scored_with_the_patients_of_a_table(
    clam: Path, first_seed: pd.DataFrame, shared_study: Any, tmp_path: Path, said_json: Json
) -> None:
    given = ["evaluate", clam, "--from", "clam", *NAMED, *FAST, "--out", tmp_path / "m"]
    alone = said_json(given)
    assert alone["n_patients"] == 27  # each slide its own
    found = said_json([*given, "--cohort", shared_study.cohort])
    assert found["n_patients"] == 18
    assert set(found["by"]["site"]) == {"x", "y", "z"}
    assert found["folds"]["each"].keys() == {"0", "1", "2"}
    decided = [CLASSES[k] for k in first_seed[P].to_numpy().argmax(axis=1)]
    expected = f1_score(first_seed["y_true"], decided, labels=CLASSES, average="macro")
    assert found["macro_f1"]["value"] == alone["macro_f1"]["value"] == pytest.approx(expected)


UNKNOWN = "patients are unknown (their ids are those of the slides): each slide counts as a patient"


def test_a_slide_without_a_patient_is_said_loudly_and_recorded(
    clam: Path, shared_study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(clam), "--from", "clam", *NAMED, *FAST]
    assert run_command(["evaluate", *given]) == 0
    assert capsys.readouterr().err.count(UNKNOWN) == 1
    assert recorded(clam / "metrics-wsi.json", UNKNOWN) == 1
    assert run_command(["evaluate", *given, "--cohort", str(shared_study.cohort)]) == 0
    assert recorded(clam / "metrics-wsi-cohort.json", UNKNOWN) == 0
    one = ["--from", "clam", *NAMED, *FAST, "--out", str(tmp_path)]
    folds = [str(clam / "fold_0.csv"), str(clam / "fold_0.csv")]
    (clam / "again").mkdir()
    folds[1] = str(shutil.copy(folds[0], clam / "again"))
    assert run_command(["compare", *folds, *one]) == 0
    assert recorded(tmp_path / "comparison.json", UNKNOWN) == 2
    page = tmp_path / "page.html"
    assert run_command(["report", folds[0], *one[:-2], "--out", str(page)]) == 0
    assert "patients are unknown" in page.read_text()


def recorded(path: Path, note: str) -> int:
    """Return in how many notes of a result something stands."""
    return sum(note in told for told in json.loads(path.read_text())["notes"])


def test_slides_predicted_without_patients_are_noted_too(shared_run: Path, tmp_path: Path) -> None:
    made = read_predictions(shared_run / "predictions.csv")
    table = made.table.assign(patient_id=made.table["slide_id"])
    for name, about in (("run", {}), ("new", {"predict": {}})):
        write_table(made, table, tmp_path / f"{name}.csv", about)
        assert run_command(["evaluate", str(tmp_path / f"{name}.csv"), *FAST]) == 0
    assert recorded(tmp_path / "new-metrics.json", UNKNOWN) == 1
    assert recorded(tmp_path / "run-metrics.json", UNKNOWN) == 0  # its patients were named


def test_labels_that_differ_by_the_order_of_classes_say_so(
    clam: Path, shared_study: Any, tmp_path: Path
) -> None:
    def told(*classes: str) -> str:
        out = ["--out", str(tmp_path), "--cohort", str(shared_study.cohort), *FAST]
        words = ["evaluate", str(clam), "--from", "clam", "--classes", ",".join(classes), *out]
        assert run_command(words) == 0
        notes = json.loads((tmp_path / "metrics.json").read_text())["notes"]
        return next((note for note in notes if "labels in cohort.csv differ" in note), "")

    assert told(*CLASSES) == ""
    swapped = told("itc", "normal", "macro")
    assert "18 of 27 labels" in swapped
    assert "that the predictions came with" in swapped
    assert "other folds" not in swapped
    assert swapped.endswith("in another order: the labels agree with --classes normal,itc,macro")


def test_ids_that_match_but_for_an_extension_are_said_once_and_recorded(
    clam: Path, shared_study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fold_0.csv"
    table = pd.read_csv(clam / "fold_0.csv")
    table.assign(slide_id=table["slide_id"] + ".svs").to_csv(path, index=False)
    words = ["evaluate", str(path), "--from", "clam", *NAMED, *FAST]
    assert run_command([*words, "--cohort", str(shared_study.cohort)]) == 0
    assert capsys.readouterr().err.count("match but for a file extension") == 1
    assert recorded(tmp_path / "fold_0-metrics-cohort.json", "match but for") == 1


def test_a_table_without_labels_gives_patients_alone(
    clam: Path, first_seed: pd.DataFrame, tmp_path: Path, said_json: Json
) -> None:
    first_seed[["slide_id", "patient_id"]].to_csv(tmp_path / "owners.csv", index=False)
    given = ["evaluate", clam, "--from", "clam", *NAMED, *FAST, "--out", tmp_path / "m"]
    assert said_json([*given, "--cohort", tmp_path / "owners.csv"])["n_patients"] == 18


def test_a_run_is_compared_by_patient_with_stamp(
    shared_run: Path, stamp: Path, tmp_path: Path, said_json: Json, refused: Refused
) -> None:
    given = ["compare", shared_run, stamp, "--from", "stamp", *FAST]
    assert "--level patient" in refused(given, 5)
    found = said_json([*given, "--level", "patient", "--metric", "nll", "--out", tmp_path / "c"])
    assert found["scored"] == "patient"
    assert found["n"] == found["n_patients"] == 18
    assert {row["site"] for row in found["by_site"]} == {"x", "y", "z"}
    ours, theirs = found["runs"]
    assert theirs["value"] == pytest.approx(ours["by_seed"]["0"])
    expected = []
    for fold in range(3):
        rows = pd.read_csv(stamp / f"split-{fold}" / "patient-preds.csv")
        expected.append(
            log_loss(
                rows["met"], rows[[f"met_{c}" for c in sorted(CLASSES)]], labels=sorted(CLASSES)
            )
        )
    assert theirs["value"] == pytest.approx(np.mean(expected))
    assert (tmp_path / "c" / "comparison.md").is_file()
    assert not (tmp_path / "c" / "report.html").exists()


def test_a_run_is_compared_with_clam_once_patients_are_known(
    shared_run: Path,
    clam: Path,
    shared_study: Any,
    tmp_path: Path,
    said_json: Json,
    refused: Refused,
) -> None:
    given = ["compare", shared_run, clam, "--from", "clam", *NAMED, *FAST]
    assert "different patients" in refused(given, 5)
    out = tmp_path / "c"
    found = said_json([*given, "--cohort", shared_study.cohort, "--out", out])
    assert found["runs"][1]["value"] == pytest.approx(found["runs"][0]["by_seed"]["0"])
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    words = " ".join(" ".join(page.words).split())
    assert f"{clam.name}: only predictions are known of it" in words
    assert "scored with the labels of" not in words  # they are the run's own
    shown = {row[0]: row[1:3] for row in page.rows if len(row) == 3}
    ours, theirs = (cell.split(" ")[0] for cell in shown["macro-F1"])
    assert [ours, theirs] == [f"{run['value']:.2f}" for run in found["runs"]]


def test_a_page_of_a_table_takes_patients_of_a_cohort(
    first_seed: pd.DataFrame,
    shared_study: Any,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first_seed[["slide_id", "y_true", *P]].to_csv(tmp_path / "t.csv", index=False)
    given = ["report", tmp_path / "t.csv", "--from", "csv", "--cohort", shared_study.cohort]
    assert "--out report.html" in refused(given, 2)
    assert "--cohort" in refused(["report", tmp_path / "t.csv", "--label", "x"], 2)
    capsys.readouterr()
    assert run_command([*map(str, given), "--out", str(tmp_path / "p.html"), *FAST]) == 0
    assert "no patient is known" not in capsys.readouterr().err
    assert "27 slides of 18 patients" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_a_run_on_a_page_with_other_labels_keeps_its_card(
    run_copy: Path, shared_study: Any, tmp_path: Path
) -> None:
    changed = pd.read_csv(shared_study.cohort)
    changed["label"] = changed["label"].iloc[::-1].to_numpy()
    changed.to_csv(tmp_path / "other.csv", index=False)
    card = (run_copy / "model-card.md").read_bytes()
    given = ["report", run_copy, "--cohort", tmp_path / "other.csv", "--out", tmp_path / "p.html"]
    assert run_command([*map(str, given), *FAST]) == 0
    assert (run_copy / "model-card.md").read_bytes() == card
    truth = changed.set_index("slide_id")["label"]
    table = pd.read_csv(run_copy / "predictions.csv")
    right = (truth.loc[table["slide_id"]].to_numpy() == table["y_pred"]).mean()
    page = Page((tmp_path / "p.html").read_text(encoding="utf-8"))
    rows = page.rows
    assert "scored with the labels of other.csv" in " ".join(page.words)
    (shown,) = {row[1].split(" ")[0] for row in rows if row and row[0].startswith("micro-F1")}
    assert shown == f"{right:.2f}"


def test_twice_normalised_tables_are_doubted_and_inverted_on_request(
    first_seed: pd.DataFrame, tmp_path: Path, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["slide_id", "patient_id", "y_true", "fold"]
    once, twice = tmp_path / "once.csv", tmp_path / "twice.csv"
    sharp = softmax(20 * first_seed[P].to_numpy(), axis=1)
    first_seed[columns].assign(**dict(zip(P, sharp.T))).to_csv(once, index=False)
    again = softmax(sharp, axis=1)
    first_seed[columns].assign(**dict(zip(P, again.T))).to_csv(twice, index=False)
    assert run_command(["evaluate", str(once), *FAST]) == 0
    assert "normalised twice" not in capsys.readouterr().err
    assert run_command(["evaluate", str(twice), *FAST]) == 0
    assert "warning: " in (said := capsys.readouterr().err)
    assert "may be normalised twice" in said
    written = json.loads((tmp_path / "twice-metrics.json").read_text())
    assert any("may be normalised twice" in note for note in written["notes"])
    right = said_json(["evaluate", once, *FAST])
    undone = said_json(["evaluate", twice, "--invert-softmax", *FAST])
    assert undone["nll"]["value"] == pytest.approx(right["nll"]["value"])
    assert undone["ece"]["value"] == pytest.approx(right["ece"]["value"])
    assert written["nll"]["value"] != pytest.approx(right["nll"]["value"], rel=0.05)


def test_options_of_other_tools_act_on_other_tools_alone(
    shared_run: Path, clam: Path, tmp_path: Path, refused: Refused
) -> None:
    assert "wsi wrote all of these" in refused(["evaluate", shared_run, "--from", "csv"], 2)
    assert "wsi wrote all" in refused(["evaluate", shared_run, "--invert-softmax"], 2)
    fold = clam / "fold_0.csv"
    assert "--from clam" in refused(["evaluate", fold], 5)
    assert "name the tool" in refused(["evaluate", fold, "--columns", "y_true=Y"], 2)
    other = tmp_path / "other.csv"
    other.write_text("id,owner,truth,score_a,score_b\n1,2,a,0.5,0.5\n")
    assert "--from csv --columns" in refused(["evaluate", other], 5)


def test_what_a_run_leaves_satisfies_the_published_schemas(
    shared_run: Path, shared_mean_run: Path, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = {}
    for name in ("metrics", "predictions", "comparison"):
        capsys.readouterr()
        assert run_command(["schema", name]) == 0
        printed[name] = Draft202012Validator(json.loads(capsys.readouterr().out))
    for name in ("metrics", "predictions"):
        printed[name].validate(json.loads((shared_run / f"{name}.json").read_text()))
    printed["comparison"].validate(said_json(["compare", shared_run, shared_mean_run, *FAST]))


def test_runs_on_several_cohorts_become_one_table(
    shared_run: Path, tmp_path: Path, said_json: Json
) -> None:
    table = pd.read_csv(shared_run / "predictions.csv", dtype=str)
    table["slide_id"], table["patient_id"] = "new" + table["slide_id"], "new" + table["patient_id"]
    table["cohort"] = [("north", "south")[int(s)] for s in table["seed"]]
    table["slide_id"] += table["cohort"]
    table.assign(seed="0").to_csv(tmp_path / "new.csv", index=False)
    given = ["evaluate", shared_run, tmp_path / "new.csv", "--by", "cohort", *FAST]
    found = said_json([*given, "--out", tmp_path / "all"])["across_cohorts"]
    assert found == json.loads((tmp_path / "all" / "cohorts.json").read_text())
    assert [row["cohort"] for row in found["cohorts"]] == ["cohort", "north", "south"]
    north = table.loc[table["cohort"] == "north"]
    expected = f1_score(north["y_true"], north["y_pred"], labels=CLASSES, average="macro")
    assert found["cohorts"][1]["macro_f1"]["value"] == pytest.approx(expected)
    for suffix in ("md", "csv", "tex"):
        assert "mean over 3 cohorts" in (tmp_path / "all" / f"cohorts.{suffix}").read_text()
