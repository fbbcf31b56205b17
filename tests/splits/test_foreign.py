"""Split files as other tools write them, audited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from wsi.cohorts import Cohort, Record, SlideRow
from wsi.errors import CohortError, ConfigError, LeakageError
from wsi.splits.foreign import read_foreign
from wsi.splits.table import audit_splits, read_splits

SLIDES = {f"s{i}": f"p{i // 2}" for i in range(12)}  # two slides of each of six patients
SOUND = {
    "train": ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"],
    "val": ["s8", "s9"],
    "test": ["s10", "s11"],
}
LEAKY = SOUND | {"val": ["s8"], "test": ["s9", "s10", "s11"]}  # p4 on two sides


def cohort(owner: dict[str, str] = SLIDES) -> Cohort:
    rows = (
        SlideRow(slide, patient, label="ab"[int(patient[-1]) % 2], site="xy"[i % 2])
        for i, (slide, patient) in enumerate(owner.items())
    )
    return Cohort("c", ("a", "b"), tuple(rows))


def clam(path: Path, parts: dict[str, list[str]]) -> Path:
    """Write columns of unequal length with a leading index, as pandas does."""
    pd.DataFrame({part: pd.Series(ids) for part, ids in parts.items()}).to_csv(path)
    return path


def transmil(path: Path, parts: dict[str, list[str]]) -> Path:
    columns: dict[str, pd.Series] = {}
    for part, ids in parts.items():
        columns[part] = pd.Series(ids)
        columns[f"{part}_label"] = pd.Series([int(SLIDES[s][-1]) % 2 for s in ids])
    pd.DataFrame(columns).to_csv(path)
    return path


def panther(folder: Path, parts: dict[str, list[str]]) -> Path:
    folder.mkdir()
    for part, ids in parts.items():
        rows = [{"case_id": SLIDES[s], "slide_id": f"{s}.svs", "label": 1} for s in ids]
        pd.DataFrame(rows).to_csv(folder / f"{part}.csv", index=False)
    return folder


def columns(path: Path, parts: dict[str, list[str]]) -> Path:
    rows = [
        {"case_id": SLIDES[s], "slide_id": s, "fold_0": part}
        for part, ids in parts.items()
        for s in ids
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def clam_folder(folder: Path, parts: dict[str, list[str]]) -> Path:
    folder.mkdir()
    for k in range(2):
        clam(folder / f"splits_{k}.csv", parts)
        (folder / f"splits_{k}_bool.csv").write_text(",train,val,test\ns0,True,False,False\n")
        (folder / f"splits_{k}_descriptor.csv").write_text(",train,val,test\na,4,1,1\n")
    return folder


WRITERS = {
    "CLAM": lambda root, parts: clam(root / "splits_0.csv", parts),
    "CLAM folder": lambda root, parts: clam_folder(root / "task", parts),
    "TransMIL": lambda root, parts: transmil(root / "fold0.csv", parts),
    "PANTHER": lambda root, parts: panther(root / "k=0", parts),
    "columns": lambda root, parts: columns(root / "folds.csv", parts),
}
each_tool = pytest.mark.parametrize("tool", WRITERS)


def rules(findings: Sequence, severity: str) -> set[str]:
    return {f.rule for f in findings if f.severity == severity}


@each_tool
def test_each_layout_is_read_as_its_tool_means_it(tmp_path, tool):
    foreign = read_foreign(WRITERS[tool](tmp_path, SOUND))
    assert foreign is not None
    assert foreign.tool == tool.split()[0]
    assert len(foreign.folds) == (2 if tool == "CLAM folder" else 1)
    for fold in foreign.folds:
        assert fold.parts == SOUND


@each_tool
def test_a_sound_split_has_no_errors(tmp_path, tool):
    findings = audit_splits(WRITERS[tool](tmp_path, SOUND), cohort())
    assert rules(findings, "error") == set()
    assert {"class-balance", "site-balance"} <= rules(findings, "info")


@each_tool
def test_a_patient_on_two_sides_is_named(tmp_path, tool):
    findings = audit_splits(WRITERS[tool](tmp_path, LEAKY), cohort())
    leaks = [f for f in findings if f.rule == "leakage"]
    assert {f.ids for f in leaks} == {("p4",)}
    assert all("val and test" in f.message for f in leaks)


@pytest.mark.parametrize("tool", ["PANTHER", "columns"])
def test_files_that_name_patients_need_no_cohort(tmp_path, tool):
    findings = audit_splits(WRITERS[tool](tmp_path, LEAKY))
    assert {f.ids for f in findings if f.rule == "leakage"} == {("p4",)}
    assert "sites were not checked" in "".join(f.message for f in findings)


def test_ids_cut_short_in_another_tools_file_are_told(tmp_path):
    parts = SOUND | {"test": ["s10", "s11", "s"]}
    found = audit_splits(clam(tmp_path / "splits_0.csv", parts), cohort())
    (cut,) = [f for f in found if f.rule == "unknown-slide"]
    assert cut.ids == ("s",)
    assert cut.message.endswith("cut short?")


def test_files_that_name_no_patients_ask_for_them(tmp_path):
    with pytest.raises(ConfigError, match="--cohort"):
        audit_splits(clam(tmp_path / "splits_0.csv", SOUND))


def test_tcga_patients_are_known_by_their_barcodes(tmp_path):
    slides = [f"TCGA-AA-000{p}-01Z-00-DX{k}.uuid" for p in range(4) for k in (1, 2)]
    parts = {"train": slides[:3], "val": slides[3:5], "test": slides[5:]}
    path = clam(tmp_path / "splits_0.csv", parts)
    leaks = [f for f in audit_splits(path) if f.rule == "leakage"]
    assert {(f.ids, f.message.split(" are in ")[1].split(":")[0]) for f in leaks} == {
        (("TCGA-AA-0001",), "train and val"),
        (("TCGA-AA-0002",), "val and test"),
    }
    # A table that calls every slide a patient hides them; the barcodes still tell.
    fake = Cohort("c", (), tuple(SlideRow(s, s) for s in slides))
    found = audit_splits(path, fake)
    hidden = [f for f in found if f.rule == "leakage"]
    assert {f.ids for f in hidden} == {("TCGA-AA-0001",), ("TCGA-AA-0002",)}
    assert all("under different patient ids" in f.message for f in hidden)
    assert "patients-equal-slides" in rules(found, "warning")


def test_patient_ids_that_break_off_a_number_are_suspected(tmp_path):
    owner = {f"patient_{p:03d}_node_{k}": f"patient_{p:03d}" for p in range(40, 60) for k in (0, 1)}
    owner["patient_047_node_0"] = "patient_04"
    parts = {"train": list(owner)[:20], "val": list(owner)[20:30], "test": list(owner)[30:]}
    rows = tuple(SlideRow(s, p, label="ab"[i % 2]) for i, (s, p) in enumerate(owner.items()))
    findings = audit_splits(clam(tmp_path / "splits_0.csv", parts), Cohort("c", (), rows))
    (cut,) = [f for f in findings if f.rule == "truncated-patient"]
    assert cut.ids == ("patient_047_node_0",)
    assert "patient-prefix" in rules(findings, "warning")


def test_a_slide_in_two_parts_and_one_that_nobody_knows_are_errors(tmp_path):
    parts = SOUND | {"test": ["s10", "s11", "s0", "s99"]}
    findings = audit_splits(clam(tmp_path / "splits_0.csv", parts), cohort())
    by_rule = {f.rule: f for f in findings if f.severity == "error"}
    assert by_rule["conflict"].ids == ("s0",)
    assert by_rule["unknown-slide"].ids == ("s99",)


def test_a_class_that_a_part_lacks_is_told(tmp_path):
    parts = {"train": ["s0", "s1", "s4", "s5"], "val": ["s2", "s3"], "test": ["s6", "s7", "s8"]}
    findings = audit_splits(clam(tmp_path / "splits_0.csv", parts), cohort())
    absent = {(f.severity, f.message) for f in findings if f.rule == "absent-class"}
    assert ("error", "fold splits_0: no slide of b in train") in absent


def test_numbers_that_pandas_turned_to_fractions_are_whole_ids_again(tmp_path):
    path = tmp_path / "splits_0.csv"
    path.write_text(",train,val,test\n0,101,102.0,103.0\n1,104,,\n")
    foreign = read_foreign(path)
    assert foreign is not None
    assert foreign.folds[0].parts == {"train": ["101", "104"], "val": ["102"], "test": ["103"]}


def test_a_word_that_is_no_part_and_a_table_of_no_splits_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("slide_id,fold_0\ns0,tarin\n")
    with pytest.raises(CohortError, match="line 2: fold_0 is 'tarin'"):
        read_foreign(path)
    path.write_text("slide_id,label\ns0,a\n")
    with pytest.raises(ConfigError, match="no splits that are known"):
        read_foreign(path)


@each_tool
def test_a_sound_split_of_another_tool_trains_as_it_stands_and_a_leaky_one_does_not(tmp_path, tool):
    (fold, *_) = read_splits(WRITERS[tool](tmp_path, SOUND), cohort()).folds
    assert {part: list(ids) for part, ids in fold.parts().items()} == {
        part: sorted(ids) for part, ids in SOUND.items()
    }
    (tmp_path / "leaky").mkdir()
    with pytest.raises(LeakageError, match="p4"):
        read_splits(WRITERS[tool](tmp_path / "leaky", LEAKY), cohort())


def test_patients_on_two_sides_of_any_fold_are_counted_and_named(tmp_path):
    folder = clam_folder(tmp_path / "task", LEAKY)
    clam(folder / "splits_1.csv", SOUND | {"train": SOUND["train"][:-1], "val": ["s7", "s8"]})
    (two,) = [f for f in audit_splits(folder, cohort()) if f.rule == "two-sides"]
    assert two.ids == ("p3", "p4")
    assert two.message.startswith("2 of 6 patients are on two sides: p3, p4")


def test_a_file_that_lists_patients_is_read_as_such(tmp_path):
    """Survival folds list the barcodes of patients, once for each of their slides."""
    one, other, third = "TCGA-AA-0001", "TCGA-AA-0002", "TCGA-AA-0003"
    path = clam(tmp_path / "splits_0.csv", {"train": [one, one, other], "val": [other], "test": []})
    found = audit_splits(path)
    assert [f.ids for f in found if f.rule == "leakage"] == [(other,)]
    assert [f.ids for f in found if f.rule == "conflict"] == [(other,)]
    assert [f.ids for f in found if f.rule == "repeated"] == [(one,)]
    assert "patients-equal-slides" not in rules(found, "warning")
    path = clam(tmp_path / "splits_1.csv", {"train": [one, one], "val": [other], "test": [third]})
    assert rules(audit_splits(path), "error") == set()


def test_a_site_on_both_sides_is_told_where_patients_are_mixed_from_several_people(tmp_path):
    mixed = replace(cohort(), record=Record("camelyon17", "labels", patients_mixed=True))
    path = clam(tmp_path / "splits_0.csv", SOUND)
    (told,) = [f for f in audit_splits(path, mixed) if f.rule == "mixed-patients"]
    assert (told.severity, told.ids) == ("warning", ("splits_0",))
    assert "split.kind=leave-one-site-out" in told.message
    by_site = {
        part: [s for i, s in enumerate(SLIDES) if i % 2 == k]
        for k, part in enumerate(("train", "test"))
    }
    path = clam(tmp_path / "splits_1.csv", {**by_site, "val": []})
    assert "mixed-patients" not in rules(audit_splits(path, mixed), "warning")
    assert "mixed-patients" not in rules(audit_splits(path, cohort()), "warning")


@pytest.mark.parametrize(("theirs", "ours"), [("", ".svs"), (".tif", ""), (".svs", ".svs")])
def test_ids_with_and_without_the_extension_of_a_slide_are_the_same(tmp_path, theirs, ours):
    rows = tuple(replace(row, slide_id=row.slide_id + ours) for row in cohort().rows)
    parts = {part: [s + theirs for s in ids] for part, ids in LEAKY.items()}
    own = tmp_path / "splits.csv"
    lines = [f"{s},0,{part}" for part, ids in parts.items() for s in ids]
    own.write_text("\n".join(["slide_id,fold,part", *lines]) + "\n")
    for path in (clam(tmp_path / "splits_0.csv", parts), own):
        found = audit_splits(path, replace(cohort(), rows=rows))
        assert {f.rule for f in found if f.severity == "error"} == {"leakage"}
