"""`wsi evaluate` on run folders and on tables of other tools."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from pipelines.cli import run_command
from pipelines.console import Console
from pipelines.evaluate import Options, run

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Json = Callable[..., Any]
Refused = Callable[..., str]

CLASSES = ["normal", "itc", "macro"]
FAST = ("--replicates", "100")


def foreign_table(path: Path, seed: int = 0, classes: list[str] = CLASSES, n: int = 24) -> Path:
    """Write predictions as another tool would: no sidecar, no folds, no decisions."""
    rng = np.random.default_rng(seed)
    y = [classes[k % len(classes)] for k in range(n)]
    p = rng.dirichlet(np.ones(len(classes)), n)
    with path.open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["slide_id", "patient_id", "y_true", *(f"p_{c}" for c in classes)])
        for k in range(n):
            writer.writerow([f"{k:04d}", f"{k // 2:03d}", y[k], *map(repr, p[k].tolist())])
    return path


def expected_f1(table: pd.DataFrame, classes: list[str] = CLASSES) -> float:
    p = table[[f"p_{c}" for c in classes]].to_numpy()
    decided = [classes[k] for k in p.argmax(axis=1)]
    return float(
        f1_score(table["y_true"], decided, labels=classes, average="macro", zero_division=0.0)
    )


def expected_auc(table: pd.DataFrame, classes: list[str] = CLASSES) -> float:
    return float(np.mean([roc_auc_score(table["y_true"] == c, table[f"p_{c}"]) for c in classes]))


def test_scores_are_printed_with_intervals_and_by_site(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["evaluate", str(run_copy), *FAST]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = lines[0].split("\t")
    assert header[:5] == ["part", "n", "patients", "macro_f1", "auc"]
    printed = {line.split("\t")[0]: line.split("\t")[1:] for line in lines[1:]}
    assert set(printed) >= {"all", "site x", "site y", "site z"}
    assert printed["all"][:2] == ["27", "18"]
    table = pd.read_csv(run_copy / "predictions.csv")
    for part, rows in [("all", table), *((f"site {s}", r) for s, r in table.groupby("site"))]:
        value = np.mean([expected_f1(seed) for _, seed in rows.groupby("seed")])
        shown, low, high = printed[part][2].replace("[", "").replace("]", "").split()
        assert float(shown) == pytest.approx(value, abs=6e-4)
        assert float(low.rstrip(",")) <= float(shown) <= float(high)


def test_json_is_one_document_and_what_is_written(run_copy: Path, said_json: Json) -> None:
    (run_copy / "metrics.json").unlink()
    said = said_json(["evaluate", run_copy, *FAST])
    assert said["schema"] == "wsi-metrics/1"
    assert said["replicates"] == 100
    assert said == json.loads((run_copy / "metrics.json").read_text())


def test_information_is_of_heads_retargeted_from_the_training_slides(
    run_copy: Path, shared_study: Study, said_json: Json
) -> None:
    """Bayes' rule by hand, with priors counted in splits.csv and the cohort table."""
    said = said_json(["evaluate", run_copy, *FAST])["information"]
    labels = pd.read_csv(shared_study.cohort).set_index("slide_id")["label"]
    splits = pd.read_csv(run_copy / "splits.csv").query("part == 'train'")
    table = pd.read_csv(run_copy / "predictions.csv")
    target = table["y_true"].value_counts(normalize=True)[CLASSES].to_numpy()
    gains = []
    for fold, rows in table.groupby("fold"):
        trained = splits.loc[splits["fold"] == fold, "slide_id"].map(labels)
        prior = trained.value_counts(normalize=True)[CLASSES].to_numpy()
        p = rows[[f"p_{c}" for c in CLASSES]].to_numpy() / prior * target
        p /= p.sum(axis=1, keepdims=True)
        y = rows["y_true"].map(CLASSES.index).to_numpy()
        gains += list(np.log(p[np.arange(len(y)), y] / target[y]))
    assert said["mi"]["value"] == pytest.approx(np.mean(gains))
    assert "training frequencies of their fold" in said["probabilities"]


def test_a_table_from_elsewhere_says_that_its_prior_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foreign_table(tmp_path / "theirs.csv")
    assert run_command(["evaluate", str(path), *FAST]) == 0
    said = capsys.readouterr().err
    assert "information on the labels: " in said
    assert "note: the probabilities are posteriors at unknown training frequencies" in said
    assert "not comparable across classes, temperatures or simplex maps" in said
    found = json.loads((tmp_path / "theirs-metrics.json").read_text())["information"]
    assert "unknown training frequencies" in found["mi"]["note"]


def test_sites_can_be_left_out_of_what_is_printed(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["evaluate", str(run_copy), "--by", "cohort", *FAST]) == 0
    out = capsys.readouterr().out
    assert "cohort cohort" in out
    assert "site x" not in out


def test_corrected_labels_are_joined_and_the_changed_are_named(
    study: Study, run_copy: Path, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    study.write_cohort([replace(study.rows[0], label="macro"), *study.rows[1:]])
    words = ["evaluate", str(run_copy), "--cohort", str(study.cohort), *FAST]
    assert run_command(words) == 0
    warned = capsys.readouterr().err
    note = (
        "1 of 27 labels in cohort.csv differ from those of the run: x-normal-0-0 normal -> macro; "
        "these slides also trained other folds, under the old labels"
    )
    assert f"warning: {note}" in warned
    assert f"note: {note}" not in warned  # said once
    written = json.loads((run_copy / "metrics-cohort.json").read_text())
    assert note in written["notes"]
    digest = hashlib.sha256(study.cohort.read_bytes()).hexdigest()[:12]
    assert written["labels_from"] == f"cohort.csv, column label, sha256 {digest}"
    table = pd.read_csv(run_copy / "predictions.csv")
    table.loc[table["slide_id"] == "x-normal-0-0", "y_true"] = "macro"
    value = np.mean([expected_f1(seed) for _, seed in table.groupby("seed")])
    assert said_json(words)["macro_f1"]["value"] == pytest.approx(value)


def test_the_same_labels_change_nothing(
    shared_study: Study, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(run_copy), "--cohort", str(shared_study.cohort), *FAST]
    assert run_command(words) == 0
    assert "differ from" not in capsys.readouterr().err


def test_a_misspelt_column_of_a_table_gets_the_nearest(
    study: Study, run_copy: Path, refused: Refused
) -> None:
    study.write_cohort(study.rows, grade=[row.label for row in study.rows])
    said = refused(["evaluate", run_copy, "--cohort", study.cohort, "--label", "gade", *FAST], 2)
    assert "cohort.csv has no label column 'gade' (did you mean 'grade'?)" in said
    assert "--label: " in said
    assert "data.label" not in said


def test_labels_of_every_column_have_scores_of_their_own(study: Study, run_copy: Path) -> None:
    same = [row.label for row in study.rows]
    study.write_cohort(study.rows, **{"grade": same, "second look/JD": same})
    words = ["evaluate", str(run_copy), "--cohort", str(study.cohort), *FAST]
    for more in ([], ["--label", "grade"], ["--label", "second look/JD"]):
        assert run_command([*words, *more]) == 0
    names = {path.name for path in run_copy.glob("metrics-*.json")}
    ends = ("", ".grade", ".second_look_JD")
    assert names == {f"metrics-cohort{end}.json" for end in ends}


class _ClosedPipe(Console):
    """What is printed on stdout meets a reader that has gone."""

    def table(self, *_: Any, **__: Any) -> None:
        raise BrokenPipeError


def test_scores_are_written_before_a_pipe_may_close(
    run_copy: Path, shared_mean_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    options = Options(by=("cohort",), out=out, replicates=100)
    with pytest.raises(BrokenPipeError):
        run([run_copy, shared_mean_run], options, _ClosedPipe(hushed=True))
    names = {path.name for path in out.iterdir()}
    assert {f"{source.name}.json" for source in (run_copy, shared_mean_run)} < names
    assert {"cohorts.json", "cohorts.md", "cohorts.csv", "cohorts.tex"} < names


def test_a_cohort_of_other_slides_is_refused(
    study: Study, run_copy: Path, refused: Refused
) -> None:
    study.write_cohort([row for row in study.rows if row.slide_id != "y-itc-1-0"])
    said = refused(["evaluate", run_copy, "--cohort", study.cohort, *FAST], 5)
    assert "y-itc-1-0" in said


@pytest.mark.parametrize("classes", [CLASSES, ["no", "yes"]])
def test_a_table_of_another_tool_is_scored(
    tmp_path: Path, said_json: Json, classes: list[str]
) -> None:
    path = foreign_table(tmp_path / "theirs.csv", classes=classes)
    said = said_json(["evaluate", path, *FAST])
    table = pd.read_csv(path, encoding="utf-8-sig")
    assert said["classes"] == classes
    assert said["macro_f1"]["value"] == pytest.approx(expected_f1(table, classes))
    assert said["auc"]["value"] == pytest.approx(expected_auc(table, classes))
    assert (said["n"], said["n_patients"]) == (24, 12)
    assert json.loads((tmp_path / "theirs-metrics.json").read_text()) == said
    assert not (tmp_path / "metrics.json").exists()
    named = tmp_path / "predictions.csv"
    named.write_bytes(path.read_bytes())
    assert run_command(["evaluate", str(named), *FAST]) == 0
    assert (tmp_path / "metrics.json").is_file()


def test_several_runs_each_get_their_file(run_copy: Path, tmp_path: Path, said_json: Json) -> None:
    theirs = foreign_table(tmp_path / "theirs.csv")
    out = tmp_path / "scores"
    said = said_json(["evaluate", run_copy, theirs, "--out", out, *FAST])
    assert set(said) == {"ce", "theirs.csv"}
    written = {path.name: json.loads(path.read_text()) for path in out.iterdir()}
    assert written == {"ce.json": said["ce"], "theirs.csv.json": said["theirs.csv"]}
    assert not (tmp_path / "metrics.json").exists()


def test_two_results_never_share_a_file(
    run_copy: Path, tmp_path: Path, refused: Refused, said_json: Json
) -> None:
    (run_copy / "metrics.json").unlink()
    assert "--out" in refused(["evaluate", run_copy, run_copy / "predictions.csv", *FAST], 2)
    assert not (run_copy / "metrics.json").exists()
    tables = [foreign_table(tmp_path / f"{seed}.csv", seed) for seed in (0, 1)]
    said = said_json(["evaluate", *tables, *FAST])
    for seed in (0, 1):
        written = json.loads((tmp_path / f"{seed}-metrics.json").read_text())
        assert written == said[f"{seed}.csv"]


def test_runs_of_one_name_stay_apart(tmp_path: Path, said_json: Json) -> None:
    paths = []
    for seed, folder in enumerate(("a/k/run", "b/k/run")):
        (tmp_path / folder).mkdir(parents=True)
        paths.append(foreign_table(tmp_path / folder / "predictions.csv", seed).parent)
    said = said_json(["evaluate", *paths, "--out", tmp_path / "out", *FAST])
    values = {scores["macro_f1"]["value"] for scores in said.values()}
    assert len(said) == len(values) == len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.drop(columns="patient_id"), "patient_id"),
        (lambda t: t.drop(columns=[f"p_{c}" for c in CLASSES]), "p_<class>"),
        (lambda t: t.assign(p_itc="high"), "no finite numbers"),
        (lambda t: t.assign(p_itc=0.9, p_macro=0.9), "sum to 1"),
        (lambda t: t.assign(y_true="tumour"), "tumour"),
        (lambda t: t.assign(y_true=""), "--cohort"),
        (lambda t: pd.concat([t, t]), "second prediction"),
        (lambda t: t.head(0), "no test rows"),
    ],
)
def test_a_bad_table_is_refused_with_what_is_wrong(
    tmp_path: Path, refused: Refused, change: Callable[[pd.DataFrame], pd.DataFrame], told: str
) -> None:
    path = foreign_table(tmp_path / "bad.csv")
    change(pd.read_csv(path, encoding="utf-8-sig", dtype=str)).to_csv(path, index=False)
    assert told in refused(["evaluate", path, *FAST], 5)


def test_edited_predictions_of_a_run_are_refused(run_copy: Path, refused: Refused) -> None:
    path = run_copy / "predictions.csv"
    path.write_text(path.read_text().replace(",test,macro,", ",test,itc,", 1))
    said = refused(["evaluate", run_copy, *FAST], 5)
    assert "was changed since it was written" in said


@pytest.mark.parametrize("command", ["evaluate", "compare", "report"])
def test_a_label_column_needs_the_table_that_it_is_of(
    shared_run: Path, refused: Callable[..., str], command: str
) -> None:
    told = refused([command, shared_run, shared_run, "--label", "grade"], 2)
    assert "give the table with --cohort" in told
