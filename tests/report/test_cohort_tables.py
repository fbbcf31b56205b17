from __future__ import annotations

import csv
import io
import json

import pytest

from wsi.report.cohort_tables import csv_text, latex, markdown


def score(value: float | None) -> dict:
    half = None if value is None else 0.125
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "note": "", "seeds_sd": 0.01}


WORST = {
    "site": "c & d",
    "value": 0.5,
    "sites": ["c & d", "e"],
    "n": 12,
    "n_patients": 1,
}


def row(cohort: str, f1: float, auc: float | None) -> dict:
    return {
        "cohort": cohort,
        "source": "run_1",
        "labels_from": "version b" if cohort == "in" else None,
        "n": 40,
        "n_patients": 20,
        "macro_f1": score(f1),
        "auc": score(auc),
        "worst_site": {"macro_f1": WORST} if cohort == "in" else {},
    }


@pytest.fixture
def across() -> dict:
    return {
        "scored": "slide",
        "level": 0.95,
        "cohorts": [row("in", 0.75, 0.875), row("out", 0.5, None)],
        "mean_over_cohorts": {
            "macro_f1": {"value": 0.625, "sd": 0.1, "count": 2},
            "auc": {"value": 0.875, "sd": None, "count": 1},
        },
        "notes": ["the mean has no interval", "50% of x_1 <b>\nare | in both"],
    }


def test_markdown_has_a_row_per_cohort_and_the_mean_named_as_such(across) -> None:
    lines = [line for line in markdown(across).splitlines() if line.startswith("|")]
    assert "0.750 [0.625, 0.875] | 0.875 [0.750, 1.000] | c & d 0.500" in lines[2]
    assert "| c & d 0.500 (12 slides, 1 patient; the same at e) | version b" in lines[2]
    assert lines[3].startswith("| out | run_1 | 40 | 20 | 0.500 [0.375, 0.625] | – | – | as given")
    assert lines[4].startswith("| mean over 2 cohorts |")
    assert "| 0.625 | 0.875 (of 1) |" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


def test_a_worst_site_of_whole_patients_counts_these_once(across) -> None:
    across["scored"] = "patient"
    across["cohorts"][0]["worst_site"]["macro_f1"] = WORST | {"n": 4, "n_patients": 4}
    assert "| c & d 0.500 (4 patients; the same at e) |" in markdown(across)


def test_notes_stand_under_the_table_as_a_list_and_as_comments(across) -> None:
    listed = [line for line in markdown(across).splitlines() if line.startswith("- ")]
    assert listed == [
        "- the mean has no interval",
        r"- 50% of x\_1 &lt;b&gt; are &#124; in both",
    ]
    lines = latex(across).splitlines()
    assert lines[-2:] == [
        "% note: the mean has no interval",
        r"% note: 50\% of x\_1 $<$b$>$ are | in both",
    ]
    assert all(line.startswith("%") for line in lines[lines.index(r"\end{tabular}") + 1 :])


def test_one_cohort_has_no_mean(across) -> None:
    across["cohorts"].pop()
    across["notes"] = []
    assert "mean" not in markdown(across)


def test_latex_escapes_and_has_as_many_cells_in_every_row(across) -> None:
    text = latex(across)
    assert r"run\_1" in text
    assert r"c \& d 0.500" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {7}


def test_the_csv_holds_unrounded_numbers(across) -> None:
    across["cohorts"][0]["macro_f1"]["value"] = 1 / 3
    rows = list(csv.DictReader(io.StringIO(csv_text(json.loads(json.dumps(across))))))
    found = {(r["cohort"], r["metric"]): r for r in rows}
    assert float(found["in", "macro_f1"]["value"]) == 1 / 3
    assert found["in", "macro_f1"]["worst_site"] == "c & d"
    assert found["in", "macro_f1"]["worst_site_n"] == "12"
    assert found["out", "auc"]["value"] == ""
    assert float(found["mean over 2 cohorts", "macro_f1"]["value"]) == 0.625
