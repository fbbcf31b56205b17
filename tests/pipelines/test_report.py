"""`wsi report` as typed: pages of runs and of tables, and the cards of runs."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.cli import run_command
from pipelines.config import read_config
from pipelines.labelled import labelled_predictions
from pipelines.run_parts import parts_of
from pipelines.rundir import RunDir
from tests.report.conftest import Page

QUICK = ("--replicates", "100")


def test_a_report_is_made_again_from_the_run_folder(run_copy: Path, said_json) -> None:
    page = (run_copy / "report.html").read_bytes()
    card = (run_copy / "model-card.md").read_bytes()
    assert b"| own (the probabilities come from the objective's own rule) in " in card
    for name in ("report.html", "model-card.md"):
        (run_copy / name).unlink()
    said = said_json(["report", run_copy])
    assert said == {
        "report": str(run_copy / "report.html"),
        "model_cards": [str(run_copy / "model-card.md")],
    }
    assert (run_copy / "report.html").read_bytes() == page
    assert (run_copy / "model-card.md").read_bytes() == card


def test_slides_without_files_are_named_with_the_reason(shared_run: Path) -> None:
    rows = Page((shared_run / "report.html").read_text(encoding="utf-8")).rows
    reasons = [row[-1] for row in rows if row and row[-1].startswith("no slides.csv")]
    assert len(reasons) > 3


def test_runs_and_a_table_alone_stand_on_one_page(
    shared_run: Path, run_copy: Path, tmp_path: Path
) -> None:
    table = shutil.copy(shared_run / "predictions.csv", tmp_path / "theirs.csv")
    out = tmp_path / "page.html"
    assert run_command(["report", str(run_copy), str(table), "--out", str(out), *QUICK]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    words = " ".join(" ".join(page.words).split())
    assert "theirs.csv: only predictions are known of it" in words
    assert "Paired differences in macro-F1" in words
    assert not (tmp_path / "model-card.md").exists()


def test_sources_that_cannot_be_compared_are_reported_without_a_comparison(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (run_copy / "predictions.csv").read_text().splitlines()
    fewer = [line for line in lines if not line.startswith("x-itc-0-0,")]
    (tmp_path / "fewer.csv").write_text("\n".join(fewer) + "\n")
    out = tmp_path / "page.html"
    words = ["report", run_copy, tmp_path / "fewer.csv", "--out", out, *QUICK]
    assert run_command(list(map(str, words))) == 0
    assert "not compared: " in capsys.readouterr().err
    text = out.read_text(encoding="utf-8")
    assert "Not compared: " in text
    assert "Paired differences" not in text


def test_what_cannot_be_reported_is_refused(run_copy: Path, tmp_path: Path, refused) -> None:
    assert "give run folders" in refused(["report"], 2)
    table = run_copy / "predictions.csv"
    assert "--out report.html" in refused(["report", table], 2)
    assert "ends in .html" in refused(["report", run_copy, "--out", tmp_path / "page.pdf"], 2)
    assert "did you mean 'macro_f1'" in refused(["report", run_copy, "--metric", "macrof1"], 2)
    assert "is not a run folder" in refused(["report", tmp_path, "--out", tmp_path / "r.html"], 2)
    (run_copy / "metrics.json").unlink()
    assert f"run wsi evaluate {run_copy}" in refused(["report", run_copy], 2)


def test_evaluating_a_run_anew_refreshes_its_card(run_copy: Path, tmp_path: Path) -> None:
    card = run_copy / "model-card.md"
    before = card.read_text(encoding="utf-8")
    assert run_command(["evaluate", str(run_copy), "--replicates", "150"]) == 0
    assert before.replace("100 replicates", "150 replicates").split("## Evaluation")[0] in (
        card.read_text(encoding="utf-8")
    )
    assert "150 replicates" in card.read_text(encoding="utf-8")
    # Scores that go elsewhere are not those of the card.
    kept = card.read_bytes()
    assert run_command(["evaluate", str(run_copy), *QUICK, "--out", str(tmp_path / "new")]) == 0
    assert card.read_bytes() == kept


def test_parts_count_classes_and_sites_of_slides_that_nothing_tests(
    shared_run: Path, shared_study
) -> None:
    """Of an official split the training slides have no predictions, and yet have labels."""
    run_dir = RunDir(shared_run)
    config, inputs = read_config(run_dir.config), run_dir.read_inputs()
    whole = labelled_predictions(run_dir)
    one = replace(whole, table=whole.table[whole.table["fold"] == 0])
    row = next(r for r in parts_of(run_dir, config, inputs, one) if r[:2] == (0, "train"))
    with run_dir.splits.open(newline="") as handle:
        lines = list(csv.DictReader(handle))
    train = {r["slide_id"] for r in lines if (r["fold"], r["part"]) == ("0", "train")}
    known = [r for r in shared_study.rows if r.slide_id in train]
    assert row.counts == Counter(r.label for r in known)
    assert row.sites == Counter(r.site for r in known)
    changed = parts_of(run_dir, config, {**inputs, "cohort_sha256": "0"}, one)
    found = {row[:2]: (row.counts is None, row.sites is None) for row in changed}
    assert found[0, "train"] == (True, True)
    assert found[0, "test"] == (False, False)
