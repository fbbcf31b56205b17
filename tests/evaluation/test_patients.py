"""Predictions of slides to patients: against pandas and scikit-learn."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from wsi.errors import PredictionsError, UnknownNameError
from wsi.evaluation import Predictions, by_patient, evaluate, read_predictions, write_predictions
from wsi.specs import EvaluateSpec

CLASSES = ("none", "few", "many")
COLUMNS = [f"p_{name}" for name in CLASSES]


def made(patients: int = 30, folds: int = 3, seeds: int = 2) -> Predictions:
    """Return predictions of one to four slides per patient, each patient in one fold."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(patients):
        label = CLASSES[k % 3]
        for s in range(rng.integers(1, 5)):
            for seed in range(seeds):
                p = rng.dirichlet(np.ones(3) + 2 * np.eye(3)[k % 3])
                rows.append(
                    {
                        "slide_id": f"s{k}-{s}",
                        "patient_id": f"p{k:02d}",
                        "site": "ab"[k % 2],
                        "fold": k // 3 % folds,
                        "seed": seed,
                        "y_true": label,
                        **dict(zip(COLUMNS, p)),
                    }
                )
    shuffled = pd.DataFrame(rows).sample(frac=1, random_state=0)
    return Predictions(CLASSES, shuffled, not_evaluable={"s99-0": "no bag"})


def test_the_mean_is_that_of_pandas() -> None:
    given = made()
    found = by_patient(given).table.set_index(["patient_id", "fold", "seed"]).sort_index()
    expected = given.table.groupby(["patient_id", "fold", "seed"])[COLUMNS].mean()
    np.testing.assert_allclose(found[COLUMNS], expected, rtol=0, atol=1e-15)
    assert found.index.equals(expected.index)
    assert (found["y_pred"] == [CLASSES[k] for k in expected.to_numpy().argmax(axis=1)]).all()


def test_the_largest_tail_decides_by_max() -> None:
    given = made()
    found = by_patient(given, "max").table.set_index(["patient_id", "fold", "seed"]).sort_index()
    tails = given.table.assign(
        few=given.table["p_few"] + given.table["p_many"], many=given.table["p_many"]
    )
    top = tails.groupby(["patient_id", "fold", "seed"])[["few", "many"]].max()
    expected = np.stack([1 - top["few"], top["few"] - top["many"], top["many"]], axis=1)
    np.testing.assert_allclose(found[COLUMNS], expected, rtol=0, atol=1e-12)
    assert (found[COLUMNS].to_numpy() >= 0).all()


def test_of_two_classes_max_is_the_largest_probability_of_the_second() -> None:
    table = pd.DataFrame(
        {
            "slide_id": ["a", "b", "c"],
            "patient_id": ["p", "p", "q"],
            "p_no": [0.9, 0.2, 0.7],
            "p_yes": [0.1, 0.8, 0.3],
        }
    )
    found = by_patient(Predictions(("no", "yes"), table), "max")
    np.testing.assert_allclose(found.p, [[0.2, 0.8], [0.7, 0.3]])
    assert found.slides == {"p": 2, "q": 1}


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_scores_are_those_of_patients(rule: str) -> None:
    given = made(seeds=1)
    found = by_patient(given, rule)
    scores = evaluate(found, EvaluateSpec(replicates=200), ["macro_f1", "auc"])
    assert (scores["scored"], scores["n"], scores["n_patients"]) == ("patient", 30, 30)
    assert scores["macro_f1"]["n"] == scores["macro_f1"]["n_patients"] == 30
    table = found.table
    f1 = f1_score(table["y_true"], table["y_pred"], labels=CLASSES, average="macro")
    assert scores["macro_f1"]["value"] == pytest.approx(f1, abs=1e-12)
    aucs = [
        np.mean([roc_auc_score(fold["y_true"] == c, fold[f"p_{c}"]) for c in CLASSES])
        for _, fold in table.groupby("fold")
    ]
    assert scores["auc"]["value"] == pytest.approx(np.mean(aucs), abs=1e-12)
    slides = evaluate(given, EvaluateSpec(replicates=200), ["macro_f1"])
    assert slides["scored"] == "slide"
    assert slides["n"] > slides["n_patients"] == 30


def test_what_is_no_longer_known_is_not_said() -> None:
    found = by_patient(made())
    assert found.head is None
    assert not found.not_evaluable
    assert "mean" in found.decision
    assert by_patient(found, "max") is found


def test_patients_of_several_labels_are_named() -> None:
    given = made()
    table = given.table.copy()
    table.loc[table["slide_id"].isin(["s3-0", "s4-0"]), "y_true"] = "many"
    differing = table.groupby("patient_id")["y_true"].nunique()
    names = sorted(differing.index[differing > 1])
    assert names
    with pytest.raises(PredictionsError, match=re.escape(f"of {len(names)} patients")) as raised:
        by_patient(Predictions(CLASSES, table))
    assert all(name in str(raised.value) for name in names)
    assert "--cohort, --label" in str(raised.value)


def test_a_misspelt_rule_is_suggested() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        by_patient(made(), "meen")  # pyright: ignore[reportArgumentType]


def test_they_are_patients_when_read_again(tmp_path) -> None:
    found = by_patient(made())
    write_predictions(found, tmp_path / "predictions.csv")
    again = read_predictions(tmp_path / "predictions.csv")
    assert again.unit == "patient"
    assert again.slides == found.slides == dict(sorted(found.slides.items()))
    pd.testing.assert_frame_equal(again.table, found.table)


@pytest.mark.parametrize(
    ("classes", "ordered", "told"),
    [
        (("negative", "itc", "micro", "macro"), True, "wsi stage"),
        (("negative", "itc", "micro", "macro"), False, "wsi stage"),
        (CLASSES, True, "the worst slide"),
        (CLASSES, False, "(--cohort, --label)"),
    ],
)
def test_the_way_from_labels_of_slides_to_those_of_patients_is_told(
    classes: tuple[str, ...], ordered: bool, told: str
) -> None:
    table = pd.DataFrame({"slide_id": ["a", "b"], "patient_id": "p", "y_true": classes[:2]})
    table[[f"p_{name}" for name in classes]] = 1 / len(classes)
    with pytest.raises(PredictionsError) as raised:
        by_patient(Predictions(classes, table, ordered=ordered))
    assert str(raised.value).endswith(told)
    assert f"one of {', '.join(classes)} (--cohort, --label)" in str(raised.value)
