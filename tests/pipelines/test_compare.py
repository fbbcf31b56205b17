"""`wsi compare`: paired differences of runs on the same slides, and what is no comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from pipelines.cli import run_command
from pipelines.compare import Options, run
from pipelines.console import Console

Json = Callable[..., Any]
Refused = Callable[..., str]

CLASSES = ["normal", "itc", "macro"]
FAST = ("--replicates", "100")


def table_of(run: Path) -> list[pd.DataFrame]:
    """Return the predictions of each seed."""
    return [seed for _, seed in pd.read_csv(run / "predictions.csv").groupby("seed")]


def macro_f1(run: Path) -> float:
    return float(
        np.mean(
            [
                f1_score(t["y_true"], t["y_pred"], labels=CLASSES, average="macro")
                for t in table_of(run)
            ]
        )
    )


def balanced_accuracy(run: Path) -> float:
    return float(
        np.mean([balanced_accuracy_score(t["y_true"], t["y_pred"]) for t in table_of(run)])
    )


@pytest.mark.parametrize(
    ("metric", "oracle"), [("macro_f1", macro_f1), ("balanced_accuracy", balanced_accuracy)]
)
def test_the_difference_is_that_of_scikit_learn(
    shared_run: Path,
    shared_mean_run: Path,
    said_json: Json,
    metric: str,
    oracle: Callable[[Path], float],
) -> None:
    said = said_json(["compare", shared_run, shared_mean_run, "--metric", metric, *FAST])
    assert said["reference"] == "ce"
    assert {run["name"]: run["value"] for run in said["runs"]} == {
        "ce": pytest.approx(oracle(shared_run)),
        "mean": pytest.approx(oracle(shared_mean_run)),
    }
    (difference,) = said["differences"]
    assert (difference["name"], difference["minus"]) == ("mean", "ce")
    expected = oracle(shared_mean_run) - oracle(shared_run)
    assert difference["value"] == pytest.approx(expected)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert 0 < difference["p"] <= 1
    assert any("different numbers of seeds" in note for note in said["notes"])


def test_people_see_runs_and_differences(
    shared_run: Path, shared_mean_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["compare", str(shared_run), str(shared_mean_run), *FAST]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "macro_f1"]
    assert [line[0] for line in lines[1:3]] == ["ce", "mean"]
    assert lines[3][:3] == ["run", "minus", "difference in macro_f1"]
    assert lines[4][:2] == ["mean", "ce"]
    assert re.fullmatch(r"-?\d\.\d{3} \[-?\d\.\d{3}, -?\d\.\d{3}\]", lines[4][2])


def test_a_comparison_is_written_with_a_report(
    shared_run: Path, shared_mean_run: Path, tmp_path: Path, said_json: Json
) -> None:
    out = tmp_path / "against"
    said = said_json(["compare", shared_run, shared_mean_run, "--out", out, *FAST])
    assert json.loads((out / "comparison.json").read_text()) == said
    page = (out / "report.html").read_text()
    drawn = (out / "accuracy-ncmi.svg").read_text()
    points = said["accuracy_ncmi"]["points"]
    assert [(p["run"], p["seed"]) for p in points] == [("ce", 0), ("ce", 1), ("mean", 0)]
    for point in points:
        of_seed = table_of(shared_run if point["run"] == "ce" else shared_mean_run)[point["seed"]]
        expected = float((of_seed["y_true"] == of_seed["y_pred"]).mean())
        assert point["accuracy"] == pytest.approx(expected)
        assert f"{point['run']} seed {point['seed']}: {expected:.3f} at" in drawn
    assert "Accuracy against NCMI" in page
    assert page.lstrip().lower().startswith("<!doctype html")
    assert f"{macro_f1(shared_mean_run):.3f}" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)


def test_a_run_against_itself_is_no_difference(
    shared_run: Path, run_copy: Path, said_json: Json
) -> None:
    (difference,) = said_json(["compare", shared_run, run_copy, *FAST])["differences"]
    assert (difference["value"], difference["low"], difference["high"]) == (0, 0, 0)
    assert difference["p"] == 1


def test_runs_on_other_slides_are_no_comparison(
    shared_run: Path, run_copy: Path, refused: Refused
) -> None:
    path = run_copy / "predictions.csv"
    path.with_suffix(".json").unlink()
    table = pd.read_csv(path)
    table[table["slide_id"] != "x-itc-0-0"].to_csv(path, index=False)
    said = refused(["compare", shared_run, run_copy, *FAST], 5)
    assert "different slides" in said
    assert "x-itc-0-0" in said


def test_runs_with_other_labels_are_no_comparison(
    shared_run: Path, run_copy: Path, refused: Refused
) -> None:
    path = run_copy / "predictions.csv"
    path.with_suffix(".json").unlink()
    table = pd.read_csv(path)
    table.loc[table["slide_id"] == "x-itc-0-0", "y_true"] = "macro"
    table.to_csv(path, index=False)
    assert "different labels" in refused(["compare", shared_run, run_copy, *FAST], 5)


def test_one_run_is_no_comparison(shared_run: Path, refused: Refused) -> None:
    assert "two runs" in refused(["compare", shared_run], 2)
    assert "two runs" in refused(["compare"], 2)


def test_a_misspelt_metric_is_told_the_nearest(
    shared_run: Path, shared_mean_run: Path, refused: Refused
) -> None:
    said = refused(["compare", shared_run, shared_mean_run, "--metric", "macro_f2", *FAST], 2)
    assert "did you mean 'macro_f1'" in said


def test_a_comparison_is_written_before_a_pipe_may_close(
    shared_run: Path, shared_mean_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("pipelines.console.Console.table", closed)
    sources = [shared_run / "predictions.csv", shared_mean_run / "predictions.csv"]
    with pytest.raises(BrokenPipeError):
        run(sources, Options(out=tmp_path, replicates=100), Console(hushed=True))
    assert {f"comparison.{end}" for end in ("json", "md", "csv", "tex")} <= {
        path.name for path in tmp_path.iterdir()
    }
