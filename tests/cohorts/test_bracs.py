from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from wsi.cohorts import bracs, read_cohort
from wsi.cohorts.built import write_built
from wsi.errors import CohortError, ConfigError
from wsi.specs import SplitSpec
from wsi.splits import make_splits

TABLE = Path(__file__).parent / "labels" / "bracs_slides.csv"
HEADER = "WSI Filename,Patient Id,RoI,WSI label,Set"
SLIDES = {
    "BRACS_1": ("1", "N", "Training"),
    "BRACS_2": ("1", "PB", "Training"),
    "BRACS_3": ("2", "ADH", "Training"),
    "BRACS_4": ("3", "IC", "Validation"),
    "BRACS_5": ("4", "DCIS", "Testing"),
    "BRACS_6": ("5", "IC", "Training"),
}
FOLDERS = {"Training": "train", "Validation": "val", "Testing": "test"}
GROUPS = {"N": "BT", "PB": "BT", "ADH": "AT", "IC": "MT", "DCIS": "MT"}


def tree(root: Path, slides: dict = SLIDES) -> Path:
    for name, (_, label, part) in slides.items():
        folder = root / "BRACS_WSI" / FOLDERS[part] / f"Group_{GROUPS[label]}" / f"Type_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.svs").touch()
        (folder / f"{name}.qpdata").touch()  # beside slides in the data set, and never read
    return root


def table(path: Path, slides: dict = SLIDES) -> Path:
    lines = [f"{name},{p},1,{label},{part}" for name, (p, label, part) in slides.items()]
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def rows_of(built, path: Path) -> list[dict[str, str]]:
    write_built(built, path)
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_published_table_has_its_published_figures(tmp_path):
    built = bracs.build(None, TABLE)
    rows = rows_of(built, tmp_path / "b.csv")
    assert len(rows) == 547
    assert len({row["patient_id"] for row in rows}) == 189
    assert Counter(row["split"] for row in rows) == {"train": 395, "val": 65, "test": 87}
    counted = Counter((row["c3"], row["split"]) for row in rows)
    published = {"BT": (203, 30, 32), "AT": (52, 14, 23), "MT": (140, 21, 32)}
    for group, parts in published.items():
        assert tuple(counted[group, part] for part in ("train", "val", "test")) == parts


def test_patient_67_in_two_parts_is_reported_and_kept():
    (finding,) = [f for f in bracs.build(None, TABLE).findings if f.rule == "leakage"]
    assert (finding.severity, finding.ids) == ("warning", ("67",))
    assert "train and val" in finding.message


def test_the_shift_of_priors_between_training_and_test_is_told():
    (finding,) = [f for f in bracs.build(None, TABLE).findings if f.rule == "prior-shift"]
    assert "AT 13 % and 26 %" in finding.message


def test_folders_and_table_together_give_paths_and_patients(tmp_path):
    built = bracs.build(tree(tmp_path / "b"), table(tmp_path / "BRACS.csv"))
    rows = {row["slide_id"]: row for row in rows_of(built, tmp_path / "out.csv")}
    assert rows["BRACS_3"]["path"] == "b/BRACS_WSI/train/Group_AT/Type_ADH/BRACS_3.svs"
    assert (rows["BRACS_3"]["c7"], rows["BRACS_3"]["c3"]) == ("ADH", "AT")
    assert rows["BRACS_2"]["patient_id"] == rows["BRACS_1"]["patient_id"] == "1"


def test_the_workbook_is_read_from_its_sheet(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "RoI"
    book.active.append(["something", "else"])
    sheet = book.create_sheet("WSI_Information")
    sheet.append(HEADER.split(","))
    for name, (patient, label, part) in SLIDES.items():
        sheet.append([name, int(patient), 0, label, part])
    book.save(tmp_path / "BRACS.xlsx")
    rows = rows_of(bracs.build(None, tmp_path / "BRACS.xlsx"), tmp_path / "out.csv")
    assert {row["slide_id"]: row["patient_id"] for row in rows} == {
        name: patient for name, (patient, _, _) in SLIDES.items()
    }


def test_a_label_that_differs_between_folder_and_table_is_refused_by_name(tmp_path):
    other = SLIDES | {"BRACS_2": ("1", "UDH", "Training")}
    with pytest.raises(CohortError, match="BRACS_2 PB by its folder, UDH in the table"):
        bracs.build(tree(tmp_path / "b"), table(tmp_path / "t.csv", other))


def test_a_part_that_differs_between_folder_and_table_is_refused_by_name(tmp_path):
    other = SLIDES | {"BRACS_4": ("3", "IC", "Testing")}
    with pytest.raises(CohortError, match="BRACS_4 val by its folder, test in the table"):
        bracs.build(tree(tmp_path / "b"), table(tmp_path / "t.csv", other))


def test_a_slide_that_the_table_does_not_know_has_no_patient(tmp_path):
    fewer = {k: v for k, v in SLIDES.items() if k != "BRACS_5"}
    with pytest.raises(CohortError, match="have no patient: BRACS_5"):
        bracs.build(tree(tmp_path / "b"), table(tmp_path / "t.csv", fewer))


def test_a_patient_in_training_and_test_is_leakage(tmp_path):
    leaky = SLIDES | {"BRACS_5": ("2", "DCIS", "Testing")}
    with pytest.raises(CohortError, match="patient 2 is in test and train") as caught:
        bracs.build(None, table(tmp_path / "t.csv", leaky))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("source", ["folders", "fake"])
def test_without_patients_splits_by_patient_are_refused_and_results_say_so(tmp_path, source):
    if source == "folders":
        built = bracs.build(tree(tmp_path / "b"), None)
    else:
        fake = {k: (f"patient_{n}", *v[1:]) for n, (k, v) in enumerate(SLIDES.items())}
        built = bracs.build(None, table(tmp_path / "t.csv", fake))
    assert [f.severity for f in built.findings if f.rule == "patients-unknown"] == ["warning"]
    write_built(built, tmp_path / "out.csv")
    cohort = read_cohort(tmp_path / "out.csv", "c3", ("BT", "AT", "MT"))
    with pytest.raises(CohortError, match="does not know its patients"):
        make_splits(cohort, SplitSpec(kind="kfold", folds=2))
    (fold,) = make_splits(cohort, SplitSpec(kind="official")).folds
    assert fold.test == ("BRACS_5",)


def test_a_misspelt_label_is_named_with_its_line(tmp_path):
    other = SLIDES | {"BRACS_2": ("1", "UHD", "Training")}
    with pytest.raises(CohortError, match=r"line 3: BRACS_2 has the label 'UHD'.*UDH"):
        bracs.build(None, table(tmp_path / "t.csv", other))


def test_a_table_without_its_columns_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("WSI Filename,WSI label\nBRACS_1,N\n")
    with pytest.raises(ConfigError, match="no column for patient, split"):
        bracs.build(None, tmp_path / "t.csv")


def test_an_overlay_relabels_and_leaves_out(tmp_path):
    overlay = tmp_path / "o.csv"
    overlay.write_text("slide_id,keep,label,reason\nBRACS_1,0,,blurred\nBRACS_2,1,UDH,\n")
    built = bracs.build(None, table(tmp_path / "t.csv"), overlay=overlay)
    assert {r["slide_id"]: r["c7"] for r in built.rows}["BRACS_2"] == "UDH"
    assert "BRACS_1" not in {r["slide_id"] for r in built.rows}


def test_the_published_table_is_of_a_known_version_and_one_cut_short_is_not(tmp_path):
    whole = bracs.build(None, TABLE)
    assert "not-official" not in {f.rule for f in whole.findings}
    assert whole.record.line.startswith("BRACS labels (")
    lines = TABLE.read_text().splitlines()
    cut = tmp_path / "cut.csv"
    cut.write_text("\n".join(lines[:501]) + "\n")
    built = bracs.build(None, cut)
    (told,) = [f for f in built.findings if f.rule == "not-official"]
    assert told.severity == "warning"
    assert told.message.startswith("not the official table: 500 of 547 slides")
    assert built.record.line.startswith("BRACS labels of no known version (")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("BRACS_265,87,UDH,Validation", "BRACS_265,87,UDH,Training", "396/64/87 slides in train"),
        ("BRACS_1832,97,", "BRACS_1832,new,", "190 patients, not 189"),
        ("BRACS_264,85,PB", "BRACS_264,85,UDH", "44/146/75/41/48/61/132 slides of N/PB/UDH"),
    ],
)
def test_slides_moved_to_another_part_or_patient_make_another_table(tmp_path, old, new, told):
    text = TABLE.read_text()
    assert old in text
    (tmp_path / "other.csv").write_text(text.replace(old, new))
    findings = bracs.build(None, tmp_path / "other.csv").findings
    assert [told in f.message for f in findings if f.rule == "not-official"] == [True]
