"""`wsi train` from bags to a run folder: its files, its figures, running again, what is refused."""

from __future__ import annotations

import csv
import json
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import hypergeom
from sklearn.metrics import f1_score, roc_auc_score

from pipelines.cli import run_command
from pipelines.fits import draw_line
from tests.pipelines.conftest import SHARED, Study
from wsi.aggregators.base import Output
from wsi.bags import open_store
from wsi.training import load

Json = Callable[..., Any]
Refused = Callable[..., str]

CLASSES = ["normal", "itc", "macro"]
COLUMNS = [f"p_{name}" for name in CLASSES]
CELL_FILES = {"model.safetensors", "metrics.jsonl", "embeddings.h5", "predictions.csv", "done.json"}


def predictions(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "predictions.csv", dtype={"slide_id": str, "patient_id": str})


def parts(run: Path) -> dict[tuple[int, str], str]:
    """Return the part of every slide by (fold, slide id)."""
    with (run / "splits.csv").open(encoding="utf-8", newline="") as handle:
        return {(int(r["fold"]), r["slide_id"]): r["part"] for r in csv.DictReader(handle)}


def strict_json(path: Path) -> Any:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{path.name} holds {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def times(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def macro_f1(table: pd.DataFrame) -> float:
    return float(
        f1_score(
            table["y_true"], table["y_pred"], labels=CLASSES, average="macro", zero_division=0.0
        )
    )


def auc(table: pd.DataFrame) -> float:
    """Return the mean over folds of the mean over classes of one-vs-rest AUC."""
    of_folds = [
        np.mean([roc_auc_score(fold["y_true"] == c, fold[f"p_{c}"]) for c in CLASSES])
        for _, fold in table.groupby("fold")
    ]
    return float(np.mean(of_folds))


# -- what a run leaves -------------------------------------------------------------------------


def test_a_run_folder_holds_what_is_promised(shared_run: Path) -> None:
    top = {path.name for path in shared_run.iterdir() if path.is_file()}
    assert top >= {
        "config.yaml",
        "environment.json",
        "inputs.json",
        "splits.csv",
        "splits.json",
        "predictions.csv",
        "predictions.json",
        "metrics.json",
        "report.html",
        "model-card.md",
        "run.log",
    }
    cells = {path.name for path in shared_run.iterdir() if path.is_dir()}
    fits = {f"fold{fold}-seed{seed}" for fold in range(3) for seed in range(2)}
    assert cells == fits | {"floors"}
    for cell in fits:
        assert {path.name for path in (shared_run / cell).iterdir()} == CELL_FILES
    assert not list(shared_run.rglob(".tmp*"))


def test_no_json_holds_what_is_no_json(shared_run: Path) -> None:
    files = list(shared_run.rglob("*.json"))
    assert len(files) == 6 + 6 + 5  # of the run, its fits, its floors
    for path in files:
        strict_json(path)
    for path in shared_run.glob("fold*/*.jsonl"):
        assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", path.read_text()))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [0, 1]
        assert all(0 <= row["figures"]["accuracy"] <= 1 for row in rows)
        assert [row["alarms"] for row in rows] == [[], []]


def test_patients_stay_on_one_side_and_every_slide_is_tested_once(
    shared_run: Path, shared_study: Study
) -> None:
    placed = parts(shared_run)
    patient = {row.slide_id: row.patient_id for row in shared_study.rows}
    for fold in range(3):
        here = {slide: part for (k, slide), part in placed.items() if k == fold}
        assert set(here) == set(patient)
        assert set(here.values()) == {"train", "val", "test"}
        sides = {(patient[slide], part) for slide, part in here.items()}
        assert len(sides) == len(set(patient.values()))
    tested = Counter(slide for (_, slide), part in placed.items() if part == "test")
    assert set(tested.values()) == {1}


def test_predictions_are_of_the_test_parts_with_the_labels_of_the_cohort(
    shared_run: Path, shared_study: Study
) -> None:
    table = predictions(shared_run)
    tested = {(fold, s) for (fold, s), part in parts(shared_run).items() if part == "test"}
    for seed in (0, 1):
        rows = table[table["seed"] == seed]
        assert sorted(zip(rows["fold"], rows["slide_id"], strict=True)) == sorted(tested)
    known = {row.slide_id: (row.patient_id, row.site, row.label) for row in shared_study.rows}
    found = zip(table["slide_id"], table["patient_id"], table["site"], table["y_true"], strict=True)
    assert all(known[slide] == tuple(rest) for slide, *rest in found)
    np.testing.assert_allclose(table[COLUMNS].sum(axis=1), 1, atol=1e-6)
    assert table["y_pred"].tolist() == [CLASSES[k] for k in table[COLUMNS].to_numpy().argmax(1)]


def test_metrics_are_those_of_scikit_learn(shared_run: Path) -> None:
    table, metrics = predictions(shared_run), strict_json(shared_run / "metrics.json")
    seeds = [rows for _, rows in table.groupby("seed")]
    assert metrics["macro_f1"]["value"] == pytest.approx(np.mean([macro_f1(r) for r in seeds]))
    assert metrics["auc"]["value"] == pytest.approx(np.mean([auc(r) for r in seeds]))
    for seed, rows in enumerate(seeds):
        assert metrics["seeds"][str(seed)]["macro_f1"] == pytest.approx(macro_f1(rows))
        assert metrics["seeds"][str(seed)]["auc"] == pytest.approx(auc(rows))
    for site, rows in seeds[0].groupby("site"):
        other = seeds[1][seeds[1]["site"] == site]
        expected = (macro_f1(rows) + macro_f1(other)) / 2
        assert metrics["by"]["site"][site]["macro_f1"]["value"] == pytest.approx(expected)
    assert (metrics["n"], metrics["n_patients"]) == (27, 18)
    assert metrics["coverage"]["fraction"] == 1


def test_training_learns_what_separates_the_classes(
    shared_study: Study, tmp_path: Path, said_json: Json
) -> None:
    words = shared_study.command(tmp_path / "run", "fit.epochs=15", "fit.lr=0.01")
    metrics = said_json(words)["metrics"]
    assert metrics["auc"]["value"] > 0.9
    assert metrics["macro_f1"]["value"] > 0.7


def test_the_rule_that_validation_chose_is_on_record(
    shared_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, words = tmp_path / "run", ("objective=ncmi", "objective.predict=auto", "fit.epochs=6")
    assert shared_study.train(run, *words, "fit.lr=0.01", "-v") == 0
    told = capsys.readouterr().err
    rules = Counter()
    for cell in sorted(run.glob("fold*-seed*")):
        done = strict_json(cell / "done.json")
        model, _ = load(cell / "model.safetensors")
        assert done["rule"] == model.objective.rule
        assert done["predicts_prior"] == model.objective.predicts_prior
        assert f"decided by {done['rule']}" in told
        rules[done["rule"]] += 1
        tables = predictions(run)
        table = tables[tables["fold"] == int(cell.name[4])].set_index("slide_id")
        with h5py.File(cell / "embeddings.h5") as file:
            ids = [text.decode() for text in file["slide_id"][:]]  # pyright: ignore
            z = torch.from_numpy(np.asarray(file["embedding"]))
        with torch.no_grad():
            p = model.objective.scores(Output(z), done["rule"]).double().softmax(-1).numpy()
        expected = pd.DataFrame(p, index=ids, columns=COLUMNS).loc[table.index]
        np.testing.assert_allclose(table[COLUMNS], expected, atol=1e-5)
    assert rules.total() == 3
    page = (run / "report.html").read_text(encoding="utf-8")
    in_words = r"( \([^)]*\))?"
    assert all(re.search(rf"{rule}{in_words} in {n} fits?\b", page) for rule, n in rules.items())


def test_embeddings_are_of_every_slide_by_part(shared_run: Path) -> None:
    placed = parts(shared_run)
    for cell in shared_run.glob("fold*-seed*"):
        fold = int(cell.name.removeprefix("fold").partition("-")[0])
        with h5py.File(cell / "embeddings.h5") as file:
            ids = [text.decode() for text in file["slide_id"][:]]  # pyright: ignore
            found = [text.decode() for text in file["part"][:]]  # pyright: ignore
            embedding = np.asarray(file["embedding"])
        assert sorted(ids) == sorted({slide for _, slide in placed})
        assert found == [placed[fold, slide] for slide in ids]
        assert embedding.shape[0] == 27
        assert np.isfinite(embedding).all()
        assert len(np.unique(embedding, axis=0)) == 27


def test_the_settings_of_a_run_are_kept_whole(shared_run: Path, said_json: Json) -> None:
    kept = said_json(["config", "show", shared_run / "config.yaml"])
    assert kept["fit"]["seeds"] == [0, 1]
    assert kept["data"]["classes"] == CLASSES
    assert kept["aggregator"] == {"name": "abmil", "hidden": 8}


def test_inputs_say_which_bags_and_which_table(shared_run: Path, shared_study: Study) -> None:
    import hashlib

    inputs = strict_json(shared_run / "inputs.json")
    digest = hashlib.sha256(shared_study.cohort.read_bytes()).hexdigest()
    assert inputs["cohort_sha256"] == digest
    assert inputs["slides"] == 27
    assert inputs["recipe"] == shared_study.recipe.name


# -- running again -----------------------------------------------------------------------------


def test_a_second_run_trains_nothing(
    shared_study: Study, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = sorted(run_copy.glob("fold*"))
    before = [times(cell) for cell in cells]
    table = (run_copy / "predictions.csv").read_bytes()
    assert shared_study.train(run_copy, "fit.seeds=2") == 0
    assert "6 of 6 fits are done already" in capsys.readouterr().err
    assert [times(cell) for cell in cells] == before
    assert (run_copy / "predictions.csv").read_bytes() == table


@pytest.mark.parametrize("lost", ["done.json", "predictions.csv", "model.safetensors"])
def test_only_what_is_missing_is_trained_again_and_the_same(
    shared_study: Study, run_copy: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    table = (run_copy / "predictions.csv").read_bytes()
    model = (run_copy / "fold1-seed1" / "model.safetensors").read_bytes()
    others = {c: times(c) for c in run_copy.glob("fold*") if c.name != "fold1-seed1"}
    (run_copy / "fold1-seed1" / lost).unlink()
    assert shared_study.train(run_copy, "fit.seeds=2") == 0
    assert "5 of 6 fits are done already" in capsys.readouterr().err
    assert {c: times(c) for c in others} == others
    assert (run_copy / "predictions.csv").read_bytes() == table
    assert (run_copy / "fold1-seed1" / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="cut"),
        pytest.param(
            lambda data: data[:-2] + (b"2" if data[-2:-1] == b"1" else b"1") + b"\n", id="edited"
        ),
        pytest.param(lambda data: b"", id="emptied"),
    ],
)
def test_damaged_predictions_of_a_fold_are_made_again(
    shared_study: Study, run_copy: Path, damage: Callable[[bytes], bytes]
) -> None:
    table = (run_copy / "predictions.csv").read_bytes()
    cell = run_copy / "fold2-seed0" / "predictions.csv"
    before = cell.read_bytes()
    assert damage(before) != before
    cell.write_bytes(damage(before))
    assert shared_study.train(run_copy, "fit.seeds=2") == 0
    assert cell.read_bytes() == before
    assert (run_copy / "predictions.csv").read_bytes() == table


@pytest.mark.slow
def head_after(run: Path, study: Study, *said: str | None) -> Any:
    """Return the head of a finished run whose fits, in turn, say what their prior is."""
    dones = sorted(run.glob("fold*-seed*/done.json"))
    for k, path in enumerate(dones):
        done = json.loads(path.read_text()) | {"predicts_prior": said[k % len(said)]}
        if done["predicts_prior"] == "unsaid":
            del done["predicts_prior"]
        path.write_text(json.dumps(done))
    assert study.train(run, "fit.seeds=2") == 0
    return json.loads((run / "predictions.json").read_text()).get("head")


def test_predictions_say_which_prior_they_are_of(shared_run: Path, shared_study: Study) -> None:
    head = json.loads((shared_run / "predictions.json").read_text())["head"]
    label = {row.slide_id: row.label for row in shared_study.rows}
    counts = {
        str(fold): [
            sum(
                label[s] == name and part == "train"
                for (k, s), part in parts(shared_run).items()
                if k == fold
            )
            for name in CLASSES
        ]
        for fold in range(3)
    }
    assert head == {"predicts_prior": "training", "training_counts": counts}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (["uniform"], {"predicts_prior": "uniform"}),
        (["training", "uniform"], {"predicts_prior": None}),  # rules chosen fold by fold
        (["training", "unsaid"], None),  # some of them fitted by an earlier version
    ],
)
def test_the_prior_of_predictions_is_that_of_all_fits_or_none(
    run_copy: Path, shared_study: Study, said: list[str], kept: dict[str, Any] | None
) -> None:
    before = (run_copy / "predictions.csv").read_bytes()
    head = head_after(run_copy, shared_study, *said)
    assert (run_copy / "predictions.csv").read_bytes() == before
    assert head is None if kept is None else head["predicts_prior"] == kept["predicts_prior"]


def test_processes_side_by_side_change_nothing(
    shared_study: Study, shared_run: Path, tmp_path: Path
) -> None:
    assert shared_study.train(tmp_path / "run", *SHARED, "--jobs", "2") == 0
    for name in ("predictions.csv", "splits.csv", "metrics.json"):
        assert (tmp_path / "run" / name).read_bytes() == (shared_run / name).read_bytes()


@pytest.fixture
def three_threads() -> Iterator[int]:
    """Torch computes on three threads, as on a user's machine of three cores; tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_fits_have_one_thread_unless_told_and_leave_the_rest_as_it_was(
    shared_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, three_threads: int
) -> None:
    found = set()
    loss = "wsi.objectives.cross_entropy.CrossEntropy.after_step"
    monkeypatch.setattr(loss, lambda *step: found.add(torch.get_num_threads()))
    for threads in (1, 2):
        found.clear()
        run = tmp_path / str(threads)
        assert shared_study.train(run, *(["--threads", "2"] if threads == 2 else [])) == 0
        assert found == {threads}
        assert torch.get_num_threads() == three_threads
        assert strict_json(run / "inputs.json")["threads"] == threads
        assert strict_json(run / "fold0-seed0" / "done.json")["threads"] == threads


def test_another_number_of_threads_never_enters_a_run(
    shared_study: Study, run_copy: Path, refused: Refused
) -> None:
    assert "threads" in refused(shared_study.command(run_copy, "fit.seeds=2", "--threads", "2"), 2)


def test_only_going_on_begins_nothing(
    shared_study: Study, run_copy: Path, tmp_path: Path, refused: Refused
) -> None:
    said = refused(shared_study.command(tmp_path / "run", "--resume"), 2)
    assert "holds no run to go on with" in said
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert shared_study.train(run_copy, "fit.seeds=2", "--resume") == 0


class Ended(BaseException):
    """Stands in for the end of a process."""


def test_a_run_that_was_ended_goes_on_within_a_fit(
    shared_study: Study,
    shared_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pipelines.live import LiveRows
    from wsi.training.state import FitState

    every_epoch = partial(FitState, every_s=0.0, share=float("inf"))
    monkeypatch.setattr("wsi.training.state.FitState", every_epoch)
    add, added = LiveRows.add, []

    def ending(self: LiveRows, row: dict[str, Any]) -> None:
        add(self, row)
        added.append((self._path.parent.name, row["epoch"]))
        if len(added) == 4:  # the second fit, after its last row, before its state is kept
            raise Ended

    run = tmp_path / "run"
    monkeypatch.setattr(LiveRows, "add", ending)
    with pytest.raises(Ended):
        shared_study.train(run, *SHARED)
    assert (run / "fold0-seed1" / "state.safetensors").is_file()
    assert len((run / "fold0-seed1" / "metrics.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    assert shared_study.train(run, *SHARED) == 0
    said = capsys.readouterr().err
    assert "1 of 6 fits are done already" in said
    assert "1 fit may go on where it was ended" in said
    assert [epoch for name, epoch in added if name == "fold0-seed1"] == [0, 1, 1]
    assert not list(run.rglob("state.safetensors"))
    for path in sorted(shared_run.rglob("*")):
        if path.name in ("predictions.csv", "metrics.json", "model.safetensors", "embeddings.h5"):
            assert path.read_bytes() == (run / path.relative_to(shared_run)).read_bytes()


def test_a_process_gets_no_label_of_a_test_slide(
    shared_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes to a process that trains is looked at as it travels: pickled."""
    travelled = []

    def look(cells: Sequence[Any], *rest: Any) -> None:
        travelled.extend(pickle.dumps(cell) for cell in cells)
        raise Ended

    monkeypatch.setattr("pipelines.train.train_cells", look)
    with pytest.raises(Ended):
        shared_study.train(tmp_path / "run", "fit.seeds=2")
    assert len(travelled) == 6
    placed = parts(tmp_path / "run")
    for pickled in travelled:
        cell = pickle.loads(pickled)
        part = {s: p for (fold, s), p in placed.items() if fold == cell.fold.index}
        assert {part[slide] for slide in cell.labels} == {"train", "val"}
        assert set(cell.labels) == {s for s, p in part.items() if p != "test"}
        assert str(shared_study.cohort).encode() not in pickled
        assert b"y_true" not in pickled


def test_the_monitor_sees_validation_labels_alone(
    shared_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import fits

    scored: list[list[int]] = []

    def score(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
        return lambda y, p: scored.append(y.tolist()) or 0.5

    monkeypatch.setattr(fits, "monitored", score)
    assert shared_study.train(tmp_path / "run") == 0
    placed, label = parts(tmp_path / "run"), {r.slide_id: r.label for r in shared_study.rows}
    expected = [
        sorted(
            CLASSES.index(label[s]) for (k, s), part in placed.items() if (k, part) == (f, "val")
        )
        for f in range(3)
        for _ in range(2)  # epochs
    ]
    assert [sorted(y) for y in scored] == expected


def test_other_settings_never_enter_a_run(
    shared_study: Study, run_copy: Path, refused: Refused
) -> None:
    before = times(run_copy)
    words = shared_study.command(run_copy, "fit.seeds=2", "fit.lr=0.01", "objective=ncmi")
    said = refused(words, 2)
    assert "fit.lr 0.0001 -> 0.01" in said
    assert "objective.name ce -> ncmi" in said
    logs = ("run.log", "run.jsonl")
    after = times(run_copy)
    assert {k: v for k, v in after.items() if k not in logs} == {
        k: v for k, v in before.items() if k not in logs
    }


def test_other_labels_never_enter_a_run(study: Study, run_copy: Path, refused: Refused) -> None:
    table = study.rows
    study.write_cohort([replace(table[0], label="macro"), *table[1:]])
    assert "cohort_sha256" in refused(study.command(run_copy, "fit.seeds=2"), 2)


def test_a_folder_of_something_else_is_left_alone(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "neither empty nor a run" in refused(shared_study.command(tmp_path / "out"), 2)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_dry_run_writes_nothing_and_says_the_plan(
    shared_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shared_study.train(tmp_path / "run", "--dry-run", "fit.seeds=4") == 0
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    assert "3 folds x 4 seeds = 12 fits" in said
    assert "fold 2: 9 test (normal 3, itc 3, macro 3)" in said


# -- which slides, which parts -----------------------------------------------------------------


def whole_splits(study: Study, path: Path) -> Path:
    """Write the splits of all slides of a study by hand: one site tested, one validating."""
    part = {"x": "train", "y": "val", "z": "test"}
    lines = [f"{r.slide_id},{r.patient_id},0,{part[r.site]}" for r in study.rows]
    path.write_text("slide_id,patient_id,fold,part\n" + "\n".join(lines) + "\n")
    return path


def test_given_splits_are_used(shared_study: Study, tmp_path: Path) -> None:
    splits = whole_splits(shared_study, tmp_path / "mine.csv")
    assert shared_study.train(tmp_path / "run", "--splits", splits) == 0
    placed = parts(tmp_path / "run")
    by_site = {(r.site, placed[0, r.slide_id]) for r in shared_study.rows}
    assert by_site == {("x", "train"), ("y", "val"), ("z", "test")}
    assert set(predictions(tmp_path / "run")["site"]) == {"z"}


def test_a_patient_on_two_sides_is_refused(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    splits = whole_splits(shared_study, tmp_path / "leak.csv")
    first, *rest = splits.read_text().splitlines()
    assert rest[0].endswith("x-normal-0,0,train")
    splits.write_text("\n".join([first, rest[0].replace("train", "test"), *rest[1:]]))
    said = refused(shared_study.command(tmp_path / "run", "--splits", splits), 5)
    assert said.startswith("error[LEAKAGE]")
    assert "x-normal-0" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_loss_over_pairs_of_bags_is_refused_before_the_run_begins(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    said = refused(shared_study.command(tmp_path / "run", "objective=opl"), 2)
    assert said.startswith("error[CONFIG]")
    assert "set fit.bags_per_step=8 or more" in said
    assert not (tmp_path / "run").exists()


def test_a_slide_without_bag_is_named(study: Study, tmp_path: Path, refused: Refused) -> None:
    open_store(study.bags).remove("y-itc-1-0")
    said = refused(study.command(tmp_path / "run"), 5)
    assert "y-itc-1-0" in said
    assert "data.missing=skip" in said


@pytest.mark.parametrize("given", [False, True], ids=["drawn splits", "given splits"])
def test_slides_without_tiles_or_bags_are_counted_as_not_evaluable(
    study: Study, tmp_path: Path, given: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(study.bags)
    made = store.info("z-macro-0-0").provenance
    store.write_empty("z-macro-0-0", made, reason="no-tissue")
    store.remove("z-itc-1-0")
    words: list[object] = ["data.missing=skip"]
    if given:
        words += ["--splits", whole_splits(study, tmp_path / "mine.csv")]
    assert study.train(tmp_path / "run", *words) == 0
    assert "2 slides are not evaluable" in capsys.readouterr().err
    coverage = strict_json(tmp_path / "run" / "metrics.json")["coverage"]
    evaluable = 9 - 2 if given else 27 - 2
    assert (coverage["evaluable"], coverage["total"]) == (evaluable, evaluable + 2)
    assert set(coverage["not_evaluable"]) == {"z-itc-1-0", "z-macro-0-0"}
    assert "no-tissue" in coverage["not_evaluable"]["z-macro-0-0"]
    table = predictions(tmp_path / "run")
    assert len(table) == evaluable
    assert not {"z-itc-1-0", "z-macro-0-0"} & set(table["slide_id"])


def test_bags_of_two_recipes_are_never_mixed(
    study: Study, tmp_path: Path, refused: Refused
) -> None:
    study.put(study.recipe, "other", tile_px=512)
    said = refused(study.command(tmp_path / "run"), 5)
    assert said.startswith("error[MIXED]")
    assert "27 bags" in said
    assert "1 bags" in said
    assert "512" in said
    open_store(study.recipe).remove("other")
    study.put(study.bags / "second", "other", tile_px=512)
    said = refused(study.command(tmp_path / "run"), 5)
    assert study.recipe.name in said
    assert "second" in said


def test_a_damaged_bag_is_named_before_anything_is_predicted(
    study: Study, tmp_path: Path, refused: Refused
) -> None:
    bag = study.recipe / "x-itc-0-0.h5"
    bag.write_bytes(bag.read_bytes()[:-100])
    said = refused(study.command(tmp_path / "run"), 5)
    assert said.startswith("error[CORRUPT]")
    assert "x-itc-0-0" in said
    assert not (tmp_path / "run" / "predictions.csv").exists()


def test_without_classes_the_values_found_are_listed(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    words = shared_study.command(tmp_path / "run", settings=["fit.epochs=1"])
    said = refused(words, 2)
    for name in CLASSES:
        assert f"{name} (9)" in said
    assert "data.classes=[itc,macro,normal]" in said.replace(", ", ",")


def test_an_aggregator_that_needs_classes_is_refused_before_any_work(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    words = shared_study.command(tmp_path / "run", "aggregator=dsmil", "objective=ncmi")
    assert "aggregator 'dsmil' has an output per class" in refused(words, 2)
    assert not (tmp_path / "run").exists()


def test_a_label_outside_the_classes_is_named_with_its_line(
    study: Study, tmp_path: Path, refused: Refused
) -> None:
    table = study.rows
    study.write_cohort([table[0], replace(table[1], label="marco"), *table[2:]])
    said = refused(study.command(tmp_path / "run"), 5)
    assert "line 3" in said
    assert "did you mean 'macro'" in said


def test_the_risk_of_drawing_tiles_is_that_of_the_median_bag() -> None:
    sizes = {"a": 100, "b": 10_000, "c": 20_000}
    store = SimpleNamespace(info=lambda bag_id: SimpleNamespace(n=sizes[bag_id]))
    material: Any = SimpleNamespace(store=store, bag_ids={s: s for s in sizes})
    told = draw_line(512, material)
    expected = hypergeom(10_000, 3, 512).sf(0)
    assert "of the 10,000 tiles of the median bag" in told
    assert f"a chance of {expected:.0%}" in told


def test_test_labels_cannot_reach_training(study: Study, tmp_path: Path) -> None:
    """Exchange the labels of the test slides: the model must be the same to the last byte."""
    splits = whole_splits(study, tmp_path / "mine.csv")
    assert study.train(tmp_path / "a", "--splits", splits, "objective=ncmi") == 0
    turned = dict(zip(CLASSES, [*CLASSES[1:], CLASSES[0]], strict=True))
    table = [replace(r, label=turned[r.label]) if r.site == "z" else r for r in study.rows]
    study.write_cohort(table)
    assert study.train(tmp_path / "b", "--splits", splits, "objective=ncmi") == 0
    for name in ("model.safetensors", "predictions.csv"):
        one, other = (tmp_path / run / "fold0-seed0" / name for run in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()
    ours, theirs = predictions(tmp_path / "a"), predictions(tmp_path / "b")
    assert theirs["y_true"].tolist() == [turned[label] for label in ours["y_true"]]
    # Labels of the training part, in contrast, do change the model.
    study.write_cohort([replace(r, label=turned[r.label]) for r in study.rows])
    assert study.train(tmp_path / "c", "--splits", splits, "objective=ncmi") == 0
    one, other = (tmp_path / run / "fold0-seed0" / "model.safetensors" for run in ("a", "c"))
    assert one.read_bytes() != other.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["objective=ncmi", "split.kind=leave-one-site-out"],
        ["split.kind=sites", "split.test=[z]", "split.val.by=site", "fit.monitor=macro_f1"],
        ["aggregator=max", "fit.monitor=loss", "fit.max_tiles=3", "fit.bags_per_step=4"],
    ],
)
def test_other_ways_to_train_also_end_in_scores(
    shared_study: Study, tmp_path: Path, words: Sequence[str]
) -> None:
    settings = [word for word in words if not word.startswith("aggregator")]
    hidden = [] if "aggregator=max" in words else ["aggregator.hidden=8"]
    base = [f"data.classes=[{','.join(CLASSES)}]", "fit.epochs=1", "evaluate.replicates=100"]
    extra = ["aggregator=max"] if "aggregator=max" in words else hidden
    command = shared_study.command(tmp_path / "run", settings=[*base, *extra, *settings])
    assert run_command(command) == 0
    table, metrics = predictions(tmp_path / "run"), strict_json(tmp_path / "run" / "metrics.json")
    assert metrics["macro_f1"]["value"] == pytest.approx(macro_f1(table))
    if "split.kind=leave-one-site-out" in words:
        assert table.groupby("fold")["site"].nunique().tolist() == [1, 1, 1]


def test_a_run_says_where_it_is(
    shared_study: Study, tmp_path: Path, said_json: Json, shared_run: Path
) -> None:
    out = Path(shutil.copytree(shared_run, tmp_path / "run"))
    said = said_json(shared_study.command(out, "fit.seeds=2"))
    assert said["run"] == str(out)
    assert said["metrics"] == strict_json(out / "metrics.json")


def test_the_log_is_kept_for_people_and_machines(shared_run: Path) -> None:
    lines = [json.loads(line) for line in (shared_run / "run.jsonl").read_text().splitlines()]
    assert {line["level"] for line in lines} <= {"info", "detail", "warning", "error"}
    said = (shared_run / "run.log").read_text().splitlines()
    assert len(said) == len(lines) > 3
    assert all(line["text"] in kept for line, kept in zip(lines, said, strict=True))


def test_a_flipped_bit_in_a_bag_stops_training(
    study: Study, tmp_path: Path, refused: Refused
) -> None:
    bag = sorted(study.bags.rglob("*.h5"))[0]
    content = bytearray(bag.read_bytes())
    content[len(content) // 2] ^= 1
    bag.write_bytes(bytes(content))
    said = refused(study.command(tmp_path / "run"), 5)
    assert "damaged bags" in said
    assert not (tmp_path / "run" / "config.yaml").exists()
