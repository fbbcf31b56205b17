"""`wsi cohort build`, `labels`, `miniature` and `wsi stage` as typed, to the end of the flow."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import run_command
from wsi.cohorts.miniature import plan

Json = Callable[..., Any]
LABELS = Path(__file__).parents[1] / "cohorts" / "labels"
A, B = LABELS / "stage_labels_a.csv", LABELS / "stage_labels_b.csv"
C, BRACS = LABELS / "node_labels_c.csv", LABELS / "bracs_slides.csv"


def said(capsys: pytest.CaptureFixture[str], words: list[object]) -> tuple[int, str]:
    code = run_command(list(map(str, words)))
    spoken = capsys.readouterr()
    return code, spoken.out + spoken.err


def test_version_a_is_refused_by_name_and_version_b_is_sound(capsys) -> None:
    code, text = said(capsys, ["cohort", "labels", A])
    assert code == 5
    assert "version a" in text
    assert "patient_022_node_4, patient_038_node_2, patient_086_node_0, patient_086_node_4" in text
    code, text = said(capsys, ["cohort", "labels", B])
    assert code == 0
    assert "the pN rule gives the stage of 100 of 100 patients" in text


def test_two_files_are_compared_by_nodes_patients_and_kappa(capsys) -> None:
    code, text = said(capsys, ["cohort", "labels", B, "--against", A])
    assert code == 0
    assert (
        "22 nodes and 10 of 100 patients differ; quadratic kappa between the stages 0.9751" in text
    )


def test_stages_that_a_file_lacks_are_said_to_be_derived(tmp_path, capsys) -> None:
    derived = (
        "node_labels_c.csv has no stages: those of 100 patients are derived from the nodes by the "
        "pN rule"
    )
    for words in (
        ["cohort", "labels", B, "--against", C],
        ["cohort", "labels", C],
        ["cohort", "build", "camelyon17", "--labels", C, "--out", tmp_path / "c.csv"],
    ):
        _, text = said(capsys, words)
        assert derived in text
    assert derived in (tmp_path / "c.json").read_text()
    _, text = said(capsys, ["cohort", "labels", B])
    assert "has no stages" not in text


def test_the_labels_of_another_data_set_are_told_from_camelyon17s(capsys) -> None:
    code, text = said(capsys, ["cohort", "labels", BRACS])
    assert code == 5
    assert "no CAMELYON-17 label file" in text
    assert "`wsi cohort build bracs`" in text
    assert "two classes" not in text


@pytest.mark.parametrize("name", ["camelyon17", "bracs"])
def test_the_table_of_a_miniature_says_that_its_slides_are_synthetic(
    tmp_path, capsys, name
) -> None:
    plan(name).write_tables(tmp_path)
    labels = next(tmp_path.rglob("*.csv"))
    words = ["cohort", "build", name, "--labels", labels, "--out", tmp_path / "c.csv"]
    code, text = said(capsys, words)
    assert code == 0
    assert "labels: synthetic slides of a miniature of" in text
    assert "not the official table" not in text
    assert "no version known" not in text


def test_refused_labels_write_no_table_and_accepted_ones_are_on_record(tmp_path, capsys) -> None:
    words = ["cohort", "build", "camelyon17", "--labels", A, "--out", tmp_path / "c.csv"]
    code, text = said(capsys, words)
    assert (code, list(tmp_path.iterdir())) == (5, [])
    assert "--accept-labels" in text
    code, _ = said(capsys, [*words, "--accept-labels"])
    assert code == 0
    (accepted,) = json.loads((tmp_path / "c.json").read_text())["accepted"]
    assert "patient_038_node_2" in accepted


def test_stages_are_counted_by_patient(tmp_path, capsys) -> None:
    words = ["cohort", "build", "camelyon17", "--labels", B, "--out", tmp_path / "c.csv", "--json"]
    code, text = said(capsys, words)
    assert code == 0
    counts = json.loads(text[: text.rindex("}") + 1])["classes"]
    with B.open(newline="") as handle:
        stages = Counter(
            row["stage"] for row in csv.DictReader(handle) if "node" not in row["patient"]
        )
    assert {stage: of["patients"] for stage, of in counts["pn"].items()} == stages
    assert sum(of["slides"] for of in counts["node4"].values()) == 500


def test_bracs_prints_its_figures_and_patient_67(tmp_path, capsys) -> None:
    words = ["cohort", "build", "bracs", "--labels", LABELS / "bracs_slides.csv"]
    code, text = said(capsys, [*words, "--out", tmp_path / "b.csv"])
    assert code == 0
    assert "547 slides, 189 patients" in text
    assert "patient 67 is in train and val" in text
    assert "395\t65\t87" in text


def test_a_dry_run_writes_nothing(tmp_path, capsys) -> None:
    words = ["cohort", "build", "bracs", "--labels", LABELS / "bracs_slides.csv", "--dry-run"]
    assert said(capsys, [*words, "--out", tmp_path / "b.csv"])[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_data_set_is_named_with_the_nearest(tmp_path, capsys) -> None:
    code, text = said(capsys, ["cohort", "build", "camelyon", "--out", tmp_path / "x.csv"])
    assert code == 2
    assert "did you mean 'camelyon17'" in text


SMALL = ["fit.seeds=1", "fit.epochs=2", "fit.lr=1e-3", "aggregator.hidden=16"]
LIGHT = ["evaluate.replicates=200"]


@pytest.mark.parametrize(
    ("name", "preset", "classes", "folds", "tested"),
    [
        ("camelyon17", "camelyon17", 4, 5, 25),
        ("bracs", "bracs7", 7, 1, 7),
    ],
)
def test_a_miniature_runs_from_its_folders_to_its_report_by_the_preset(
    tmp_path, capsys, monkeypatch, name, preset, classes, folds, tested
) -> None:
    # Drawing takes most of the time, and goes with the area.
    monkeypatch.setattr("wsi.cohorts.miniature.SIZE_UM", (512, 384))
    root, table, out, run = (tmp_path / part for part in ("tree", "c.csv", "out", "run"))
    for words in (
        ["cohort", "miniature", name, "--out", root],
        ["cohort", "build", name, "--root", root, "--out", table],
        ["scan", root],
        [
            "preprocess",
            preset,
            "--slides",
            table,
            "--out",
            out,
            "tiling.mpp=2",
            "tiling.tile_px=64",
        ],
        ["train", preset, "--cohort", table, "--bags", out / "bags", "--out", run, *SMALL, *LIGHT],
        ["evaluate", run, "--replicates", 200],
    ):
        code, text = said(capsys, words)
        assert code == 0, text
    metrics = json.loads((run / "metrics.json").read_text())
    assert len(metrics["classes"]) == classes
    assert metrics["n"] == tested
    assert metrics["labels_from"].startswith("synthetic slides")
    assert "synthetic slides of a miniature" in (run / "model-card.md").read_text()
    assert metrics["labels_from"] in text
    assert metrics["labels_from"] in (run / "report.html").read_text()
    with (run / "predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len({row["fold"] for row in rows}) == folds
    if name == "camelyon17":
        # Leaving one centre out: each fold tests exactly one.
        assert len({(row["fold"], row["site"]) for row in rows}) == folds
        code, text = said(capsys, ["stage", run, "--out", tmp_path / "stage", "--replicates", 200])
        assert code == 0
        assert "quadratic_kappa" in text
        assert (tmp_path / "stage" / "submission.csv").read_text().count(".zip,pN") == 5
