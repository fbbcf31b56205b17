"""`wsi cohort check`, `wsi splits make` and `wsi splits audit` as typed."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.cli import run_command

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Json = Callable[..., Any]
Refused = Callable[..., str]


def placed(path: Path) -> dict[str, dict[str, str]]:
    """Return the part of each slide by fold."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            assert row["slide_id"] not in found[row["fold"]]
            found[row["fold"]][row["slide_id"]] = row["part"]
    return found


def test_a_sound_cohort_has_no_errors(shared_study: Study, said_json: Json) -> None:
    findings = said_json(["cohort", "check", shared_study.cohort])
    assert {finding["severity"] for finding in findings} <= {"info"}


def test_errors_of_a_cohort_are_named_with_line_and_exit_5(
    study: Study, said_json: Json, capsys: pytest.CaptureFixture[str]
) -> None:
    table = study.rows
    bad = [replace(table[0], patient_id=""), *table[1:], replace(table[3], label="macro")]
    study.write_cohort(bad)
    findings = said_json(["cohort", "check", study.cohort], code=5)
    errors = {f["rule"]: f for f in findings if f["severity"] == "error"}
    assert set(errors) == {"missing-patient", "conflict"}
    assert errors["missing-patient"]["line"] == 2
    assert errors["conflict"]["line"] == len(bad) + 1
    assert run_command(["cohort", "check", str(study.cohort)]) == 5
    said = capsys.readouterr()
    assert "2 errors" in said.err
    assert table[3].slide_id in said.out


def test_a_cohort_is_checked_against_given_classes(study: Study, said_json: Json) -> None:
    words = ["cohort", "check", study.cohort, "data.classes=[normal,itc]"]
    errors = [f for f in said_json(words, code=5) if f["severity"] == "error"]
    (error,) = errors
    assert error["rule"] == "unknown-label"
    assert len(error["ids"]) == 9
    assert "none of the classes normal, itc: 'macro' of 9 slides (" in error["message"]


def test_one_patient_per_slide_is_suspect(study: Study, said_json: Json) -> None:
    study.write_cohort([replace(row, patient_id=row.slide_id) for row in study.rows])
    findings = said_json(["cohort", "check", study.cohort])
    assert "patients-equal-slides" in {f["rule"] for f in findings if f["severity"] == "warning"}


def test_splits_keep_patients_together_and_test_each_slide_once(
    shared_study: Study, tmp_path: Path, said_json: Json
) -> None:
    out = tmp_path / "splits.csv"
    said = said_json(["splits", "make", shared_study.cohort, "--out", out, "split.folds=3"])
    assert said["folds"] == 3
    assert said["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert json.loads(out.with_suffix(".json").read_text())["sha256"] == said["sha256"]
    folds = placed(out)
    tested = [s for parts in folds.values() for s, part in parts.items() if part == "test"]
    assert sorted(tested) == sorted(row.slide_id for row in shared_study.rows)
    for parts in folds.values():
        sides = {(row.patient_id, parts[row.slide_id]) for row in shared_study.rows}
        assert len(sides) == 18
        assert set(parts.values()) == {"train", "val", "test"}


def test_splits_are_the_same_again_and_other_for_another_seed(
    shared_study: Study, tmp_path: Path
) -> None:
    made = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        out = tmp_path / f"{name}.csv"
        words = ["splits", "make", str(shared_study.cohort), "--out", str(out)]
        assert run_command([*words, "split.folds=3", f"split.seed={seed}"]) == 0
        made.append(out.read_bytes())
    assert made[0] == made[1] != made[2]


def test_each_site_is_left_out_in_turn(shared_study: Study, tmp_path: Path) -> None:
    out = tmp_path / "splits.csv"
    words = ["splits", "make", str(shared_study.cohort), "--out", str(out)]
    assert run_command([*words, "split.kind=leave-one-site-out"]) == 0
    site = {row.slide_id: row.site for row in shared_study.rows}
    tested = [{site[s] for s, p in parts.items() if p == "test"} for parts in placed(out).values()]
    assert tested == [{"x"}, {"y"}, {"z"}]
    for parts in placed(out).values():
        inside = {site[s] for s, p in parts.items() if p == "test"}
        assert inside.isdisjoint(site[s] for s, p in parts.items() if p != "test")


def test_an_official_split_is_taken_as_it_is(study: Study, tmp_path: Path) -> None:
    part = {"x": "train", "y": "val", "z": "test"}
    study.write_cohort(study.rows, split=[part[row.site] for row in study.rows])
    out = tmp_path / "splits.csv"
    words = ["splits", "make", str(study.cohort), "--out", str(out), "split.kind=official"]
    assert run_command(words) == 0
    assert placed(out) == {"0": {row.slide_id: part[row.site] for row in study.rows}}


def test_made_splits_pass_their_audit(shared_study: Study, tmp_path: Path, said_json: Json) -> None:
    out = tmp_path / "splits.csv"
    run_command(["splits", "make", str(shared_study.cohort), "--out", str(out), "split.folds=3"])
    findings = said_json(["splits", "audit", out, "--cohort", shared_study.cohort])
    assert [f for f in findings if f["severity"] == "error"] == []


def test_a_leak_is_found_and_the_patient_named(
    shared_study: Study, tmp_path: Path, said_json: Json
) -> None:
    out = tmp_path / "splits.csv"
    run_command(["splits", "make", str(shared_study.cohort), "--out", str(out), "split.folds=3"])
    lines = out.read_text().splitlines()
    index = next(k for k, t in enumerate(lines) if "-0-1," in t and t.endswith("0,test"))
    lines[index] = lines[index].replace("test", "train")
    out.write_text("\n".join(lines) + "\n")
    findings = said_json(["splits", "audit", out, "--cohort", shared_study.cohort], code=5)
    (leak,) = [f for f in findings if f["rule"] == "leakage"]
    assert leak["ids"] == [lines[index].split(",")[1]]
    assert "edited" in {f["rule"] for f in findings}


def test_a_test_site_that_is_not_there_is_told_the_nearest(
    study: Study, tmp_path: Path, refused: Refused
) -> None:
    study.write_cohort([replace(row, site=f"centre-{row.site}") for row in study.rows])
    words = ["splits", "make", study.cohort, "--out", tmp_path / "s.csv", "split.kind=sites"]
    said = refused([*words, "split.test=[center-x]"], 2)
    assert "did you mean 'centre-x'" in said
    assert not (tmp_path / "s.csv").exists()


def test_more_folds_than_patients_are_refused(
    shared_study: Study, tmp_path: Path, refused: Refused
) -> None:
    words = ["splits", "make", shared_study.cohort, "--out", tmp_path / "s.csv", "split.folds=50"]
    assert "18 patients cannot fill 50 folds" in refused(words, 5)
