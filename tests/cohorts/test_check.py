from __future__ import annotations

import pytest

from wsi.cohorts import check_cohort
from wsi.errors import ConfigError


@pytest.fixture
def findings(tmp_path):
    def check(text: str, **options) -> dict[str, list]:
        path = tmp_path / "t.csv"
        path.write_text(text)
        found: dict[str, list] = {}
        for finding in check_cohort(path, **options):
            found.setdefault(finding.rule, []).append(finding)
        return found

    return check


def rows(n: int, per_patient: int = 2) -> str:
    lines = [f"s{i},p{i // per_patient},{'ab'[i % 2]},c{i % 3}" for i in range(n)]
    return "slide_id,patient_id,label,site\n" + "\n".join(lines) + "\n"


def test_a_sound_cohort_has_no_findings(findings):
    assert findings(rows(60), classes=["a", "b"]) == {}


def test_as_many_patients_as_slides_is_a_warning(findings):
    found = findings(rows(60, per_patient=1))
    assert [f.severity for f in found["patients-equal-slides"]] == ["warning"]


def test_one_tcga_barcode_under_several_patients_is_a_warning(findings):
    text = (
        "slide_id,patient_id\nTCGA-AA-0001-01Z-00-DX1.x,1\nTCGA-AA-0001-01Z-00-DX2.y,2\n"
        "TCGA-AA-0002-01Z-00-DX1.z,3\nTCGA-AA-0002-01Z-00-DX2.w,3\n"
    )
    (found,) = findings(text)["tcga-barcode"]
    assert found.severity == "warning"
    assert found.ids == ("TCGA-AA-0001-01Z-00-DX1.x", "TCGA-AA-0001-01Z-00-DX2.y")
    assert "TCGA-AA-0001 as 1 and 2" in found.message


def test_errors_are_found_with_their_lines_and_come_first(findings):
    found = findings("slide_id,patient_id,label\ns1,p1,a\ns1,p1,b\ns2,,a\n", classes=["a", "b"])
    assert [(f.severity, f.line, f.ids) for f in found["conflict"]] == [("error", 3, ("s1",))]
    assert [f.line for f in found["missing-patient"]] == [4]
    severities = [f.severity for group in found.values() for f in group]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


def test_official_leakage_is_an_error_and_a_train_val_flaw_a_warning(findings):
    text = "slide_id,patient_id,split\na,1,train\nb,1,val\nc,2,train\nd,2,test\n"
    found = findings(text)
    assert [(f.severity, f.ids) for f in found["official-flaw"]] == [("warning", ("1",))]
    assert [(f.severity, f.ids) for f in found["leakage"]] == [("error", ("2",))]


def test_small_classes_are_counted_for_the_cohort_and_each_site(findings):
    text = rows(60) + "t1,q1,rare,c0\n"
    messages = [f.message for f in findings(text)["small-class"]]
    assert messages == [
        "the cohort has fewer than 5 slides of: rare 1",
        "site c0 has fewer than 5 slides of: rare 1",
        "site c1 has fewer than 5 slides of: rare 0",
        "site c2 has fewer than 5 slides of: rare 0",
    ]


def test_partly_filled_columns_are_told(findings):
    found = findings("slide_id,patient_id,site\na,1,x\nb,1,\n")
    assert found["no-site"][0].ids == ("b",)
    assert "no-label" not in found


def test_a_missing_column_is_the_users_error(findings):
    with pytest.raises(ConfigError, match="patient_id"):
        findings("slide_id\ns1\n")
