from __future__ import annotations

from pathlib import Path

import pytest

from wsi.cohorts import Cohort, SlideRow, match_ids, read_cohort, read_slide_table
from wsi.errors import CohortError, ConfigError, LeakageError

AB = ["a", "b"]


@pytest.fixture
def table(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "slides.csv"
        path.write_text(text)
        return path

    return write


def test_a_cohort_has_every_field(table, tmp_path):
    path = table(
        "slide_id,patient_id,label,site,split,path,mpp\n"
        "s1,p1,b,c0,Training,x/s1.svs,0.25\n"
        "s2,p2,a,,TEST,,\n"
    )
    cohort = read_cohort(path, classes=["b", "a"])
    assert cohort.name == "slides"
    assert cohort.classes == ("b", "a")
    assert cohort.rows == (
        SlideRow("s1", "p1", tmp_path / "x/s1.svs", "b", "c0", "train", 0.25, 2),
        SlideRow("s2", "p2", None, "a", None, "test", None, 3),
    )


def test_ids_and_labels_that_look_like_other_things_stay_text(table):
    path = table("slide_id,PATIENT,label\n0012,007,NA\n1e5,1.0,None\n")
    rows = read_cohort(path, classes=["NA", "None"]).rows
    assert [(r.slide_id, r.patient_id, r.label) for r in rows] == [
        ("0012", "007", "NA"),
        ("1e5", "1.0", "None"),
    ]


def test_every_bad_row_is_listed_with_line_and_column(table):
    path = table(
        "slide_id,patient_id,label,mpp\n"
        "s1,p1,A,\n"  # unknown label
        "s2,,a,\n"  # missing patient
        ",p3,a,\n"  # missing id
        "s4,p4,,\n"  # missing label
        "s5,p5,a,fast\n"  # no resolution
        "../s6,p6,a,\n"  # an id that leaves its folder
        "s7,p7,a,1,extra\n"
        "s8,p8,a,\n"
        "s8,p9,a,\n"  # the same slide with another patient
    )
    with pytest.raises(CohortError) as caught:
        read_cohort(path, classes=AB)
    text = str(caught.value)
    assert caught.value.exit_code == 5
    for piece in [
        "8 problems",
        "line 2, column 3 (label): unknown label 'A'",
        "line 3, column 2 (patient_id): missing patient",
        "line 4, column 1 (slide_id): missing slide id",
        "line 5, column 3 (label): missing label",
        "line 6, column 4 (mpp): 'fast'",
        "line 7, column 1 (slide_id)",
        "line 8: more cells",
        "line 10, column 1 (slide_id): slide s8 is already on line 9",
        "patient_id p8 and p9",
    ]:
        assert piece in text
    positions = [text.index(f"line {n}") for n in (2, 3, 4, 5, 6, 7, 8, 10)]
    assert positions == sorted(positions)


def test_a_row_without_an_id_tells_its_other_errors_too(table):
    path = table("slide_id,patient_id,label,split,mpp\n,,A,tset,abc\n,p,a,,\n")
    with pytest.raises(CohortError, match=r"6 problems") as caught:
        read_cohort(path, classes=AB)
    for column in ("1 (slide_id)", "2 (patient_id)", "3 (label)", "4 (split)", "5 (mpp)"):
        assert f"line 2, column {column}" in str(caught.value)


@pytest.mark.parametrize("bad", ["nan", "inf", "0", "-1", "352.78", "0,25"])
def test_unbelievable_resolutions_are_refused(table, bad):
    with pytest.raises(CohortError, match="line 2, column 4"):
        read_cohort(table(f"slide_id;patient_id;label;mpp\ns1;p1;a;{bad}\n"), classes=AB)


def test_identical_duplicates_are_merged(table):
    rows = read_cohort(table("slide_id,case_id,label\ns,p,a\ns,p,a\n"), classes=AB).rows
    assert [(r.slide_id, r.line) for r in rows] == [("s", 2)]


def test_without_classes_the_error_lists_the_values_found(table):
    path = table("slide_id,patient_id,label\ns1,p1,b\ns2,p2,a\ns3,p3,b\n")
    with pytest.raises(ConfigError, match=r"holds a \(1\), b \(2\).*data\.classes=\[a,b\]"):
        read_cohort(path)
    unlabelled = read_cohort(path, require_label=False)
    assert unlabelled.classes == ()
    assert [r.label for r in unlabelled.rows] == ["b", "a", "b"]


def test_labels_may_be_absent_when_not_required(table):
    path = table("slide_id,patient_id\ns1,p1\n")
    assert read_cohort(path, require_label=False).rows[0].label is None
    with pytest.raises(ConfigError, match="no label column 'label'"):
        read_cohort(path, classes=AB)
    with pytest.raises(ConfigError, match="no label column 'c7'"):
        read_cohort(path, label="c7", require_label=False)


def test_a_misspelt_label_column_gets_a_suggestion(table):
    with pytest.raises(ConfigError, match="did you mean 'node4'"):
        read_cohort(table("slide_id,patient_id,node4\ns,p,a\n"), label="node_4", classes=AB)


def test_a_missing_patient_column_is_a_config_error(table):
    with pytest.raises(ConfigError, match="no column patient_id"):
        read_cohort(table("slide_id,label\ns,a\n"), classes=AB)


def test_repeated_classes_are_refused(table):
    with pytest.raises(ConfigError, match="repeat"):
        read_cohort(table("slide_id,patient_id,label\ns,p,a\n"), classes=["a", "a"])


def test_a_table_without_rows_is_refused(table):
    with pytest.raises(CohortError, match="no rows"):
        read_cohort(table("slide_id,patient_id,label\n"), classes=AB)


@pytest.mark.parametrize("other", ["train", "val"])
def test_a_patient_in_test_and_another_official_part_is_leakage(table, other):
    path = table(f"slide_id,patient_id,label,split\ns1,p,a,{other}\ns2,p,a,test\n")
    with pytest.raises(LeakageError, match=rf"patient p is in {other} \(line 2\) and test"):
        read_cohort(path, classes=AB)


def test_a_patient_in_official_train_and_val_can_be_read(table):
    path = table("slide_id,patient_id,label,split\ns1,67,a,Training\ns2,67,a,Validation\n")
    assert [r.split for r in read_cohort(path, classes=AB).rows] == ["train", "val"]


def test_unknown_parts_are_refused(table):
    path = table("slide_id,patient_id,label,split\ns1,p,a,trainn\n")
    with pytest.raises(CohortError, match=r"column 4 \(split\): unknown part 'trainn'.*'train'"):
        read_cohort(path, classes=AB)


def test_slide_ids_come_from_paths_when_there_is_no_id_column(table, tmp_path):
    path = table("path\na/x.svs\nb/x.svs\nc/y.svs\nc/y.tif\n/far/away/TCGA-1.4F6a-9.svs\nv1.2\n")
    rows = read_slide_table(path)
    assert [r.slide_id for r in rows] == [
        "a/x",
        "b/x",
        "c/y.svs",
        "c/y.tif",
        "TCGA-1.4F6a-9",
        "v1.2",
    ]
    assert rows[0].path == tmp_path / "a/x.svs"
    assert rows[4].path == Path("/far/away/TCGA-1.4F6a-9.svs")
    assert {r.patient_id for r in rows} == {""}


def test_a_slide_table_needs_paths(table):
    with pytest.raises(ConfigError, match="no column path"):
        read_slide_table(table("slide_id\ns1\n"))
    with pytest.raises(CohortError, match=r"line 3, column 2 \(path\): missing path"):
        read_slide_table(table("slide_id,path\ns1,x.svs\ns2,\n"))


def test_two_far_files_of_one_name_need_ids(table):
    with pytest.raises(CohortError, match="other values"):
        read_slide_table(table("path\n/a/x.svs\n/b/x.svs\n"))


def cohort_of(*ids: str) -> Cohort:
    return Cohort("c", ("a", "b"), tuple(SlideRow(i, "p") for i in ids))


def test_ids_match_exactly_or_by_a_unique_bare_name():
    available = ["site-a/x", "site-b/x", "site-b/y", "z", "deep/er/z"]
    matched = match_ids(cohort_of("site-a/x", "y", "z", "gone"), available)
    assert matched == {"site-a/x": "site-a/x", "y": "site-b/y", "z": "z"}


def test_an_ambiguous_bare_name_lists_its_candidates():
    with pytest.raises(CohortError, match="slide x could be site-a/x, site-b/x"):
        match_ids(cohort_of("x"), ["site-b/x", "site-a/x"])


def test_two_slides_may_not_mean_one_bag():
    with pytest.raises(CohortError, match="site-a/x and x both mean site-a/x"):
        match_ids(cohort_of("site-a/x", "x"), ["site-a/x"])


def test_reading_a_cohort_loads_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys, wsi.cohorts; "
        "print({'torch', 'pandas', 'sklearn', 'scipy', 'zarr'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_unknown_labels_of_many_slides_are_one_line(table):
    path = table(
        "slide_id,patient_id,label\n"
        + "".join(f"s{k},p{k},{'aa' if k < 5 else 'q' if k < 6 else 'b'}\n" for k in range(8))
    )
    with pytest.raises(CohortError) as caught:
        read_cohort(path, classes=AB)
    assert str(caught.value) == (
        f"{path.name}: labels that are none of the classes a, b: 'aa' (did you mean 'a'?) of "
        "5 slides (s0, s1, s2 and 2 more); 'q' of 1 slide (s5) — correct data.classes or the table"
    )


def test_ids_match_but_for_the_extension_of_a_slide_on_either_side():
    available = ["x", "a/y.svs", "z.tif", "v1.2", "w.svs", "w.tif"]
    matched = match_ids(cohort_of("x.svs", "y", "z.TIF", "v1", "z", "w.svs"), available)
    assert matched == {"x.svs": "x", "y": "a/y.svs", "z": "z.tif", "w.svs": "w.svs"}


def test_an_extension_that_could_be_either_of_two_is_refused():
    with pytest.raises(CohortError, match=r"slide w could be w\.svs, w\.tif"):
        match_ids(cohort_of("w"), ["w.svs", "w.tif"])
