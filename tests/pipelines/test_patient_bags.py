"""One bag per patient, from cohort and bags to results, and scores of slides by patient."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from pipelines.cli import run_command
from pipelines.config import load_config
from pipelines.console import Console
from pipelines.fits import Material, gather, reader, splits_of
from pipelines.train import inputs_of
from wsi.bags import Bag, create_store, open_store
from wsi.specs import SplitSpec

if TYPE_CHECKING:
    from tests.pipelines.conftest import Row, Study

CLASSES = ["normal", "itc", "macro"]
COLUMNS = [f"p_{name}" for name in CLASSES]
PATIENT = "data.bag=patient"


def changed(row: Row, **values: str) -> Row:
    return type(row)(**{**vars(row), **values})


def table_of(run: Path, name: str = "predictions.csv") -> pd.DataFrame:
    return pd.read_csv(run / name, dtype={"slide_id": str, "patient_id": str})


def members(study: Study) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in study.rows:
        found.setdefault(row.patient_id, []).append(row.slide_id)
    return {patient: sorted(slides) for patient, slides in found.items()}


@pytest.fixture(scope="module")
def run(shared_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on bags of patients; never written to."""
    out = tmp_path_factory.mktemp("patients") / "run"
    assert shared_study.train(out, PATIENT) == 0
    return out


# -- bags of patients ------------------------------------------------------------------------------


def test_it_is_a_run_on_bags_laid_together_by_hand(
    run: Path, shared_study: Study, tmp_path: Path
) -> None:
    by_hand = type(shared_study)(tmp_path / "by-hand")
    store, made = open_store(shared_study.bags), create_store(by_hand.recipe)
    rows = {row.patient_id: changed(row, slide_id=row.patient_id) for row in shared_study.rows}
    for patient, slides in members(shared_study).items():
        bags = [store.read(slide_id) for slide_id in slides]
        features = np.concatenate([bag.features for bag in bags])
        xy0 = np.zeros((len(features), 2), np.int32)
        tissue = np.ones(len(features), np.float16)
        made.put(Bag(patient, features, xy0, tissue, bags[0].provenance))
    by_hand.write_cohort([rows[patient] for patient in sorted(rows)])
    assert by_hand.train(tmp_path / "run", "--splits", run / "splits.csv") == 0
    mine, theirs = table_of(run), table_of(tmp_path / "run")
    pd.testing.assert_frame_equal(mine.drop(columns="cohort"), theirs.drop(columns="cohort"))
    for fold in range(3):
        name = f"fold{fold}-seed0/predictions.csv"
        assert (run / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_rows_are_patients_and_say_of_how_many_slides(run: Path, shared_study: Study) -> None:
    slides = members(shared_study)
    table = table_of(run)
    assert sorted(table["slide_id"]) == sorted(slides)
    assert (table["slide_id"] == table["patient_id"]).all()
    sidecar = json.loads((run / "predictions.json").read_text())
    assert sidecar["slides"] == {patient: len(ids) for patient, ids in slides.items()}
    with (run / "patients.csv").open(encoding="utf-8", newline="") as handle:
        listed = [(row["patient_id"], row["slide_id"]) for row in csv.DictReader(handle)]
    assert listed == [(p, s) for p in sorted(slides) for s in slides[p]]
    inputs = json.loads((run / "inputs.json").read_text())
    assert (inputs["bag"], inputs["slides"], inputs["patients"]) == ("patient", 27, 18)
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["scored"], metrics["n"], metrics["n_patients"]) == ("patient", 18, 18)
    page = (run / "report.html").read_text()
    assert "27 slides with bags, one bag for each of 18 patients" in page
    assert "18 patients, each of one bag of all its slides," in page


def test_patients_divide_as_they_do_in_a_run_on_slides(run: Path, shared_run: Path) -> None:
    of_patients, of_slides = (pd.read_csv(r / "splits.csv", dtype=str) for r in (run, shared_run))
    keys = ["patient_id", "fold", "part"]
    expected = of_slides[keys].drop_duplicates().sort_values(keys).to_numpy().tolist()
    assert of_patients[keys].sort_values(keys).to_numpy().tolist() == expected


def gathered(study: Study) -> Material:
    config = load_config([f"data.classes=[{','.join(CLASSES)}]", PATIENT])
    return gather(config, study.cohort, study.bags, Console(quiet=True))


def test_a_split_table_may_divide_slides_or_patients(
    run: Path, shared_run: Path, shared_study: Study
) -> None:
    material = gathered(shared_study)
    for table in (run, shared_run):
        found = splits_of(material, SplitSpec(), table / "splits.csv")
        assert found.csv_text() == (run / "splits.csv").read_text()


def test_a_packed_cohort_reads_the_same(study: Study) -> None:
    assert run_command(["bags", "pack", str(study.bags)]) == 0
    material = gathered(study)
    assert material.packed is not None
    packed, single = (reader(material.store, material.bag_ids, p) for p in (material.packed, None))
    for patient in members(study):
        for part in ("features", "xy0", "tissue"):
            one, other = getattr(packed(patient), part), getattr(single(patient), part)
            np.testing.assert_array_equal(one, other)


def test_a_patient_named_like_a_slide_has_its_own_slides(study: Study) -> None:
    rows = study.rows
    # Every patient takes the name of the first slide of the next one.
    patients = list(dict.fromkeys(row.patient_id for row in rows))
    names = {p: f"{q}-0" for p, q in zip(patients, patients[1:] + patients[:1])}
    study.write_cohort([changed(row, patient_id=names[row.patient_id]) for row in rows])
    material = gathered(study)
    read, store = reader(material.store, material.bag_ids, None), open_store(study.bags)
    for patient, slides in members(study).items():
        expected = np.concatenate([store.read(slide_id).features for slide_id in slides])
        np.testing.assert_array_equal(read(names[patient]).features, expected)
        assert material.bag_ids.together(names[patient]) == tuple(slides)


def test_labels_that_differ_within_a_patient_are_refused(
    study: Study, tmp_path: Path, refused: Callable[..., str]
) -> None:
    rows = study.rows
    odd = next(k for k, row in enumerate(rows) if row.slide_id == "x-itc-0-1")
    rows[odd] = changed(rows[odd], label="macro")
    study.write_cohort(rows)
    said = refused(study.command(tmp_path / "run", PATIENT), 5)
    assert "x-itc-0 (itc, macro)" in said
    assert "data.label" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_slides_without_bags_or_tiles_are_counted(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(study.bags)
    gone = ["x-itc-0-1", "y-macro-1-0"]  # one of two slides, and the only one of a patient
    for slide_id in gone:
        for path in study.recipe.glob(f"{slide_id}*"):
            path.unlink()
    bag = store.read("z-macro-0-0")
    bare = Bag(bag.slide_id, bag.features, bag.xy0, np.zeros_like(bag.tissue), bag.provenance)
    store.put(bare)
    words = (PATIENT, "data.missing=skip", "data.min_tissue=0.5", "split.folds=2", "fit.epochs=1")
    assert study.train(tmp_path / "run", *words) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "one bag per patient: 17 patients of 24 slides, 1 to 2 each" in said
    assert "2 patients used without some of their slides" in said
    assert "1 patients are not evaluable" in said
    sidecar = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert sidecar["not_evaluable"] == {"y-macro-1": "no slide with a bag (no bag)"}
    assert sidecar["slides"]["x-itc-0"] == sidecar["slides"]["z-macro-0"] == 1
    listed = pd.read_csv(tmp_path / "run" / "patients.csv").fillna("").set_index("slide_id")
    assert listed.loc[gone, "left_out"].tolist() == ["no bag", "no bag"]
    assert listed.loc["z-macro-0-0", "left_out"] == "no tile left by data.min_tissue=0.5"
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["coverage"]["evaluable"], metrics["coverage"]["total"]) == (17, 18)


def test_other_bags_in_the_folder_are_refused_as_ever(
    study: Study, tmp_path: Path, refused: Callable[..., str]
) -> None:
    study.put(study.recipe, "x-itc-0-1", tile_px=512)
    assert "different recipes" in refused(study.command(tmp_path / "run", PATIENT), 5)


def test_the_same_bags_of_other_patients_are_another_input(study: Study) -> None:
    def recorded() -> str:
        material = gathered(study)
        splits = splits_of(material, SplitSpec(folds=2), None)
        return inputs_of(material, study.cohort, splits)["bags_sha256"]

    before = recorded()
    assert recorded() == before
    other = {"x-itc-0-1": "x-itc-1", "x-itc-1-0": "x-itc-0"}  # both patients stay
    rows = [changed(r, patient_id=other.get(r.slide_id, r.patient_id)) for r in study.rows]
    study.write_cohort(rows)
    assert recorded() != before


def test_no_maps_are_made_of_bags_of_patients(
    run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words = ["explain", run, "--slides", tmp_path, "--out", tmp_path / "out"]
    assert "data.bag=slide" in refused(words, 2)


def test_a_study_compares_patients(shared_study: Study, tmp_path: Path) -> None:
    words = [
        *("study", "--cohort", shared_study.cohort, "--bags", shared_study.bags),
        *("--out", tmp_path / "study", "--allow-few-seeds", PATIENT),
        *(f"data.classes=[{','.join(CLASSES)}]", "split.folds=2", "fit.epochs=1"),
        *("study.arms=[ce,ncmi]", "study.rates=[0.01]", "study.selection=[patient]"),
        *("study.rivals=[ce]", "study.controls=[ce]", "aggregator.hidden=8"),
        "evaluate.replicates=100",
    ]
    assert run_command([str(word) for word in words]) == 0
    found = json.loads((tmp_path / "study" / "results.json").read_text())
    metric = found["selections"]["patient"]["metrics"]["macro_f1"]
    assert (metric["n"], metric["n_patients"]) == (18, 18)


# -- slides by patient -----------------------------------------------------------------------------


def test_level_patient_scores_the_mean_over_slides(
    run_copy: Path, said_json: Callable[..., Any]
) -> None:
    own = (run_copy / "metrics.json").read_bytes()
    found = said_json(["evaluate", run_copy, "--level", "patient", "--replicates", 100])
    table = table_of(run_copy)
    means = table.groupby(["seed", "patient_id"])[COLUMNS].mean()
    truth = table.groupby("patient_id")["y_true"].first()
    f1 = []
    for _, of_seed in means.groupby(level="seed"):
        of_seed = of_seed.droplevel("seed")
        decided = [CLASSES[k] for k in of_seed.to_numpy().argmax(axis=1)]
        f1.append(f1_score(truth.loc[of_seed.index], decided, labels=CLASSES, average="macro"))
    assert found["macro_f1"]["value"] == pytest.approx(np.mean(f1), abs=1e-12)
    assert (found["scored"], found["n"], found["patient_rule"]) == ("patient", 18, "mean")
    assert json.loads((run_copy / "metrics-patient.json").read_text()) == found
    assert (run_copy / "metrics.json").read_bytes() == own
    written = table_of(run_copy, "predictions-patient.csv").set_index(["seed", "patient_id"])
    np.testing.assert_allclose(written.loc[means.index, COLUMNS], means, rtol=0, atol=1e-15)


def test_the_rule_is_that_of_the_run_unless_another_is_given(
    run_copy: Path, tmp_path: Path, said_json: Callable[..., Any]
) -> None:
    out, config = run_copy, run_copy / "config.yaml"
    config.write_text(config.read_text().replace("patient_rule: mean", "patient_rule: max"))
    words = ["evaluate", out, "--level", "patient", "--replicates", 100, "--out", tmp_path / "p"]
    assert said_json(words)["patient_rule"] == "max"
    of_max = table_of(tmp_path / "p").set_index(["seed", "patient_id"])
    top = table_of(out).groupby(["seed", "patient_id"])["p_macro"].max()
    np.testing.assert_allclose(of_max["p_macro"], top.loc[of_max.index], rtol=0, atol=1e-15)
    assert said_json([*words, "--patient-rule", "mean"])["patient_rule"] == "mean"


def test_another_rule_has_files_of_its_own(run_copy: Path, said_json: Callable[..., Any]) -> None:
    words = ["evaluate", run_copy, "--level", "patient", "--replicates", 100]
    mean = said_json(words)
    most = said_json([*words, "--patient-rule", "max"])
    assert json.loads((run_copy / "metrics-patient.json").read_text()) == mean
    assert json.loads((run_copy / "metrics-patient-max.json").read_text()) == most
    assert table_of(run_copy, "predictions-patient-max.csv")["p_macro"].mean() > (
        table_of(run_copy, "predictions-patient.csv")["p_macro"].mean()
    )
    assert said_json([*words, "--patient-rule", "mean"]) == mean  # the run's own: no other name


def test_labels_of_slides_need_a_column_of_patients(
    study: Study, run_copy: Path, refused: Callable[..., str], said_json: Callable[..., Any]
) -> None:
    rows = study.rows
    worst = [row.label for row in rows]
    odd = next(k for k, row in enumerate(rows) if row.slide_id == "x-itc-0-1")
    rows[odd] = changed(rows[odd], label="macro")
    worst = ["macro" if row.patient_id == "x-itc-0" else row.label for row in rows]
    study.write_cohort(rows, worst=worst)
    words = ["evaluate", run_copy, "--level", "patient", "--replicates", 100]
    words += ["--cohort", study.cohort]
    said = refused(words, 5)
    assert "x-itc-0 (itc, macro)" in said
    assert "--label" in said
    assert said_json([*words, "--label", "worst"])["n"] == 18
    assert (run_copy / "metrics-cohort.worst-patient.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "x"], "--cohort"),
        (["--patient-rule", "max"], "--level patient"),
    ],
)
def test_what_would_do_nothing_is_refused(
    shared_run: Path, words: list[str], message: str, refused: Callable[..., str]
) -> None:
    assert message in refused(["evaluate", shared_run, *words], 2)


def test_predictions_of_patients_never_replace_those_of_slides(
    run_copy: Path, refused: Callable[..., str]
) -> None:
    before = (run_copy / "predictions.csv").read_bytes()
    words = ["evaluate", run_copy, "--level", "patient", "--out", run_copy]
    assert "would replace" in refused(words, 2)
    assert (run_copy / "predictions.csv").read_bytes() == before


def test_a_run_on_patients_is_scored_and_relabelled_by_patient(
    run: Path, study: Study, tmp_path: Path, said_json: Callable[..., Any]
) -> None:
    rows = [changed(r, label="macro") if r.patient_id == "x-itc-0" else r for r in study.rows]
    study.write_cohort(rows)
    words = ["evaluate", run, "--level", "patient", "--replicates", 100, "--out", tmp_path]
    found = said_json([*words, "--cohort", study.cohort])
    assert (found["n"], found["scored"]) == (18, "patient")
    assert found["per_class"]["macro"]["support"] == 7


def test_runs_on_slides_and_on_patients_meet_at_the_patient(
    run: Path, shared_mean_run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    words = ["compare", run, shared_mean_run, "--replicates", 100]
    assert "--level patient" in refused(words, 5)
    out = ["--level", "patient", "--replicates", "100", "--out", str(tmp_path)]
    assert run_command(["evaluate", str(shared_mean_run), *out]) == 0
    words = ["compare", str(run), str(tmp_path / "predictions.csv"), "--replicates", "100"]
    assert run_command(words) == 0
