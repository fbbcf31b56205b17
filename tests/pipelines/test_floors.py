"""Floors in a run folder: made by `wsi train`, read by `wsi evaluate` and `wsi compare`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

import pipelines.config
from pipelines.cli import run_command
from pipelines.console import Console
from pipelines.fits import gather, splits_of
from pipelines.floors import make_floors, read_floors
from pipelines.rundir import RunDir
from wsi.bags import open_store

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Json = Callable[..., Any]
CLASSES = ["normal", "itc", "macro"]
NAMES = ["majority", "tile-count", "site", "mean-features"]
FAST = ("--replicates", "100")


def metrics_of(root: Path, name: str = "metrics.json") -> dict[str, Any]:
    return json.loads((root / name).read_text())


def table_of(root: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(root / "floors" / f"{name}.csv")


def auc_of(table: pd.DataFrame) -> float:
    columns = [f"p_{c}" for c in CLASSES]
    folds = [
        np.mean([roc_auc_score(rows["y_true"] == c, rows[k]) for c, k in zip(CLASSES, columns)])
        for _, rows in table.groupby("fold")
    ]
    return float(np.mean(folds))


@pytest.mark.parametrize("name", NAMES)
def test_floors_are_scored_on_the_slides_and_folds_of_the_run(shared_run: Path, name: str) -> None:
    own = pd.read_csv(shared_run / "predictions.csv")
    table, own = table_of(shared_run, name), own[own["seed"] == 0]
    keys = ["slide_id", "patient_id", "site", "fold", "y_true"]
    assert table[keys].sort_values("slide_id").values.tolist() == (
        own[keys].sort_values("slide_id").values.tolist()
    )
    found = metrics_of(shared_run)["floors"][name]
    decided = [CLASSES[k] for k in table[[f"p_{c}" for c in CLASSES]].to_numpy().argmax(axis=1)]
    f1 = f1_score(table["y_true"], decided, labels=CLASSES, average="macro", zero_division=0.0)
    assert found["macro_f1"]["value"] == pytest.approx(f1, abs=1e-12)
    assert found["auc"]["value"] == pytest.approx(auc_of(table), abs=1e-12)
    assert found["auc"]["n_patients"] == 18


def test_the_report_shows_floors_and_what_they_mean(shared_run: Path) -> None:
    page, metrics = (shared_run / "report.html").read_text(), metrics_of(shared_run)
    assert "Floors from the same bags and splits" in page
    for told in (*NAMES, metrics["floors_note"]):
        assert told in page
    assert "3 sites" in page


def test_floors_are_predictions_like_any_other(
    shared_run: Path, said_json: Json, tmp_path: Path
) -> None:
    source = shared_run / "floors" / "mean-features.csv"
    copied = Path(shutil.copytree(source.parent, tmp_path / "copied"))
    found = said_json(["evaluate", copied / source.name, *FAST])
    expected = metrics_of(shared_run)["floors"]["mean-features"]
    for metric in ("macro_f1", "auc"):
        for key in ("value", "low", "high"):
            assert found[metric][key] == expected[metric][key]
    (difference,) = said_json(["compare", source, shared_run, *FAST])["differences"]
    assert difference["value"] == expected["macro_f1"]["run_minus_floor"]["value"]


def test_a_floor_that_knows_the_training_frequencies_only_has_no_information(
    shared_run: Path, said_json: Json, tmp_path: Path
) -> None:
    words = ["evaluate", shared_run / "floors" / "majority.csv", "--out", tmp_path, *FAST]
    assert said_json(words)["information"]["mi"]["value"] == pytest.approx(0, abs=1e-12)


def test_floors_that_lie_there_are_not_made_again(
    study: Study, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("bags were read")

    monkeypatch.setattr("pipelines.floors.bag_means", fail)
    before = {p.name: p.stat().st_mtime_ns for p in (run_copy / "floors").iterdir()}
    settings = pipelines.config.read_config(run_copy / "config.yaml")
    held = read_floors(RunDir(run_copy))
    assert held is not None
    material = gather(settings, study.cohort, study.bags, Console(hushed=True))
    splits = splits_of(material, settings.split, run_copy / "splits.csv")
    found = make_floors(settings, material, splits, RunDir(run_copy), Console(hushed=True))
    assert found is not None
    assert {p.name: p.stat().st_mtime_ns for p in (run_copy / "floors").iterdir()} == before
    other = make_floors(
        settings,
        material,
        splits,
        RunDir(run_copy.parent / "other"),
        Console(hushed=True),
        RunDir(run_copy),
    )
    assert other is not None
    for name in NAMES:
        written = run_copy.parent / "other" / "floors" / f"{name}.csv"
        assert written.read_bytes() == (run_copy / "floors" / f"{name}.csv").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "removed", "record", "swapped"])
def test_damaged_floors_count_as_none(run_copy: Path, damage: str) -> None:
    assert read_floors(RunDir(run_copy)) is not None
    folder = run_copy / "floors"
    path = folder / ("floors.json" if damage == "record" else "site.csv")
    if damage == "removed":
        path.unlink()
    elif damage == "swapped":  # another sound table with its sidecar
        for suffix in (".csv", ".json"):
            shutil.copy(folder / f"majority{suffix}", folder / f"site{suffix}")
    else:
        path.write_bytes(path.read_bytes()[:-20])
    assert read_floors(RunDir(run_copy)) is None


def test_evaluation_settings_may_change_and_the_run_is_scored_anew(
    shared_study: Study, run_copy: Path
) -> None:
    before = (run_copy / "predictions.csv").read_bytes()
    fits = {p: p.stat().st_mtime_ns for p in run_copy.glob("fold*/model.safetensors")}
    assert (
        shared_study.train(run_copy, "fit.seeds=2", "evaluate.level=0.8", "evaluate.floors=false")
        == 0
    )
    assert {p: p.stat().st_mtime_ns for p in run_copy.glob("fold*/model.safetensors")} == fits
    assert (run_copy / "predictions.csv").read_bytes() == before
    found = metrics_of(run_copy)
    assert (found["level"], found["floors"]) == (0.8, None)
    assert found["floors_note"] == "no floors: evaluate.floors=false"
    kept = pipelines.config.read_config(run_copy / "config.yaml").evaluate
    assert (kept.level, kept.floors) == (0.8, False)


def test_a_run_without_floors_gets_them_when_it_is_evaluated(
    run_copy: Path, said_json: Json
) -> None:
    expected = {p.name: p.read_bytes() for p in (run_copy / "floors").iterdir()}
    shutil.rmtree(run_copy / "floors")
    found = said_json(["evaluate", run_copy, *FAST])
    assert {p.name: p.read_bytes() for p in (run_copy / "floors").iterdir()} == expected
    assert list(found["floors"]) == NAMES


@pytest.mark.parametrize("lost", ["bags", "cohort_table"])
def test_where_bags_or_table_are_gone_evaluation_says_why_it_has_no_floors(
    run_copy: Path, lost: str, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_copy / "floors")
    inputs = json.loads((run_copy / "inputs.json").read_text())
    inputs[lost] = str(run_copy / "nowhere")
    (run_copy / "inputs.json").write_text(json.dumps(inputs))
    assert run_command(["evaluate", str(run_copy), *FAST]) == 0
    said = capsys.readouterr().err
    assert f"no floors beside {run_copy}: " in said
    assert "nowhere" in said
    found = metrics_of(run_copy)
    assert found["floors"] is None
    assert "nowhere" in found["floors_note"]
    assert found["macro_f1"]["value"] is not None


@pytest.mark.parametrize("key", ["bags_sha256", "splits_sha256", "cohort_sha256"])
def test_floors_are_not_made_of_other_bags_splits_or_tables(
    run_copy: Path, key: str, said_json: Json
) -> None:
    shutil.rmtree(run_copy / "floors")
    inputs = json.loads((run_copy / "inputs.json").read_text())
    (run_copy / "inputs.json").write_text(json.dumps(inputs | {key: "0" * 64}))
    found = said_json(["evaluate", run_copy, *FAST])
    assert found["floors"] is None
    assert "no longer" in found["floors_note"]
    assert not (run_copy / "floors").exists()


def test_corrected_labels_are_those_of_floors_too(run_copy: Path, said_json: Json) -> None:
    rows = pd.read_csv(run_copy / "predictions.csv").drop_duplicates("slide_id")
    table = rows[["slide_id", "patient_id", "site"]].assign(label=rows["y_true"])
    table.loc[table["patient_id"] == "x-normal-0", "label"] = "macro"
    table.to_csv(run_copy.parent / "corrected.csv", index=False)
    found = said_json(["evaluate", run_copy, "--cohort", run_copy.parent / "corrected.csv", *FAST])
    truth = dict(zip(table["slide_id"], table["label"]))
    floor = table_of(run_copy, "mean-features")
    corrected = floor.assign(y_true=[truth[s] for s in floor["slide_id"]])
    assert (corrected["y_true"] != floor["y_true"]).any()
    value = found["floors"]["mean-features"]["auc"]["value"]
    assert value == pytest.approx(auc_of(corrected), abs=1e-12)
    assert value != pytest.approx(auc_of(floor), abs=1e-6)


def test_by_patient_floors_are_of_patients(run_copy: Path, said_json: Json) -> None:
    found = said_json(["evaluate", run_copy, "--level", "patient", *FAST])
    floor = table_of(run_copy, "tile-count")
    columns = [f"p_{c}" for c in CLASSES]
    means = floor.groupby(["patient_id", "fold", "y_true"], as_index=False)[columns].mean()
    score = found["floors"]["tile-count"]["auc"]
    assert (score["n"], len(means)) == (18, 18)
    assert score["value"] == pytest.approx(auc_of(means), abs=1e-12)


def test_bags_of_patients_have_floors_of_all_their_tiles(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("data.bag=patient", "data.min_tissue=0.05", "evaluate.floors=true")
    settings = pipelines.config.load_config([f"data.classes=[{','.join(CLASSES)}]", *words])
    material = gather(settings, study.cohort, study.bags, Console(hushed=True))
    splits = splits_of(material, settings.split, None)
    looked: dict[str, Any] = {}

    def keep(means: Any, *rest: Any) -> dict[str, Any]:
        looked["means"] = means
        return {"auc": None, "note": "not asked for"}

    monkeypatch.setattr("pipelines.floors.site_from_features", keep)
    found = make_floors(settings, material, splits, RunDir(tmp_path / "run"), Console(hushed=True))
    assert found is not None
    predictions = found.predictions["mean-features"]
    assert predictions.unit == "patient"
    owners = {row.patient_id for row in study.rows}
    assert set(predictions.table["slide_id"]) == owners
    store, means = open_store(study.bags), looked["means"]
    for k, patient in enumerate(means.ids):
        files = [store.root / f"{r.slide_id}.h5" for r in study.rows if r.patient_id == patient]
        tiles = np.concatenate([np.asarray(h5py.File(path)["features"]) for path in files])
        assert means.tiles[k] == len(tiles)
        assert np.allclose(means.features[k], tiles.astype(float).mean(axis=0), atol=1e-12)


def test_test_labels_do_not_reach_floors(study: Study, tmp_path: Path) -> None:
    words = [f"data.classes=[{','.join(CLASSES)}]", "evaluate.floors=true"]
    settings = pipelines.config.load_config(words)
    tested = [row.slide_id for row in study.rows if row.patient_id.endswith("-1")]
    lines = [
        f"{r.slide_id},{r.patient_id},0,{'test' if r.slide_id in tested else 'train'}"
        for r in study.rows
    ]
    splits = tmp_path / "splits.csv"
    splits.write_text("\n".join(["slide_id,patient_id,fold,part", *lines]))
    made = []
    for turn in (0, 1):
        permuted = [
            type(r)(r.slide_id, r.patient_id, CLASSES[(CLASSES.index(r.label) + turn) % 3], r.site)
            if r.slide_id in tested
            else r
            for r in study.rows
        ]
        table = study.write_cohort(permuted)
        hushed = Console(hushed=True)
        material = gather(settings, table, study.bags, hushed)
        folds = splits_of(material, settings.split, splits)
        floors = make_floors(settings, material, folds, RunDir(tmp_path / f"{turn}"), hushed)
        assert floors is not None
        made.append(floors.predictions)
    for name in NAMES:
        one, other = (floors[name] for floors in made)
        assert (one.p == other.p).all()
        assert (one.y != other.y).all()
