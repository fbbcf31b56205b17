"""What validation settles for the test part of a run, from the fit to the scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from pipelines.cli import run_command
from tests.pipelines.conftest import CLASSES, TINY, Row, Study, write_table
from wsi.training.checkpoint import described

FAST = ("--replicates", "100")
Json = Callable[..., Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_fit_keeps_it_with_its_checkpoint_and_the_predictions_carry_it(
    shared_run: Path,
) -> None:
    carried = read(shared_run / "predictions.json")["calibration"]
    cells = sorted(shared_run.glob("fold*-seed*"))
    assert sorted(carried) == [cell.name for cell in cells]
    with (shared_run / "splits.csv").open(encoding="utf-8", newline="") as handle:
        parts = [(row["fold"], row["part"]) for row in csv.DictReader(handle)]
    for cell in cells:
        kept = read(cell / "done.json")["calibration"]
        assert kept == described(cell / "model.safetensors")["calibration"] == carried[cell.name]
        assert kept["n"] == parts.count((cell.name[4], "val"))
        assert 0.05 <= kept["temperature"] <= 20
        assert set(kept["thresholds"]) == set(CLASSES)
        for one in kept["thresholds"].values():
            assert (one["youden"] is None) == bool(one["reason"])


def test_the_scores_of_a_run_are_calibrated_from_its_table_alone(
    shared_run: Path, said_json: Json, tmp_path: Path
) -> None:
    metrics = read(shared_run / "metrics.json")
    (tmp_path / "t").mkdir()
    for name in ("predictions.csv", "predictions.json"):
        (tmp_path / "t" / name).write_bytes((shared_run / name).read_bytes())
    again = said_json(["evaluate", tmp_path / "t" / "predictions.csv", *FAST])
    for one in (metrics, again):
        assert len(one["calibrated"]["temperatures"]) == 6
        assert one["calibrated"]["nll"]["value"] == metrics["calibrated"]["nll"]["value"]
        rate = one["operating_points"]["macro"]["sensitivity_95"]["sensitivity"]
        assert 0 <= rate["value"] <= 1
    table = pd.read_csv(shared_run / "predictions.csv")
    kept = read(shared_run / "predictions.json")["calibration"]
    hits = []
    for seed in (0, 1):
        mine = table[(table["seed"] == seed) & (table["y_true"] == "macro")]
        fits = [f"fold{fold}-seed{seed}" for fold in mine["fold"]]
        cuts = [kept[fit]["thresholds"]["macro"]["sensitivity_95"] for fit in fits]
        known = [k for k, cut in enumerate(cuts) if cut is not None]
        hits.append(np.mean([mine["p_macro"].iloc[k] >= cuts[k] for k in known]))
    assert rate["value"] == pytest.approx(np.mean(hits))


def test_runs_made_before_it_are_scored_without(
    run_copy: Path, said_json: Json, tmp_path: Path
) -> None:
    for cell in run_copy.glob("fold*-seed*"):
        done = read(cell / "done.json")
        del done["calibration"]
        (cell / "done.json").write_text(json.dumps(done))
    sidecar = read(run_copy / "predictions.json")
    del sidecar["calibration"]
    (run_copy / "predictions.json").write_text(json.dumps(sidecar))
    metrics = said_json(["evaluate", run_copy, *FAST, "--out", tmp_path / "o"])
    assert metrics["calibrated"]["nll"] is None
    assert metrics["calibrated"]["reason"] == "the predictions come without temperatures"
    assert metrics["operating_points"] == {}


def test_test_labels_change_nothing_that_validation_settles(study: Study, tmp_path: Path) -> None:
    words = ["split.kind=sites", "split.test=[x]", "fit.epochs=8", "fit.lr=1e-2"]
    settings = [setting for setting in TINY if not setting.startswith(("split", "fit"))]
    assert study.train(tmp_path / "one", *words, settings=settings) == 0
    others = dict(zip(CLASSES, (*CLASSES[1:], CLASSES[0])))
    permuted = [
        Row(r.slide_id, r.patient_id, others[r.label] if r.site == "x" else r.label, r.site)
        for r in study.rows
    ]
    write_table(study.cohort, permuted)
    assert study.train(tmp_path / "two", *words, settings=settings) == 0
    one, two = (read(tmp_path / name / "predictions.json") for name in ("one", "two"))
    assert one["calibration"] == two["calibration"]
    assert 0.06 < one["calibration"]["fold0-seed0"]["temperature"] < 19  # not a bound of the search
    scores = [read(tmp_path / name / "metrics.json") for name in ("one", "two")]
    assert scores[0]["nll"]["value"] != scores[1]["nll"]["value"]


def test_grades_are_scored_by_kappa_and_compared_by_it(
    shared_run: Path,
    shared_mean_run: Path,
    said_json: Json,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shared_mean_run
    plain = said_json(["evaluate", run, *FAST, "--out", tmp_path / "plain"])
    graded = said_json(["evaluate", run, "--ordered", *FAST, "--out", tmp_path / "graded"])
    assert "quadratic_kappa" not in plain
    table = pd.read_csv(run / "predictions.csv")
    kappa = cohen_kappa_score(
        table["y_true"], table["y_pred"], labels=list(CLASSES), weights="quadratic"
    )
    assert graded["quadratic_kappa"]["value"] == pytest.approx(kappa)
    assert graded["quadratic_kappa"]["low"] < kappa < graded["quadratic_kappa"]["high"]
    assert "quadratic_kappa" in graded["by"]["site"]["x"]
    assert run_command(["evaluate", str(run), "--ordered", *FAST, "--out", str(tmp_path)]) == 0
    assert "quadratic_kappa" in capsys.readouterr().out.splitlines()[0]
    pair = [shared_run, shared_mean_run, "--metric", "quadratic_kappa", *FAST]
    assert run_command(["compare", *map(str, pair), "--out", str(tmp_path / "pair")]) == 0
    found = read(tmp_path / "pair" / "comparison.json")
    assert found["differences"][0]["low"] is not None
    said = "the classes as grades, normal < itc < macro, which the runs do not say"
    (note,) = [note for note in found["notes"] if said in note]
    assert f"note: {note}" in capsys.readouterr().err
    page = (tmp_path / "pair" / "report.html").read_text(encoding="utf-8")
    assert f"<li>{escape(note)}</li>" in page
