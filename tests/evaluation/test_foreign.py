"""Predictions of other tools: STAMP's patients, CLAM's folds, any table by a map of columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from wsi.cohorts import Cohort, SlideRow
from wsi.errors import ConfigError, PredictionsError
from wsi.evaluation import evaluate, join_labels
from wsi.evaluation.foreign import Given, parse_columns, read_foreign_predictions, tool_of
from wsi.specs import EvaluateSpec

CLASSES = ("normal", "itc", "macro")


def stamp_table(
    path: Path, ids: list[str], seed: int = 0, label: str = "met", patient: str = "PATIENT"
) -> pd.DataFrame:
    """Write what STAMP's deploy and crossval do: a row per patient, sorted by loss."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), len(ids))
    table = pd.DataFrame({patient: ids, label: rng.choice(CLASSES, len(ids))})
    table["pred"] = [sorted(CLASSES)[k] for k in p.argmax(axis=1)]
    for k, name in enumerate(sorted(CLASSES)):
        table[f"{label}_{name}"] = p[:, k]
    table["loss"] = np.sort(rng.random(len(ids)))
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return table


def clam_table(path: Path, ids: list[str], seed: int = 0) -> pd.DataFrame:
    """Write what CLAM's eval.py does: numbers of classes as floats."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), len(ids))
    table = pd.DataFrame({"slide_id": ids, "Y": rng.integers(0, 3, len(ids)).astype(float)})
    table["Y_hat"] = p.argmax(axis=1).astype(float)
    for k in range(3):
        table[f"p_{k}"] = p[:, k]
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return table


# -- STAMP -------------------------------------------------------------------------------------


def test_stamp_gives_one_row_per_patient_with_ids_as_text(tmp_path: Path) -> None:
    ids = ["0012", "1e5", "NA", "7.10"]
    table = stamp_table(tmp_path / "patient-preds.csv", ids)
    for source in (tmp_path, tmp_path / "patient-preds.csv"):
        made = read_foreign_predictions(source, "stamp")
        assert made.unit == "patient"
        assert made.table["patient_id"].tolist() == made.table["slide_id"].tolist() == ids
        assert made.classes == tuple(sorted(CLASSES))
        np.testing.assert_array_equal(made.p, table[[f"met_{c}" for c in made.classes]])
        assert made.table["y_true"].tolist() == table["met"].tolist()
        assert made.decision == "as STAMP decided (column pred)"


@pytest.mark.parametrize("folder", ["split", "fold"])
def test_a_stamp_crossval_becomes_folds_by_number(tmp_path: Path, folder: str) -> None:
    for fold in (0, 2, 10):
        ids = [f"{fold}-{k}" for k in range(3)]
        stamp_table(tmp_path / f"{folder}-{fold}" / "patient-preds.csv", ids, fold)
    made = read_foreign_predictions(tmp_path, "stamp")
    assert made.table["fold"].tolist() == [0] * 3 + [2] * 3 + [10] * 3
    assert [i.partition("-")[0] for i in made.table["patient_id"]] == [
        str(fold) for fold in made.table["fold"]
    ]


def test_the_order_of_stamps_classes_can_be_given_and_nothing_else(tmp_path: Path) -> None:
    table = stamp_table(tmp_path / "patient-preds.csv", ["a", "b"])
    made = read_foreign_predictions(tmp_path, "stamp", Given(classes=CLASSES))
    assert made.classes == CLASSES
    np.testing.assert_array_equal(made.p, table[[f"met_{c}" for c in CLASSES]])
    with pytest.raises(ConfigError, match="has probabilities of itc, macro, normal, not of a, b"):
        read_foreign_predictions(tmp_path, "stamp", Given(classes=("a", "b")))


def test_stamps_columns_can_be_named_where_they_do_not_tell(tmp_path: Path) -> None:
    table = stamp_table(tmp_path / "patient-preds.csv", ["a", "b"], patient="Fall")
    made = read_foreign_predictions(tmp_path, "stamp")
    assert made.table["patient_id"].tolist() == ["a", "b"]
    table.assign(note="x").to_csv(tmp_path / "patient-preds.csv", index=False)
    with pytest.raises(ConfigError, match=r"Fall, note.*--columns patient_id"):
        read_foreign_predictions(tmp_path, "stamp")
    given = Given({"patient_id": "Fall"})
    made = read_foreign_predictions(tmp_path, "stamp", given)
    assert made.table["patient_id"].tolist() == ["a", "b"]
    with pytest.raises(ConfigError, match=r"no column Fal \(did you mean 'Fall'"):
        read_foreign_predictions(tmp_path, "stamp", Given({"patient_id": "Fal"}))


def test_a_stamp_regression_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"PATIENT": ["a"], "age": [3.0], "pred": [2.0], "loss": [1.0]}).to_csv(
        tmp_path / "patient-preds.csv", index=False
    )
    with pytest.raises(ConfigError, match="regression and survival are not scored"):
        read_foreign_predictions(tmp_path, "stamp")


def test_the_tools_own_decision_is_scored_and_where_it_strays_is_counted(tmp_path: Path) -> None:
    # STAMP may take the largest among the classes present in the cohort alone.
    ids = [f"{k:02}" for k in range(12)]
    table = stamp_table(tmp_path / "patient-preds.csv", ids)
    table["met"] = ["itc", "macro"] * 6
    columns = ["met_itc", "met_macro"]
    table["pred"] = [("itc", "macro")[k] for k in table[columns].to_numpy().argmax(axis=1)]
    table.to_csv(tmp_path / "patient-preds.csv", index=False)
    made = read_foreign_predictions(tmp_path, "stamp")
    normal = (table["met_normal"] > table[columns].max(axis=1)).sum()
    assert normal > 0
    assert f"not the class of largest probability in {normal} of 12 rows" in made.notes[0]
    scores = evaluate(made, EvaluateSpec(replicates=100))
    assert made.notes[0] in scores["notes"]
    expected = f1_score(
        table["met"], table["pred"], labels=sorted(CLASSES), average="macro", zero_division=0.0
    )
    assert scores["macro_f1"]["value"] == pytest.approx(expected)


# -- CLAM --------------------------------------------------------------------------------------


def test_clams_numbers_become_the_classes_named(tmp_path: Path) -> None:
    tables = {}
    for fold in (1, 0):
        ids = [f"{fold}{k}" for k in range(5)]
        tables[fold] = clam_table(tmp_path / f"fold_{fold}.csv", ids, fold)
    (tmp_path / "summary.csv").write_text("folds,test_auc,test_acc\n0,1,1\n")
    made = read_foreign_predictions(tmp_path, "clam", Given(classes=CLASSES))
    both = pd.concat([tables[0], tables[1]], ignore_index=True)
    assert made.table["slide_id"].tolist() == both["slide_id"].tolist()
    assert made.table["fold"].tolist() == [0] * 5 + [1] * 5
    np.testing.assert_array_equal(made.y, both["Y"])
    np.testing.assert_array_equal(made.decided, both["Y_hat"])
    np.testing.assert_array_equal(made.p, both[["p_0", "p_1", "p_2"]])
    alone = read_foreign_predictions(tmp_path / "fold_1.csv", "clam", Given(classes=CLASSES))
    assert set(alone.table["fold"]) == {1}


def test_clams_classes_must_be_named(tmp_path: Path) -> None:
    clam_table(tmp_path / "fold_0.csv", ["a"])
    for classes in ((), ("a", "b")):
        with pytest.raises(ConfigError, match=r"numbers its 3 classes 0 to 2.*--classes a,b,c"):
            read_foreign_predictions(tmp_path, "clam", Given(classes=classes))


def test_clams_pickles_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "split_0_results.pkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ConfigError, match=r"pickles, which run code.*eval\.py"):
        read_foreign_predictions(tmp_path, "clam", Given(classes=CLASSES))


@pytest.mark.parametrize("part", ["train", "val", "all", "test"])
def test_clam_tables_of_other_parts_are_refused(tmp_path: Path, part: str) -> None:
    clam_table(tmp_path / "fold_0.csv", ["a", "b"])
    said = f"{{'task': 'task_1', 'split': '{part}', 'save_dir': '.'}}"
    (tmp_path / "eval_experiment_x.txt").write_text(said)
    if part == "test":
        assert len(read_foreign_predictions(tmp_path, "clam", Given(classes=CLASSES)).table) == 2
        return
    with pytest.raises(PredictionsError, match=f"evaluated the part '{part}'"):
        read_foreign_predictions(tmp_path / "fold_0.csv", "clam", Given(classes=CLASSES))


def test_unknown_patients_are_the_slides_themselves_until_a_table_names_them(
    tmp_path: Path,
) -> None:
    clam_table(tmp_path / "fold_0.csv", ["s1", "s2"])
    made = read_foreign_predictions(tmp_path, "clam", Given(classes=CLASSES))
    assert made.table["patient_id"].tolist() == ["s1", "s2"]
    rows = tuple(SlideRow(s, "p1", label="macro", site="x") for s in ("s1", "s2"))
    cohort = Cohort("c", CLASSES, rows)
    kept = join_labels(made, cohort, keep_labels=True)
    assert kept.table["patient_id"].tolist() == ["p1", "p1"]
    assert kept.table["site"].tolist() == ["x", "x"]
    assert kept.table["y_true"].tolist() == made.table["y_true"].tolist() != ["macro", "macro"]
    assert join_labels(made, cohort).table["y_true"].tolist() == ["macro", "macro"]


def test_a_blank_patient_among_named_ones_is_refused_in_every_sheet(tmp_path: Path) -> None:
    for fold, owners in enumerate((["p1", ""], ["", ""])):
        path = tmp_path / f"fold_{fold}.csv"
        clam_table(path, [f"s{fold}0", f"s{fold}1"]).assign(case_id=owners).to_csv(
            path, index=False
        )
    with pytest.raises(PredictionsError) as caught:
        read_foreign_predictions(tmp_path, "clam", Given(classes=CLASSES))
    said = str(caught.value)
    assert "fold_0.csv: line 3: no patient_id (case_id), though other rows have one" in said
    assert "fold_1.csv: lines 2, 3: no patient_id (case_id)" in said
    assert "--cohort" in said
    path = tmp_path / "fold_0.csv"
    pd.read_csv(path).assign(case_id="").to_csv(path, index=False)
    made = read_foreign_predictions(tmp_path, "clam", Given(classes=CLASSES))
    assert made.table["patient_id"].tolist() == ["s00", "s01", "s10", "s11"]


# -- any table ---------------------------------------------------------------------------------


def test_columns_are_found_by_map_and_by_the_names_of_other_tools(tmp_path: Path) -> None:
    file = tmp_path / "preds.csv"
    file.write_text(
        "\ufeffcase_id;FILENAME;center;label;Wahrscheinlichkeit;rest;run\n"
        "007;a.svs;x;tumour;0.75;0.25;1\n"
        "008;b.svs;y;normal;0.5;0.5;1\n",
        encoding="utf-8",
    )
    given = Given(parse_columns(["p_tumour=Wahrscheinlichkeit,p_normal=rest", "seed=run"]))
    table = read_foreign_predictions(file, "csv", given).table
    assert table["patient_id"].tolist() == ["007", "008"]
    assert table["slide_id"].tolist() == ["a", "b"]
    assert table["site"].tolist() == ["x", "y"]
    assert table["y_true"].tolist() == ["tumour", "normal"]
    assert table["p_tumour"].tolist() == [0.75, 0.5]
    assert table["seed"].tolist() == [1, 1]


def test_one_probability_is_enough_for_two_classes(tmp_path: Path) -> None:
    file = tmp_path / "preds.csv"
    file.write_text("slide_id,patient_id,y_true,score\na,1,no,0.25\nb,2,yes,0.75\n")
    given = Given({"p_yes": "score"}, ("no", "yes"))
    made = read_foreign_predictions(file, "csv", given)
    assert made.p.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert made.notes == ("the probability of no is 1 less that of yes",)
    with pytest.raises(ConfigError, match="probability of yes alone"):
        read_foreign_predictions(file, "csv", Given({"p_yes": "score"}))


def test_a_table_without_slides_is_of_patients(tmp_path: Path) -> None:
    file = tmp_path / "preds.csv"
    file.write_text("patient_id,y_true,p_a,p_b\n1,a,0.25,0.75\n2,b,0.75,0.25\n")
    assert read_foreign_predictions(file, "csv").unit == "patient"


def test_decimal_commas_are_called_that(tmp_path: Path) -> None:
    file = tmp_path / "preds.csv"
    file.write_text("slide_id;y_true;p_a;p_b\n1;a;0,25;0,75\n2;b;0.5;0.5\n")
    with pytest.raises(PredictionsError) as caught:
        read_foreign_predictions(file, "csv")
    assert "line 2: probabilities that are no finite numbers ('0,25', '0,75')" in str(caught.value)
    assert "numbers need a decimal point: 0.25, not 0,25" in str(caught.value)
    file.write_text("slide_id;y_true;p_a;p_b\n1;a;high;0.75\n")
    with pytest.raises(PredictionsError) as caught:
        read_foreign_predictions(file, "csv")
    assert "decimal point" not in str(caught.value)


def test_everything_wrong_is_listed_with_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "preds.csv"
    file.write_text(
        "slide_id,patient_id,fold,y_true,p_a,p_b\n"
        "s1,1,0,a,0.5,0.5\n"
        "s2,1,0,aa,0.5,0.5\n"
        "s3,1,0,a,,0.5\n"
        "s4,1,0,a,1.5,-0.5\n"
        "s5,1,0,a,0.5,0.4\n"
        ",1,0.5,a,0.5,0.5\n"
        "s1,1,0,a,0.5,0.5\n"
        "s6,1,0,a,0.5,0.4\n"
    )
    with pytest.raises(PredictionsError) as caught:
        read_foreign_predictions(file, "csv")
    said = str(caught.value)
    for expected in (
        "line 3: y_true 'aa' is none of the classes a, b (did you mean 'a'?)",
        "line 4: probabilities that are no finite numbers ('')",
        "line 5: probabilities outside [0, 1]",
        "lines 6, 9: probabilities that do not sum to 1",
        "line 7: no slide_id",
        "line 7: fold '0.5' is no whole number",
        "lines 2, 8: s1 stands twice in one fold and seed",
        "preds.csv",
    ):
        assert expected in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["slide=x"], r"unknown column 'slide' \(did you mean 'slide_id'"),
        (["slide_id"], "no pair"),
        (["y_true=a", "y_true=b"], "given twice"),
        (["p_=a"], "unknown column 'p_'"),
    ],
)
def test_a_map_that_means_nothing_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_columns(words)


def test_tools_are_known_by_their_columns() -> None:
    assert tool_of(["slide_id", "Y", "Y_hat", "p_0", "p_1"]) == "clam"
    assert tool_of(["PATIENT", "met", "pred", "met_a", "met_b", "loss"]) == "stamp"
    assert tool_of(["slide_id", "patient_id", "y_true", "p_a", "p_b"]) is None
