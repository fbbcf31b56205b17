from __future__ import annotations

import hashlib
import json

import pandas as pd
import pytest

from wsi.cohorts import Cohort, SlideRow
from wsi.errors import CohortError, ConfigError, LeakageError
from wsi.specs import SplitSpec
from wsi.splits import audit_splits, make_splits, read_splits, write_splits

ROWS = tuple(
    SlideRow(f"{k:04}", f"{k // 2:03}", label="ab"[k % 2], site=f"c{k % 4 // 2}") for k in range(40)
)
COHORT = Cohort("toy", ("a", "b"), ROWS)
HEADER = "slide_id,patient_id,fold,part\n"


@pytest.mark.parametrize("kind", ["kfold", "leave-one-site-out"])
@pytest.mark.parametrize("by", ["patient", "slide"])
def test_splits_are_read_back_as_written(tmp_path, kind, by):
    splits = make_splits(COHORT, SplitSpec.model_validate({"kind": kind, "val": {"by": by}}))
    write_splits(splits, tmp_path / "splits.csv")
    assert read_splits(tmp_path / "splits.csv", COHORT) == splits


def test_the_file_has_one_row_per_slide_and_fold_and_a_hash_anyone_can_check(tmp_path):
    splits = make_splits(COHORT, SplitSpec(seed=7))
    write_splits(splits, tmp_path / "splits.csv")
    table = pd.read_csv(tmp_path / "splits.csv", dtype=str)
    assert list(table.columns) == ["slide_id", "patient_id", "fold", "part"]
    assert len(table) == 40 * 5 == len(table.drop_duplicates(["slide_id", "fold"]))
    assert table["slide_id"].min() == "0000"
    sidecar = json.loads((tmp_path / "splits.json").read_text())
    assert sidecar["sha256"] == hashlib.sha256((tmp_path / "splits.csv").read_bytes()).hexdigest()
    assert sidecar["sha256"] == splits.hash
    assert sidecar["seed"] == 7


@pytest.fixture
def hand_made(tmp_path):
    def write(*lines: str):
        path = tmp_path / "splits.csv"
        path.write_text(HEADER + "\n".join(lines) + "\n")
        return path

    return write


SOUND = ("0000,000,0,train", "0001,000,0,train", "0002,001,0,Testing", "0003,001,0,test")


def test_a_hand_made_file_counts_the_slides_it_leaves_out(hand_made):
    splits = read_splits(hand_made(*SOUND), COHORT)
    assert splits.folds[0].test == ("0002", "0003")
    left_out = [f for f in splits.warnings() if f.rule == "left-out"]
    assert [len(f.ids) for f in left_out] == [36]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0099,001,0,test", r"line 6: unknown slide '0099' \(did you mean"),
        ("0004,002,0,tset", "line 6: unknown part 'tset'"),
        ("0004,003,0,test", "line 6: slide 0004 has patient 003, the cohort says 002"),
        ("0002,001,0,train", "line 6: slide 0002 is in test and train"),
    ],
)
def test_bad_rows_are_named(hand_made, line, complaint):
    with pytest.raises(CohortError, match=complaint):
        read_splits(hand_made(*SOUND, line), COHORT)


@pytest.mark.parametrize("parts", [("train", "test"), ("val", "test"), ("train", "val")])
def test_a_hand_made_file_may_not_leak_anywhere(hand_made, parts):
    lines = (f"0004,002,0,{parts[0]}", f"0005,002,0,{parts[1]}")
    with pytest.raises(LeakageError, match=f"in {parts[0]} and {parts[1]}: 002"):
        read_splits(hand_made(*SOUND, *lines), COHORT)


def test_an_edited_file_is_told_and_loses_the_permission_to_leak(tmp_path):
    path = tmp_path / "splits.csv"
    write_splits(make_splits(COHORT, SplitSpec()), path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    rules = [finding.rule for finding in read_splits(path, COHORT).warnings()]
    assert {"edited", "left-out"} <= set(rules)
    write_splits(make_splits(COHORT, SplitSpec.model_validate({"val": {"by": "slide"}})), path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(LeakageError):
        read_splits(path, COHORT)


def test_folds_named_by_words_keep_their_order(hand_made):
    lines = [row.replace(",0,", f",{name},") for name in ("north", "east") for row in SOUND]
    folds = read_splits(hand_made(*lines), COHORT).folds
    assert [(fold.index, fold.name) for fold in folds] == [(0, "north"), (1, "east")]


def test_an_empty_part_or_table_or_column_is_refused(hand_made, tmp_path):
    with pytest.raises(CohortError, match="no slide in test"):
        read_splits(hand_made(*SOUND[:2]), COHORT)
    with pytest.raises(CohortError, match="no rows"):
        read_splits(hand_made(), COHORT)
    path = tmp_path / "other.csv"
    path.write_text("slide_id,fold,prat\n")
    with pytest.raises(ConfigError, match=r"no column part.*did you mean 'prat'"):
        read_splits(path, COHORT)


def test_a_foreign_sidecar_is_refused(hand_made, tmp_path):
    path = hand_made(*SOUND)
    (tmp_path / "splits.json").write_text('{"some": "thing"}')
    with pytest.raises(CohortError, match=r"splits\.json is no sidecar"):
        read_splits(path, COHORT)


def test_an_audit_lists_leaks_and_bad_rows_together_and_raises_nothing(hand_made):
    lines = ("0004,002,0,train", "0005,002,0,test", "0099,009,0,test", "0006,003,0,tset")
    found = audit_splits(hand_made(*SOUND, *lines), COHORT)
    assert [(f.severity, f.rule, f.ids, f.line) for f in found[:3]] == [
        ("error", "unknown-slide", ("0099",), 8),
        ("error", "unknown-part", ("0006",), 9),
        ("error", "leakage", ("002",), None),
    ]
    told = {"class-balance", "site-balance", "two-sides"}
    assert {f.rule for f in found[3:]} - told == {"left-out", "empty-part"}
    assert {f.severity for f in found[3:] if f.rule not in told} == {"warning"}


def test_an_audit_of_sound_splits_finds_no_error(tmp_path):
    write_splits(make_splits(COHORT, SplitSpec()), tmp_path / "splits.csv")
    found = audit_splits(tmp_path / "splits.csv", COHORT)
    assert {f.rule for f in found} == {"class-balance", "site-balance"}
    assert {f.severity for f in found} == {"info"}


def test_a_file_that_names_its_patients_is_audited_without_a_cohort(hand_made):
    lines = ("0004,002,0,train", "0005,002,0,test", "0002,001,0,val", "0003,001,0,test")
    found = audit_splits(hand_made(*SOUND, *lines))
    by_rule = {f.rule: f for f in found}
    assert {f.rule for f in found if f.severity == "error"} == {"leakage", "conflict"}
    assert by_rule["leakage"].ids == ("002",)
    assert by_rule["conflict"].ids == ("0002",)
    assert (by_rule["repeated"].severity, by_rule["repeated"].ids) == ("warning", ("0003",))
    assert "labels and sites were not checked" in by_rule["unchecked"].message
    assert "unchecked" not in {f.rule for f in audit_splits(hand_made(*SOUND), COHORT)}


def test_a_slide_of_two_patients_is_told_without_a_cohort(hand_made):
    found = audit_splits(hand_made(*SOUND, "0000,009,1,train"))
    (two,) = [f for f in found if f.rule == "patient"]
    assert two.message == "line 6: slide 0000 has patient 009, an earlier line says 000"


def test_a_file_that_names_no_patients_asks_for_the_cohort(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("slide_id,fold,part\n0000,0,train\n0001,0,test\n")
    with pytest.raises(ConfigError, match=r"whose 2 slides are .*--cohort"):
        audit_splits(path)


def test_ids_that_begin_ids_of_the_cohort_are_told_together_as_cut_short(hand_made):
    found = audit_splits(
        hand_made(*SOUND, "000,000,0,test", "001,000,0,test", "77,0,0,test"), COHORT
    )
    cut, other = [f for f in found if f.rule == "unknown-slide"]
    assert (cut.ids, cut.line) == (("000", "001"), 6)
    assert cut.message == (
        "lines 6, 7: 2 slides are not in the cohort and begin ids of it: '000' of 0000, 0001 and "
        "8 more, '001' of 0010, 0011 and 8 more — cut short?"
    )
    assert other.message == "line 8: unknown slide '77'"


def test_a_part_misspelt_in_many_rows_is_one_finding(hand_made):
    rows = [f"{k:04},{k // 2:03},0,tset" for k in range(4, 28)]
    found = audit_splits(hand_made(*SOUND, *rows), COHORT)
    (told,) = [f for f in found if f.rule == "unknown-part"]
    assert len(told.ids) == 24
    assert told.message.startswith(
        "lines 6, 7, 8, 9, 10 and 19 more: unknown part 'tset' (did you mean 'test'?) in 24 rows"
    )


def test_classes_are_counted_in_the_order_given(hand_made):
    backwards = Cohort("toy", ("b", "a"), ROWS)
    (told,) = [
        f
        for f in audit_splits(hand_made(*SOUND, "0004,002,0,train"), backwards)
        if f.rule == "class-balance"
    ]
    assert told.message.startswith("fold 0, slides by class (b, a): train 1/2,")
