from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path

import pytest

from wsi.cohorts import camelyon17, read_cohort
from wsi.cohorts.built import write_built
from wsi.cohorts.camelyon17_labels import (
    ANNOTATED,
    NODE_CLASSES,
    check_labels,
    pn_stage,
    read_labels,
    staged,
)
from wsi.errors import CohortError, ConfigError
from wsi.specs import SplitSpec, ValidationSpec
from wsi.splits import make_splits

LABELS = Path(__file__).parent / "labels"
CALLED_NEGATIVE = (
    "patient_022_node_4",
    "patient_038_node_2",
    "patient_086_node_0",
    "patient_086_node_4",
)


def errors(findings) -> list:
    return [finding for finding in findings if finding.severity == "error"]


def stages_of(path: Path) -> dict[str, str]:
    with path.open(newline="") as handle:
        rows = csv.DictReader(handle)
        return {r["patient"][:-4]: r["stage"] for r in rows if r["patient"].endswith(".zip")}


@pytest.mark.parametrize(
    ("file", "version", "counts"),
    [
        ("stage_labels_a.csv", "a", "323/35/57/85"),
        ("stage_labels_b.csv", "b", "313/35/64/88"),
        ("node_labels_c.csv", "c", "318/36/59/87"),
    ],
)
def test_the_versions_in_circulation_are_told_apart(file, version, counts):
    labels = read_labels(LABELS / file)
    assert (labels.version, labels.counts) == (version, counts)


def test_a_version_is_known_by_its_content_not_its_bytes(tmp_path):
    text = (LABELS / "stage_labels_b.csv").read_text()
    header, *rows = text.splitlines()
    other = tmp_path / "anything.csv"
    other.write_text("﻿" + "\r\n".join([header, *reversed(rows)]))
    assert read_labels(other).version == "b"
    other.write_text(text.replace("patient_000_node_1.tif,negative", "patient_000_node_1.tif,itc"))
    assert read_labels(other).version is None


def test_labels_that_call_annotated_nodes_negative_are_contradicted():
    (error,) = errors(check_labels(read_labels(LABELS / "stage_labels_a.csv")))
    assert error.rule == "contradicted-labels"
    assert error.ids == CALLED_NEGATIVE
    assert len(ANNOTATED) == len(set(ANNOTATED)) == 50


@pytest.mark.parametrize("file", ["stage_labels_b.csv", "node_labels_c.csv"])
def test_sound_labels_have_no_errors(file):
    assert errors(check_labels(read_labels(LABELS / file))) == []


@pytest.mark.parametrize("file", ["stage_labels_a.csv", "stage_labels_b.csv"])
def test_the_rule_gives_the_published_stage_of_all_hundred_patients(file):
    published = stages_of(LABELS / file)
    by_rule = staged(read_labels(LABELS / file).nodes, {})
    assert len(published) == 100
    assert by_rule == published


def test_the_rule_is_that_of_the_challenge_for_every_five_nodes():
    for nodes in itertools.product(NODE_CLASSES, repeat=5):
        micro, macro, itc = (nodes.count(name) for name in ("micro", "macro", "itc"))
        if macro and micro + macro > 3:
            wanted = "pN2"
        elif macro:
            wanted = "pN1"
        else:
            wanted = "pN1mi" if micro else "pN0(i+)" if itc else "pN0"
        assert pn_stage(nodes) == wanted


def test_a_stage_of_no_nodes_or_unknown_ones_is_refused():
    for nodes in ([], ["negative", "tumour"]):
        with pytest.raises(CohortError, match="no pN stage"):
            pn_stage(nodes)


def test_a_stage_that_contradicts_its_nodes_is_an_error_that_names_the_patient(tmp_path):
    path = tmp_path / "stage_labels.csv"
    text = (LABELS / "stage_labels_b.csv").read_text()
    path.write_text(text.replace("patient_000.zip,pN0\n", "patient_000.zip,pN2\n"))
    (error,) = errors(check_labels(read_labels(path)))
    assert "patient_000 pN2 is pN0 by its nodes" in error.message


def test_bad_rows_are_all_listed_with_their_lines(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(
        "patient,stage\npatient_000_node_0.tif,makro\npatent_1,pN0\npatient_001_node_0.tif,macro\n"
    )
    with pytest.raises(CohortError, match="line 2: patient_000_node_0 has 'makro'") as caught:
        read_labels(path)
    assert "line 3: 'patent_1' is no patient and no node" in str(caught.value)
    assert "did you mean 'macro'" in str(caught.value)


def test_labels_of_two_classes_are_one_line(tmp_path):
    lines = "".join(f"patient_04,patient_047_node_{k},{k % 2}\n" for k in range(5))
    (tmp_path / "camelyon17.csv").write_text("case_id,slide_id,label\n" + lines)
    with pytest.raises(CohortError, match=r"labels 0 \(3\), 1 \(2\), none of negative") as told:
        read_labels(tmp_path / "camelyon17.csv")
    assert "\n" not in str(told.value)
    assert told.value.exit_code == 5


def test_another_table_is_no_label_file(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("id,value\n1,2\n")
    with pytest.raises(ConfigError, match="has the columns id, value"):
        read_labels(path)


# -- the table --------------------------------------------------------------------------------


def test_the_table_has_one_label_column_per_task(tmp_path):
    built = camelyon17.build(None, LABELS / "stage_labels_b.csv")
    write_built(built, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 500
    assert Counter(row["node4"] for row in rows) == {
        "negative": 313,
        "itc": 35,
        "micro": 64,
        "macro": 88,
    }
    assert Counter(row["met"] for row in rows) == {"negative": 348, "metastasis": 152}
    assert Counter(row["any"] for row in rows) == {"negative": 313, "tumour": 187}
    assert Counter(row["site"] for row in rows) == dict.fromkeys("01234", 100)
    patients = {row["patient_id"]: row["pn"] for row in rows}
    assert patients == stages_of(LABELS / "stage_labels_b.csv")


def test_contradicted_labels_are_refused_unless_accepted_and_then_named(tmp_path):
    path = LABELS / "stage_labels_a.csv"
    with pytest.raises(CohortError, match="patient_086_node_4") as caught:
        camelyon17.build(None, path)
    assert caught.value.exit_code == 5
    write_built(camelyon17.build(None, path, accept=True), tmp_path / "a.csv")
    cohort = read_cohort(tmp_path / "a.csv", "node4", NODE_CLASSES)
    assert "version a" in cohort.labels_from
    for node in CALLED_NEGATIVE:
        assert node in cohort.labels_from


def test_the_table_says_that_its_patients_are_mixed_and_splits_by_patient_are_warned_of(tmp_path):
    built = camelyon17.build(None, LABELS / "stage_labels_b.csv")
    assert any("leave-one-site-out" in f.message for f in built.findings)
    write_built(built, tmp_path / "c.csv")
    cohort = read_cohort(tmp_path / "c.csv", "node4", NODE_CLASSES)
    told = {
        kind: [f.rule for f in make_splits(cohort, SplitSpec(kind=kind, test=test)).warnings()]
        for kind, test in (("kfold", ()), ("leave-one-site-out", ()), ("sites", ("3", "4")))
    }
    assert told["kfold"].count("mixed-patients") == 1
    assert told["leave-one-site-out"] == told["sites"] == []


def test_the_published_protocol_has_its_published_parts(tmp_path):
    """300 slides of centres 0-2 to learn from, 200 of centres 3 and 4 to test: 121/16/18/45."""
    write_built(camelyon17.build(None, LABELS / "node_labels_c.csv"), tmp_path / "c.csv")
    cohort = read_cohort(tmp_path / "c.csv", "node4", NODE_CLASSES)
    label = {row.slide_id: row.label for row in cohort.rows}
    for by, sites in (("patient", {"0", "1", "2"}), ("site", {"0"})):
        spec = SplitSpec(kind="sites", test=("3", "4"), val=ValidationSpec(by=by))
        (fold,) = make_splits(cohort, spec).folds
        tested = Counter(label[s] for s in fold.test)
        assert [tested[name] for name in NODE_CLASSES] == [121, 16, 18, 45]
        learnt = Counter(label[s] for s in (*fold.train, *fold.val))
        assert [learnt[name] for name in NODE_CLASSES] == [197, 20, 41, 42]
        assert {str(int(s[8:11]) // 20) for s in fold.val} == sites
        assert not {s[:11] for s in fold.train} & {s[:11] for s in fold.val}


def test_a_table_that_was_edited_since_says_so(tmp_path):
    path = tmp_path / "c.csv"
    write_built(camelyon17.build(None, LABELS / "stage_labels_b.csv"), path)
    assert "edited" not in read_cohort(path, "node4", NODE_CLASSES).labels_from
    path.write_text(
        path.read_text().replace("patient_000_node_0,patient_000,0,neg", "x,patient_000,0,neg")
    )
    assert read_cohort(path, "node4", NODE_CLASSES).labels_from.endswith("edited since")


def tree(root: Path, nodes: dict[str, str], centre: str | None = None) -> Path:
    for node in nodes:
        number = int(node[8:11]) // 20
        folder = root / "training" / f"center_{centre or number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{node}.tif").touch()
    lines = "".join(f"{node}.tif,{label}\n" for node, label in nodes.items())
    (root / "training" / "stage_labels.csv").write_text("patient,stage\n" + lines)
    return root


NODES = {f"patient_{p:03d}_node_{k}": "negative" for p in (0, 25) for k in range(5)}


def test_slides_and_lesions_are_found_below_the_root_and_paths_are_relative(tmp_path):
    root = tree(tmp_path / "c17", NODES | {"patient_000_node_3": "macro"})
    (root / "training" / "lesion_annotations").mkdir()
    (root / "training" / "lesion_annotations" / "patient_000_node_3.xml").touch()
    write_built(camelyon17.build(root, None), tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="") as handle:
        row = next(r for r in csv.DictReader(handle) if r["slide_id"] == "patient_000_node_3")
    assert row["path"] == "c17/training/center_0/patient_000_node_3.tif"
    assert row["lesions"] == "c17/training/lesion_annotations/patient_000_node_3.xml"
    assert row["pn"] == "pN1"


def test_a_drawn_lesion_on_a_negative_node_is_a_contradiction(tmp_path):
    root = tree(tmp_path, NODES)
    (root / "patient_025_node_1.xml").touch()
    with pytest.raises(CohortError, match="1 nodes with drawn lesions are called negative"):
        camelyon17.build(root, None)


def test_a_slide_in_another_centres_folder_is_an_error(tmp_path):
    with pytest.raises(CohortError, match="another centre's folder") as caught:
        camelyon17.build(tree(tmp_path, NODES, centre="1"), None)
    assert "patient_000_node_0" in str(caught.value)
    assert "patient_025" not in str(caught.value)


def test_missing_and_unlabelled_slides_are_named(tmp_path):
    root = tree(tmp_path, NODES)
    (root / "training" / "center_0" / "patient_000_node_2.tif").unlink()
    (root / "patient_123_node_0.tif").touch()
    found = {f.rule: f for f in camelyon17.build(root, None).findings}
    assert found["no-slide"].ids == ("patient_000_node_2",)
    assert found["no-label"].ids == ("patient_123_node_0",)


def test_a_slide_that_is_there_twice_is_refused(tmp_path):
    root = tree(tmp_path, NODES)
    (root / "images").mkdir()
    (root / "images" / "patient_000_node_2.tif").touch()
    with pytest.raises(CohortError, match="there twice"):
        camelyon17.build(root, None)


def test_an_overlay_leaves_out_slides_and_replaces_labels_and_stages(tmp_path):
    overlay = tmp_path / "plus.csv"
    overlay.write_text(
        "slide_id,keep,label,reason\npatient_000_node_0,1,macro,\npatient_025_node_1,0,,blurred\n"
        "patient_999_node_0,1,itc,\n"
    )
    built = camelyon17.build(tree(tmp_path / "c", NODES), None, overlay=overlay)
    rows = {row["slide_id"]: row for row in built.rows}
    assert rows["patient_000_node_0"]["node4"] == "macro"
    assert {rows[f"patient_000_node_{k}"]["pn"] for k in range(5)} == {"pN1"}
    assert "patient_025_node_1" not in rows
    assert rows["patient_025_node_0"]["pn"] == ""
    assert "plus.csv" in built.record.line
    (finding,) = [f for f in built.findings if f.rule == "overlay"]
    assert "leaves out 1 slides and changes 1 labels" in finding.message
    assert "1 of its slides are not here" in finding.message


def test_an_overlay_with_an_unknown_label_is_refused(tmp_path):
    overlay = tmp_path / "plus.csv"
    overlay.write_text("slide_id,keep,label\npatient_000_node_0,1,makro\n")
    with pytest.raises(CohortError, match="unknown label 'makro'"):
        camelyon17.build(tree(tmp_path / "c", NODES), None, overlay=overlay)


def test_neither_folder_nor_labels_is_an_error():
    with pytest.raises(ConfigError, match="--labels"):
        camelyon17.build(None, None)
