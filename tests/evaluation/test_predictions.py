from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wsi.cohorts import Cohort, SlideRow
from wsi.errors import PredictionsError
from wsi.evaluation import Head, Predictions, join_labels, read_predictions, write_predictions
from wsi.evaluation.labels import changed_labels

AB = ("a", "b")


def table(**columns) -> pd.DataFrame:
    base = {
        "slide_id": ["0012", "1e5"],
        "patient_id": ["007", "NA"],
        "y_true": ["a", "b"],
        "p_a": [0.25, 1 / 3],
        "p_b": [0.75, 2 / 3],
    }
    return pd.DataFrame(base | columns)


def test_what_is_left_out_has_a_plain_default():
    found = Predictions(AB, table())
    assert list(found.table.columns) == [
        *("slide_id", "patient_id", "site", "cohort", "fold", "seed", "split", "y_true"),
        *("p_a", "p_b", "y_pred"),
    ]
    assert found.table["y_pred"].tolist() == ["b", "b"]
    assert found.y.tolist() == [0, 1]
    assert found.decided.tolist() == [1, 1]
    assert found.seeds == [0]


def test_files_are_read_back_bit_for_bit_with_ids_as_text(tmp_path, toy):
    for predictions in (
        toy(),
        Predictions(AB, table(y_true=["", "b"]), "nearest mean", {"x": "no bag"}),
    ):
        write_predictions(predictions, tmp_path / "predictions.csv")
        found = read_predictions(tmp_path / "predictions.csv")
        pd.testing.assert_frame_equal(found.table, predictions.table, check_dtype=False)
        assert (found.p == predictions.p).all()
        assert found.classes == predictions.classes
        assert (found.decision, found.not_evaluable) == (
            predictions.decision,
            dict(predictions.not_evaluable),
        )
    assert found.table["slide_id"].tolist() == ["0012", "1e5"]
    assert found.table["patient_id"].tolist() == ["007", "NA"]


@pytest.mark.parametrize(
    "head", [Head("training", {0: (3, 4), 2: (1, 9)}), Head("uniform"), Head(None), None]
)
def test_the_prior_of_the_predictions_is_read_back_and_kept_when_labels_are_joined(tmp_path, head):
    path = tmp_path / "predictions.csv"
    write_predictions(Predictions(AB, table(), head=head), path)
    found = read_predictions(path)
    assert found.head == head
    rows = (
        SlideRow("0012", "007", Path("a"), "b", None, None),
        SlideRow("1e5", "NA", Path("b"), "b", None, None),
    )
    assert join_labels(found, Cohort("c", AB, rows)).head == head


def test_the_prior_of_a_fold_is_its_training_frequencies():
    head = Head("training", {0: (30, 10)})
    assert head.prior(0, 2).tolist() == [0.75, 0.25]
    assert head.prior(1, 2) is None
    assert Head("uniform", {0: (30, 10)}).prior(7, 2).tolist() == [0.5, 0.5]
    assert Head(None, {0: (30, 10)}).prior(0, 2) is None


@pytest.mark.parametrize(
    ("head", "complaint"),
    [
        (Head("training", {0: (3, 0)}), "fold 0 are \\[3, 0\\]"),
        (Head("training", {4: (3, 1, 1)}), "each of 2 classes"),
        (Head("flat"), "training, uniform or null"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_an_impossible_prior_is_refused(head, complaint):
    with pytest.raises(PredictionsError, match=complaint):
        Predictions(AB, table(), head=head)


@pytest.mark.parametrize("head", [3, {"predicts_prior": "training"}, {"training_counts": [1]}])
def test_a_sidecar_with_a_garbled_prior_is_refused_by_name(tmp_path, head):
    path = tmp_path / "predictions.csv"
    write_predictions(Predictions(AB, table()), path)
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"head": head}))
    with pytest.raises(PredictionsError, match=r"predictions\.json is no sidecar"):
        read_predictions(path)


def test_the_sidecar_tells_classes_in_order_and_a_hash_anyone_can_check(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(Predictions(("b", "a"), table()), path)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar["schema"] == "wsi-predictions/1"
    assert sidecar["classes"] == ["b", "a"]
    assert sidecar["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"p_a": [0.25, np.nan]}, "1 rows have probabilities that are no finite numbers: 1e5"),
        ({"p_a": ["0.25", "x"]}, "no finite numbers: 1e5"),
        ({"p_a": ["0,25", "0.3"]}, "no finite numbers, for .* a decimal point: 0.25, not 0,25: 00"),
        ({"p_a": [np.inf, 1 / 3]}, "no finite numbers: 0012"),
        ({"p_a": [1.25, 1 / 3], "p_b": [-0.25, 2 / 3]}, r"outside \[0, 1\]: 0012"),
        ({"p_a": [0.5, 1 / 3]}, "do not sum to 1: 0012"),
        ({"y_true": ["a", "c"]}, r"y_true that is no class \(c\): 1e5"),
        ({"y_pred": ["a", ""]}, "y_pred that is no class"),
        ({"slide_id": ["x", "x"]}, "a second prediction in the same fold and seed: x"),
        ({"slide_id": ["x", "x"], "fold": [0, 1]}, "several patients for one slide: x"),
        ({"slide_id": ["x", ""]}, "no slide_id"),
        ({"patient_id": ["x", None]}, "no patient_id: 1e5"),
        ({"fold": [0, 0.5]}, "fold must be whole numbers"),
        ({"seed": ["0", "first"]}, "seed must be whole numbers, not 'first'"),
        ({"p_c": [0, 0]}, "p_c, which is no declared class"),
    ],
)
def test_bad_tables_are_refused_by_slide(columns, complaint):
    with pytest.raises(PredictionsError, match=complaint):
        Predictions(AB, table(**columns))


def test_all_problems_are_listed_at_once():
    with pytest.raises(PredictionsError) as caught:
        Predictions(AB, table(p_a=[0.5, 1 / 3], y_true=["a", "c"], fold=[0, "x"]))
    for piece in ("sum to 1", "no class", "whole numbers"):
        assert piece in str(caught.value)


def test_a_missing_column_is_named():
    with pytest.raises(PredictionsError, match=r"lack the columns p_b.*they have: slide_id"):
        Predictions(AB, table().drop(columns="p_b"))


def test_classes_must_be_two_or_more_names():
    for classes in (("a",), ("a", "a")):
        with pytest.raises(PredictionsError, match="two or more different"):
            Predictions(classes, table())


def test_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(Predictions(AB, table()), path)
    path.write_text(path.read_text().replace("0.25", "0.26"))
    with pytest.raises(PredictionsError, match="changed since it was written"):
        read_predictions(path)


def test_a_file_without_sidecar_needs_its_classes(tmp_path):
    path = tmp_path / "foreign.csv"
    table().to_csv(path, index=False)
    with pytest.raises(PredictionsError, match=r"no sidecar foreign\.json"):
        read_predictions(path)
    assert read_predictions(path, classes=AB).y.tolist() == [0, 1]


def test_classes_that_contradict_the_sidecar_are_refused(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(Predictions(AB, table()), path)
    with pytest.raises(
        PredictionsError, match="has the classes a, b, not the same in another order: b, a"
    ):
        read_predictions(path, classes=("b", "a"))
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(PredictionsError, match=r"predictions\.json is no sidecar"):
        read_predictions(path)
    with pytest.raises(PredictionsError, match="no predictions at"):
        read_predictions(tmp_path / "gone.csv")


def cohort(*rows: tuple, classes=AB) -> Cohort:
    return Cohort("c", classes, tuple(SlideRow(s, p, label=y, site=site) for s, p, y, site in rows))


BOTH = (("0012", "007", "b", "n"), ("1e5", "NA", "a", None), ("other", "q", "a", "n"))


def test_labels_are_joined_by_slide_and_changes_listed():
    before = Predictions(AB, table())
    after = join_labels(before, cohort(*BOTH))
    assert after.table["y_true"].tolist() == ["b", "a"]
    assert after.table["site"].tolist() == ["n", ""]
    assert (after.p == before.p).all()
    assert changed_labels(before, after) == [("0012", "a", "b"), ("1e5", "b", "a")]
    assert changed_labels(Predictions(AB, table(y_true=["", "b"])), before) == []


def test_labels_join_by_a_bare_name_where_it_is_unique():
    before = Predictions(AB, table(slide_id=["site/0012", "1e5"], y_true=["", ""]))
    assert join_labels(before, cohort(*BOTH)).y.tolist() == [1, 0]


def test_ids_with_the_extension_of_a_slide_join_under_the_ids_of_the_table_and_say_so():
    before = Predictions(AB, table(slide_id=["0012.svs", "1e5"]))
    after = join_labels(before, cohort(*BOTH))
    assert after.table["slide_id"].tolist() == ["0012", "1e5"]
    assert after.notes == ("1 slide ids match but for a file extension: 0012.svs is 0012",)
    assert changed_labels(before, after) == [("0012", "a", "b"), ("1e5", "b", "a")]


def test_a_slide_of_another_format_is_told_the_nearest_id():
    before = Predictions(AB, table(slide_id=["0012.tif", "1e5"]))
    rows = (("0012.svs", *BOTH[0][1:]), BOTH[1])
    with pytest.raises(PredictionsError, match=r"0012\.tif \(did you mean '0012\.svs'\?\)"):
        join_labels(before, cohort(*rows))


@pytest.mark.parametrize(
    ("rows", "classes", "complaint"),
    [
        (BOTH[:1], AB, "1 predicted slides are not in cohort c: 1e5"),
        ((BOTH[0], ("1e5", "NA", None, None)), AB, "have no label in cohort c: 1e5"),
        ((BOTH[0], ("1e5", "8", "a", None)), AB, "have another patient in cohort c: 1e5"),
        (BOTH, ("b", "a"), "cohort c has the same in another order: b, a"),
    ],
)
def test_labels_that_do_not_fit_are_refused(rows, classes, complaint):
    with pytest.raises(PredictionsError, match=complaint):
        join_labels(Predictions(AB, table()), cohort(*rows, classes=classes))


def test_evaluation_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, wsi.evaluation, wsi.splits; print({'torch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
