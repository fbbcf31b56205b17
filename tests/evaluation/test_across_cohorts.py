"""Several cohorts in one table: a row each, and a mean that counts each once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from wsi.errors import PredictionsError
from wsi.evaluation import by_patient, evaluate
from wsi.evaluation.across_cohorts import CohortScores, across_cohorts, cohorts_of
from wsi.specs import EvaluateSpec

FAST = EvaluateSpec(replicates=100)


def part(predictions, cohort: str, source: str = "") -> CohortScores:
    return CohortScores(cohort, source or cohort, predictions, evaluate(predictions, FAST))


def renamed(predictions, prefix: str, **columns):
    table = predictions.table.assign(**columns)
    for name in ("slide_id", "patient_id"):
        table[name] = prefix + table[name]
    return replace(predictions, table=table)


def test_the_mean_counts_each_cohort_once(toy) -> None:
    small, large = toy(n=60, C=3, seeds=1), renamed(toy(n=180, C=3, seeds=1, draw=1), "x")
    found = across_cohorts([part(small, "a"), part(large, "b")])
    values = [
        f1_score(p.table["y_true"], p.table["y_pred"], labels=["a", "b", "c"], average="macro")
        for p in (small, large)
    ]
    assert [row["macro_f1"]["value"] for row in found["cohorts"]] == pytest.approx(values)
    mean = found["mean_over_cohorts"]["macro_f1"]
    assert mean["value"] == pytest.approx(np.mean(values))
    assert mean["sd"] == pytest.approx(np.std(values, ddof=1))
    assert mean["count"] == 2
    assert [row["n"] for row in found["cohorts"]] == [60, 180]
    assert "counts each once" in found["notes"][0]


def test_a_cohort_of_one_class_has_no_auc_and_is_not_in_its_mean(toy) -> None:
    whole = toy(n=60, C=2, seeds=1)
    one = renamed(replace(whole, table=whole.table.loc[whole.table["y_true"] == "a"]), "x")
    found = across_cohorts([part(whole, "a"), part(one, "b")])
    assert found["cohorts"][1]["auc"]["value"] is None
    assert found["mean_over_cohorts"]["auc"]["count"] == 1
    whole_auc = found["cohorts"][0]["auc"]["value"]
    assert found["mean_over_cohorts"]["auc"]["value"] == whole_auc


def test_a_table_is_divided_by_the_cohorts_its_rows_name(toy) -> None:
    made = toy(n=60, seeds=1)
    named = replace(made, table=made.table.assign(cohort=["u"] * 40 + ["v"] * 20))
    assert {name: len(p.table) for name, p in cohorts_of(named).items()} == {"u": 40, "v": 20}
    assert list(cohorts_of(made)) == [""]


def test_unlike_classes_and_units_are_refused(toy) -> None:
    slides = toy(n=40, C=2, seeds=1, per_patient=1)
    other = toy(n=40, C=3, seeds=1)
    with pytest.raises(PredictionsError, match="ours has the classes a, b, theirs a, b, c"):
        across_cohorts([part(slides, "x", "ours"), part(other, "y", "theirs")])
    with pytest.raises(PredictionsError, match="--level patient"):
        across_cohorts([part(slides, "x"), part(by_patient(slides), "y")])


def test_what_two_cohorts_share_and_how_they_differ_is_said(toy) -> None:
    made = toy(n=40, seeds=1)
    other = replace(
        renamed(made, ""), decision="by a threshold", labels_from="version b of the labels"
    )
    notes = " | ".join(across_cohorts([part(made, "x"), part(other, "y")])["notes"])
    assert "40 slides have the same id in several cohorts" in notes
    assert "20 patients have the same id" in notes
    assert "x: largest probability; y: by a threshold" in notes
    assert "nobody said which labels x used" in notes


def test_a_class_that_a_cohort_lacks_is_said_and_worst_sites_have_their_size(toy) -> None:
    whole = toy(n=120, C=3, seeds=1)
    lacking = renamed(replace(whole, table=whole.table.loc[whole.table["y_true"] != "c"]), "x")
    found = across_cohorts([part(whole, "full"), part(lacking, "part")])
    (note,) = [note for note in found["notes"] if "counts 0 in macro-F1" in note]
    assert note.startswith("part: no slide of c,")
    worst = found["cohorts"][0]["worst_site"]["macro_f1"]
    of_site = whole.table.loc[whole.table["site"] == worst["site"]]
    assert (worst["n"], worst["n_patients"]) == (len(of_site), of_site["patient_id"].nunique())
