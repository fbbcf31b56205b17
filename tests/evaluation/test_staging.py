from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from wsi.cohorts.camelyon17_labels import NODE_CLASSES, STAGES, pn_stage
from wsi.errors import PredictionsError
from wsi.evaluation import Predictions
from wsi.evaluation.staging import stage_kappa, stage_patients, stage_probabilities, submission


def nodes(patients: int, seeds=(0,), seed: int = 0, per_patient: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for s in seeds:
        for patient in range(patients):
            for k in range(per_patient):
                p = rng.dirichlet(np.ones(4) * 0.3)
                row = {
                    "slide_id": f"patient_{patient:03d}_node_{k}",
                    "seed": s,
                    "fold": patient % 3,
                }
                row |= {"patient_id": f"patient_{patient:03d}", "site": str(patient % 3)}
                row |= {"y_true": NODE_CLASSES[(patient + k * k) % 4]}
                rows.append(row | {f"p_{c}": v for c, v in zip(NODE_CLASSES, p)})
    return pd.DataFrame(rows)


def test_kappa_is_scikit_learns():
    rng = np.random.default_rng(3)
    y, given = (rng.integers(5, size=60) for _ in range(2))
    ours = stage_kappa([STAGES[k] for k in y], [STAGES[k] for k in given])
    assert ours == pytest.approx(cohen_kappa_score(y, given, weights="quadratic", labels=range(5)))


def test_stages_follow_the_decided_nodes_of_each_seed():
    table = nodes(7, seeds=(0, 1))
    staged = stage_patients(Predictions(NODE_CLASSES, table)).table
    assert len(staged) == 14
    p = table[[f"p_{c}" for c in NODE_CLASSES]].to_numpy()
    table["decided"] = [NODE_CLASSES[k] for k in p.argmax(1)]
    for (patient, seed), of in table.groupby(["patient_id", "seed"]):
        row = staged[(staged["slide_id"] == patient) & (staged["seed"] == seed)].iloc[0]
        assert row["y_pred"] == pn_stage(of["decided"].tolist())
        assert row["y_true"] == pn_stage(of["y_true"].tolist())
        assert row["fold"] == of["fold"].iloc[0]


def test_stage_probabilities_are_those_of_drawn_nodes():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=5)
    drawn = [[rng.choice(4, p=row) for row in p] for _ in range(4_000)]
    counted = pd.Series([pn_stage([NODE_CLASSES[k] for k in ks]) for ks in drawn]).value_counts()
    ours = stage_probabilities(p)
    assert ours.sum() == pytest.approx(1)
    for stage, value in zip(STAGES, ours):
        assert value == pytest.approx(counted.get(stage, 0) / 4_000, abs=0.03)


def test_certain_nodes_give_a_certain_stage():
    for classes in itertools.islice(itertools.product(range(4), repeat=5), 0, None, 41):
        p = np.eye(4)[list(classes)]
        stage = pn_stage([NODE_CLASSES[k] for k in classes])
        assert stage_probabilities(p)[STAGES.index(stage)] == pytest.approx(1)


def test_a_patient_without_all_nodes_is_named_and_left_out():
    table = nodes(3).drop(index=2)
    staged = stage_patients(Predictions(NODE_CLASSES, table))
    assert staged.not_evaluable == {"patient_000": "4 of 5 nodes predicted"}
    assert set(staged.table["slide_id"]) == {"patient_001", "patient_002"}


def test_other_classes_and_other_slides_are_refused():
    table = nodes(2)
    with pytest.raises(PredictionsError, match=r"data\.label=node4"):
        stage_patients(
            Predictions(
                ("a", "b"),
                pd.DataFrame({"slide_id": ["s"], "patient_id": ["p"]}).assign(p_a=0.5, p_b=0.5),
            )
        )
    table.loc[0, "slide_id"] = "slide-7"
    with pytest.raises(PredictionsError, match="slide-7 are no nodes"):
        stage_patients(Predictions(NODE_CLASSES, table))


def test_a_patient_scattered_over_folds_is_refused():
    table = nodes(2)
    table.loc[0, "fold"] = 2
    with pytest.raises(PredictionsError, match="patient_000"):
        stage_patients(Predictions(NODE_CLASSES, table))


def test_a_submission_stages_the_mean_of_seeds_in_the_challenges_words():
    table = nodes(4, seeds=(0, 1, 2))
    text = submission(Predictions(NODE_CLASSES, table)).csv_text().splitlines()
    columns = [f"p_{c}" for c in NODE_CLASSES]
    mean = table.groupby(["patient_id", "slide_id"])[columns].mean()
    wanted = ["patient,stage"]
    for patient, of in mean.groupby(level=0):
        decided = [NODE_CLASSES[k] for k in of.to_numpy().argmax(1)]
        wanted.append(f"{patient}.zip,{pn_stage(decided)}")
    assert text == wanted
