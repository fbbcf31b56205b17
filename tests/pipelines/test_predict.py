"""`wsi predict`: which models speak, of what bags, and what becomes of slides that cannot be."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from pipelines.cli import run_command
from tests.pipelines.conftest import (
    CLASSES,
    DIM,
    SITES,
    Row,
    Study,
    provenance,
    put_bag,
    write_table,
)
from wsi.bags import Bag, BagStore, create_store, open_store
from wsi.errors import ExplainError
from wsi.evaluation import read_predictions

P = [f"p_{name}" for name in CLASSES]
SD = [f"sd_{name}" for name in CLASSES]
RECIPE = "texture-v1_0.5um_256px"


def words(run: Path, out: Path, *more: object) -> list[str]:
    return ["predict", str(run), "--out", str(out), *map(str, more)]


def table_of(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "predictions.csv", keep_default_na=False).set_index("slide_id")


def numbers(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    return table[list(columns)].to_numpy(np.float64)


@pytest.fixture(scope="module")
def new_bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine slides the run never saw: three of each class; never written to."""
    store = create_store(tmp_path_factory.mktemp("new") / "bags" / RECIPE)
    for seed, slide_id in enumerate(new_ids()):
        put_bag(store, slide_id, slide_id.partition("-")[0], 100 + seed)
    return store.root


def new_ids() -> list[str]:
    return [f"{label}-new-{k}" for label in CLASSES for k in range(3)]


@pytest.fixture(scope="module")
def predicted(shared_run: Path, new_bags: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of the new slides by all six models; never written to."""
    out = tmp_path_factory.mktemp("predict") / "out"
    assert run_command(words(shared_run, out, "--bags", new_bags)) == 0
    return out


@pytest.fixture
def bags(new_bags: Path, tmp_path: Path) -> BagStore:
    """A copy of the new bags that a test may change."""
    return open_store(shutil.copytree(new_bags, tmp_path / "bags" / RECIPE))


# -- the ensemble ------------------------------------------------------------------------------


def test_out_of_fold_a_run_predicts_its_own_slides_as_it_tested_them(
    shared_run: Path, shared_study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = words(shared_run, out, "--bags", shared_study.bags, "--out-of-fold")
    assert run_command(given) == 0
    tested = pd.read_csv(shared_run / "predictions.csv").groupby("slide_id")[P]
    found = table_of(out)
    np.testing.assert_allclose(
        numbers(found, P), numbers(tested.mean().loc[found.index], P), atol=1e-12
    )
    np.testing.assert_allclose(
        numbers(found, SD), numbers(tested.std(ddof=1).loc[found.index], P), atol=1e-12
    )
    assert set(found["n_models"]) == {2}
    assert set(found["in_training"]) == {"no"}
    # Ranked by the fold that tested them, as AUC is averaged over folds.
    fold = pd.read_csv(shared_run / "predictions.csv").groupby("slide_id")["fold"].first()
    assert dict(found["fold"]) == dict(fold)
    assert dict(found["patient_id"]) == {row.slide_id: row.patient_id for row in shared_study.rows}


def test_the_mean_and_spread_are_over_every_fold_and_seed(predicted: Path) -> None:
    found = table_of(predicted)
    single = pd.read_csv(predicted / "predictions_by_model.csv")
    assert sorted(set(zip(single["fold"], single["seed"]))) == [
        (fold, seed) for fold in range(3) for seed in range(2)
    ]
    by_slide = single.groupby("slide_id")[P]
    np.testing.assert_allclose(numbers(found, P), numbers(by_slide.mean().loc[found.index], P))
    spread = by_slide.std(ddof=1).loc[found.index]
    np.testing.assert_allclose(numbers(found, SD), numbers(spread, P))
    assert set(found["n_models"]) == {6}
    assert list(found["y_pred"]) == [CLASSES[k] for k in numbers(found, P).argmax(1)]
    np.testing.assert_allclose(numbers(found, P).sum(1), 1, atol=1e-12)


def test_folds_and_seeds_can_be_chosen(shared_run: Path, new_bags: Path, tmp_path: Path) -> None:
    given = words(shared_run, tmp_path / "out", "--bags", new_bags, "--fold", 1, "--seed", 0)
    assert run_command(given) == 0
    found = table_of(tmp_path / "out")
    assert set(found["n_models"]) == {1}
    assert set(found[SD[0]]) == {""}  # one model has no spread
    single = pd.read_csv(tmp_path / "out" / "predictions_by_model.csv")
    assert set(zip(single["fold"], single["seed"])) == {(1, 0)}


def test_the_sidecar_says_which_models_and_which_recipe(predicted: Path, shared_run: Path) -> None:
    told = json.loads((predicted / "predictions.json").read_text())["predict"]
    hashes = {
        json.loads((cell / "done.json").read_text())["files"]["model.safetensors"]
        for cell in shared_run.glob("fold*-seed*")
    }
    assert {model["sha256"] for model in told["models"]} == hashes
    assert told["schema"] == "wsi-predict/1"
    assert told["recipe"]["tiling"]["tile_px"] == 256
    assert told["encoder"]["name"] == "texture-v1"


# -- external validation -----------------------------------------------------------------------


def test_evaluate_scores_the_predictions_against_a_table(
    predicted: Path, tmp_path: Path, said_json
) -> None:
    rows = [Row(s, f"patient of {s}", s.partition("-")[0], SITES[0]) for s in new_ids()]
    cohort = write_table(tmp_path / "cohort.csv", rows)
    given = ["evaluate", predicted / "predictions.csv", "--cohort", cohort, "--out", tmp_path / "m"]
    found = said_json([*given, "--replicates", 100])
    table = table_of(predicted)
    labels = [s.partition("-")[0] for s in table.index]
    expected = f1_score(labels, table["y_pred"], labels=list(CLASSES), average="macro")
    assert found["macro_f1"]["value"] == pytest.approx(expected)
    assert found["macro_f1"]["n_patients"] == 9


def test_slides_that_trained_the_models_are_no_test(
    shared_run: Path, shared_study: Study, tmp_path: Path, refused
) -> None:
    out = tmp_path / "out"
    assert run_command(words(shared_run, out, "--bags", shared_study.bags)) == 0
    found = table_of(out)
    assert set(found["in_training"]) == {"yes"}
    assert set(found["split"]) == {"train"}
    assert "no test" in found["note"].iloc[0]
    cohort = ["--cohort", shared_study.cohort]
    told = refused(["evaluate", out / "predictions.csv", *cohort], 5)
    assert "27 slides of 18 patients trained models" in told
    assert "--leave-out-trained" in told
    cohort.append("--leave-out-trained")
    assert "no test rows" in refused(["evaluate", out / "predictions.csv", *cohort], 5)
    single = read_predictions(out / "predictions_by_model.csv").table
    parts = pd.read_csv(shared_run / "splits.csv").set_index(["slide_id", "fold"])["part"]
    for row in single.itertuples():
        own = parts.loc[(row.slide_id, row.fold)]
        assert row.split == ("test" if own == "test" else "train")


def test_a_slide_of_the_run_is_known_by_its_file_under_any_name(
    shared_run: Path, shared_study: Study, bags: BagStore, tmp_path: Path
) -> None:
    old = open_store(shared_study.recipe).read("x-macro-0-0")
    bags.put(replace(old, slide_id="renamed"))
    given = words(shared_run, tmp_path / "out", "--bags", bags.root)
    assert run_command(given) == 0
    found = table_of(tmp_path / "out")
    assert found.loc["renamed", "in_training"] == "yes"
    assert "same file" in found.loc["renamed", "note"]
    assert set(found.drop("renamed")["in_training"]) == {"no"}
    assert (
        run_command([*words(shared_run, tmp_path / "oof", "--bags", bags.root), "--out-of-fold"])
        == 0
    )
    assert table_of(tmp_path / "oof").loc["renamed", "n_models"] == 2


# -- what cannot be predicted ------------------------------------------------------------------


def test_empty_and_damaged_bags_are_rows_with_a_reason_and_exit_3(
    shared_run: Path, bags: BagStore, tmp_path: Path, said_json
) -> None:
    bags.write_empty("blank", provenance("blank"), reason="no-tissue")
    with (bags.root / "itc-new-1.h5").open("r+b") as handle:
        handle.seek(-9, 2)
        handle.write(b"\xff")
    (bags.root / "itc-new-2.json").write_text("{}")
    given = words(shared_run, tmp_path / "out", "--bags", bags.root)
    told = said_json(given, 3)
    assert set(told["not_evaluable"]) == {"blank", "itc-new-1", "itc-new-2"}
    found = table_of(tmp_path / "out")
    assert dict(found["state"]) == dict.fromkeys(new_ids(), "predicted") | {
        "blank": "empty",
        "itc-new-1": "damaged",
        "itc-new-2": "damaged",
    }
    assert found.loc["blank", P].tolist() == [""] * 3
    assert "no-tissue" in found.loc["blank", "note"]
    read = read_predictions(tmp_path / "out" / "predictions.csv")
    assert set(read.not_evaluable) == {"blank", "itc-new-1", "itc-new-2"}
    assert len(read.table) == 7
    assert run_command([*given, "--allow-quarantined", "3"]) == 0


def test_a_row_without_probabilities_is_refused_unless_it_is_said_to_be_not_evaluable(
    predicted: Path, tmp_path: Path, refused
) -> None:
    table = pd.read_csv(predicted / "predictions.csv", dtype=str, keep_default_na=False)
    table.loc[0, P] = ""
    table.to_csv(tmp_path / "predictions.csv", index=False)
    assert "no finite numbers" in refused(["evaluate", tmp_path / "predictions.csv"], 5)


def test_bags_of_another_recipe_are_refused_with_both_sides_named(
    shared_run: Path, bags: BagStore, tmp_path: Path, refused
) -> None:
    strange = create_store(tmp_path / "strange")
    put_bag(strange, "a", "itc", 0, tile_px=512)
    said = refused(words(shared_run, tmp_path / "out", "--bags", strange.root), 5)
    assert "tiling.tile_px is 256 in the run and 512 here" in said
    other = create_store(tmp_path / "other")
    made = provenance("b")
    made.encoder.update(name="resnet50", fingerprint="feedfeedfeedfeed")
    features = np.zeros((3, DIM), np.float32)
    places = np.zeros((3, 2), np.int32)
    other.put(Bag("b", features, places, np.ones(3, np.float16), made))
    said = refused(words(shared_run, tmp_path / "out", "--bags", other.root), 5)
    assert (
        "encoder is texture-v1 (0123456789ab) in the run and resnet50 (feedfeedfeed) here" in said
    )


def test_the_tile_limits_of_the_run_apply(study: Study, bags: BagStore, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert study.train(run, "data.min_tissue=0.5") == 0
    old = bags.read("macro-new-0")
    half = np.where(np.arange(len(old)) % 2, 1, 0.1).astype(np.float16)
    bags.put(replace(old, slide_id="half", tissue=half))
    bags.put(replace(old, slide_id="kept", features=old.features[1::2], xy0=old.xy0[1::2],
                     tissue=old.tissue[1::2]))  # fmt: skip
    bags.put(replace(old, slide_id="thin", tissue=np.full(len(old), 0.1, np.float16)))
    assert run_command(words(run, tmp_path / "out", "--bags", bags.root)) == 3
    found = table_of(tmp_path / "out")
    np.testing.assert_array_equal(numbers(found.loc[["half"]], P), numbers(found.loc[["kept"]], P))
    assert found.loc["thin", "state"] == "failed"
    assert "no tile is left by data.min_tissue=0.5" in found.loc["thin", "note"]


def test_a_changed_model_is_refused(
    run_copy: Path, new_bags: Path, tmp_path: Path, refused
) -> None:
    model = run_copy / "fold1-seed0" / "model.safetensors"
    model.write_bytes((run_copy / "fold1-seed1" / "model.safetensors").read_bytes())
    said = refused(words(run_copy, tmp_path / "out", "--bags", new_bags), 5)
    assert "fold1-seed0" in said
    assert "was changed since it was trained" in said


def test_an_output_folder_keeps_to_its_models(
    predicted: Path, shared_run: Path, new_bags: Path, tmp_path: Path, refused
) -> None:
    out = Path(shutil.copytree(predicted, tmp_path / "out"))
    before = (out / "predictions.csv").read_bytes()
    assert run_command(words(shared_run, out, "--bags", new_bags)) == 0
    assert (out / "predictions.csv").read_bytes() == before
    said = refused(words(shared_run, out, "--bags", new_bags, "--fold", 0), 2)
    assert "another run or choice of models" in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "not empty" in refused(words(shared_run, tmp_path / "mine", "--bags", new_bags), 2)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--fold", 7], "has no fold 7"),
        (["--seed", 9], "has no seed 9"),
        (["--slides", "x"], "either --bags DIR or --slides DIR"),
        (["slides.no_mpp=stop"], "settings go with --slides"),
        (["--explain"], "draws on slides"),
    ],
)
def test_wrong_choices_are_refused(
    shared_run: Path, new_bags: Path, tmp_path: Path, refused, more: list[object], told: str
) -> None:
    assert told in refused(words(shared_run, tmp_path / "out", "--bags", new_bags, *more), 2)
    assert not (tmp_path / "out").exists()


# -- from raw slides ---------------------------------------------------------------------------

SETTINGS = (
    "tiling.mpp=1.0",
    "tiling.tile_px=64",
    "tissue.min_area_mm2=0.01",
    "quality.max_fold=0.9",
    "pixels.srgb=true",
    "precision=float32",
)


@pytest.fixture(scope="module")
def made(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bags of the drawn slides as `wsi preprocess` makes them, with settings of their own."""
    out = tmp_path_factory.mktemp("made")
    given = ["preprocess", *SETTINGS, "--slides", str(slide_folder), "--out", str(out)]
    assert run_command(given) == 0
    return out / "bags" / "texture-v1_1um_64px"


@pytest.fixture(scope="module")
def real_run(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on bags of that recipe, whose features are drawn at random."""
    root = tmp_path_factory.mktemp("real")
    pattern = open_store(made).read("a")
    store = create_store(root / "bags" / made.name)
    rng = np.random.default_rng(0)
    rows = [Row(f"{label}-{k}", f"{label}-{k}", label, "s") for label in CLASSES for k in range(4)]
    for row in rows:
        own = replace(pattern.provenance, slide={"fingerprint": row.slide_id, "mpp": [0.5, 0.5]})
        features = rng.standard_normal(pattern.features.shape).astype(np.float32)
        store.put(replace(pattern, slide_id=row.slide_id, features=features, provenance=own))
    study = Study(root)
    write_table(study.cohort, rows)
    shutil.rmtree(root / "run", ignore_errors=True)
    assert study.train(root / "run") == 0
    shutil.rmtree(store.root)  # a run moves without its bags
    return root / "run"


def test_slides_go_through_the_recipe_of_the_run(
    real_run: Path, made: Path, slide_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_command(words(real_run, out, "--slides", slide_folder)) == 3  # one is bare glass
    mine, theirs = open_store(out / "bags"), open_store(made)
    assert mine.ids() == theirs.ids() == ["a", "site/b", "site/c"]
    for slide_id in theirs.ids():
        np.testing.assert_array_equal(mine.read(slide_id).features, theirs.read(slide_id).features)
    found = table_of(out)
    assert dict(found["state"]) == {
        "a": "predicted",
        "site/b": "predicted",
        "site/c": "predicted",
        "glass": "empty",
    }
    assert found.loc["site/b", "site"] == "site"
    assert "site site was not in training" in found.loc["site/b", "note"]
    by_bags = tmp_path / "by-bags"
    assert run_command(words(real_run, by_bags, "--bags", made)) == 3
    again = table_of(by_bags)
    np.testing.assert_array_equal(
        numbers(found.loc[theirs.ids()], P), numbers(again.loc[theirs.ids()], P)
    )


def test_a_rerun_makes_no_bag_again_and_a_new_slide_joins(
    real_run: Path, slide_folder: Path, tmp_path: Path
) -> None:
    out, slides = tmp_path / "out", tmp_path / "slides"
    slides.mkdir()
    shutil.copy2(slide_folder / "a.svs", slides)
    assert run_command(words(real_run, out, "--slides", slides)) == 0
    bag = next((out / "bags").glob("*/a.h5"))
    before, row = bag.stat().st_mtime_ns, numbers(table_of(out).loc[["a"]], P)
    (slides / "broken.svs").write_bytes(b"II*\x00 no slide")
    assert run_command(words(real_run, out, "--slides", slides)) == 3
    assert bag.stat().st_mtime_ns == before
    found = table_of(out)
    np.testing.assert_array_equal(numbers(found.loc[["a"]], P), row)
    assert found.loc["broken", "state"] == "quarantined"


def test_each_slide_gets_a_page_that_loads_nothing(
    real_run: Path, slide_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    slides = [str(slide_folder / "a.svs"), str(slide_folder / "glass.tif")]
    given = [*words(real_run, out, "--explain"), "--slides", *slides]
    assert run_command(given) == 3
    assert [path.name for path in (out / "pages").iterdir()] == ["a.html"]
    text = (out / "pages" / "a.html").read_text(encoding="utf-8")
    assert "research use only" in text.lower()
    row = table_of(out).loc["a"]
    for name in CLASSES:
        assert f"{float(row[f'p_{name}']):.3f}" in text
        assert f"{float(row[f'sd_{name}']):.3f}" in text
    sources = re.findall(r'(?:src|href)="([^"]{0,12})', text)
    assert len(sources) == 3  # thumbnail, map, top tiles
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r"data:image/[^\"]*", "", text).replace("http-equiv", "")
    before = (out / "pages" / "a.html").stat().st_mtime_ns
    assert run_command(given) == 3
    assert (out / "pages" / "a.html").stat().st_mtime_ns == before


def test_a_page_says_why_there_is_no_map(
    real_run: Path, slide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*args: object) -> None:
        raise ExplainError("this model does not tell tiles apart")

    monkeypatch.setattr("pipelines.predict_pages.model_evidence", silent)
    out = tmp_path / "out"
    where = ["--slides", str(slide_folder / "a.svs")]
    assert run_command([*words(real_run, out, "--explain"), *where]) == 0
    text = (out / "pages" / "a.html").read_text(encoding="utf-8")
    assert "no map of the evidence: this model does not tell tiles apart" in text
    assert text.count("<img") == 1


def test_a_table_gives_patients_and_sites_and_its_labels_are_not_read(
    real_run: Path, slide_folder: Path, tmp_path: Path
) -> None:
    table = tmp_path / "slides.csv"
    with table.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["slide_id", "path", "patient_id", "site", "label"])
        writer.writerow(["one", slide_folder / "a.svs", "macro-0", "s", "no such class"])
    assert run_command(words(real_run, tmp_path / "out", "--slides", table)) == 0
    row = table_of(tmp_path / "out").loc["one"]
    assert (row["patient_id"], row["site"], row["y_true"]) == ("macro-0", "s", "")
    assert row["note"] == "trained on another slide of its patient"


def test_settings_of_the_recipe_are_the_runs_alone(
    real_run: Path, slide_folder: Path, tmp_path: Path, refused
) -> None:
    where = ["--slides", slide_folder]
    out = tmp_path / "out"
    assert "made into bags as the run's were" in refused(
        words(real_run, out, *where, "tiling.mpp=0.5"), 2
    )
    said = refused(words(real_run, out, *where, "encoder=resnet50", "encoder.weights=random"), 5)
    assert "encoder is texture-v1" in said
    assert "in the run and resnet50-random" in said
    assert not list((tmp_path / "out" / "bags").glob("*/*.h5"))


def test_a_run_on_imported_bags_takes_no_slides(
    run_copy: Path, slide_folder: Path, tmp_path: Path, refused
) -> None:
    path = run_copy / "bags.json"
    held = json.loads(path.read_text())
    held["encoder"] |= {"state": "declared", "name": "uni"}
    path.write_text(json.dumps(held))
    said = refused(words(run_copy, tmp_path / "out", "--slides", slide_folder), 2)
    assert "bags that another tool made (encoder uni)" in said


def test_a_run_of_before_the_record_falls_back_on_its_bags(
    run_copy: Path, shared_study: Study, bags: BagStore, tmp_path: Path, refused
) -> None:
    (run_copy / "bags.json").unlink()
    old = open_store(shared_study.recipe).read("x-macro-0-0")
    bags.put(replace(old, slide_id="renamed"))
    assert run_command(words(run_copy, tmp_path / "out", "--bags", bags.root)) == 0
    assert table_of(tmp_path / "out").loc["renamed", "in_training"] == "yes"
    inputs = json.loads((run_copy / "inputs.json").read_text())
    inputs["bags"] = str(tmp_path / "gone")
    (run_copy / "inputs.json").write_text(json.dumps(inputs))
    said = refused(words(run_copy, tmp_path / "more", "--bags", bags.root), 2)
    assert "before runs recorded their recipe" in said
