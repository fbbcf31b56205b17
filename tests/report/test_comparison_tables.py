from __future__ import annotations

import csv
import io

import numpy as np
import pandas as pd
import pytest

from wsi.evaluation import Predictions, compare
from wsi.report.comparison_tables import csv_text, latex, markdown
from wsi.report.markdown import escaped
from wsi.specs import EvaluateSpec

SPEC = EvaluateSpec(replicates=200)


def predictions(gain: float, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    y = np.arange(60) % 2
    p = np.clip(rng.uniform(0, 1, 60) * 0.6 + gain * y, 0, 1)
    table = pd.DataFrame({"p_a": 1 - p, "p_b": p})
    table["slide_id"] = [f"s{i}" for i in range(60)]
    table["patient_id"] = [f"p{i // 2}" for i in range(60)]
    table["site"] = [("north", "south", "west")[i // 2 % 3] for i in range(60)]
    table["y_true"] = ["ab"[k] for k in y]
    return Predictions(("a", "b"), table)


RUNS = [("ce_1", predictions(0.2, 0)), ("50% & more|x", predictions(0.3, 1))]


@pytest.fixture(scope="module")
def comparison() -> dict:
    return compare(RUNS, "auc", SPEC)


def test_the_csv_holds_the_figures_of_the_comparison_unrounded(comparison):
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    (difference,) = comparison["differences"]
    row = next(r for r in rows if r["test"] == "paired bootstrap")
    assert float(row["value"]) == difference["value"]
    assert (float(row["low"]), float(row["high"])) == (difference["low"], difference["high"])
    delong = next(r for r in rows if r["test"] == "delong")
    assert float(delong["p"]) == difference["tests"]["delong"]["p"]
    assert [r["run"] for r in rows if not r["test"]] == ["ce_1", "50% & more|x"]


def test_markdown_has_as_many_cells_in_every_row_whatever_runs_are_called(comparison):
    lines = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(RUNS)
    assert {line.count("|") for line in lines} == {6}
    assert "60 slides of 30 patients" in markdown(comparison)


def test_notes_of_the_comparison_stand_under_its_tables(comparison):
    assert comparison["notes"]
    noted = comparison | {"notes": ["3% of a_b", "# two\nlines"]}
    assert markdown(noted).endswith("\n\n- 3% of a\\_b\n- \\# two lines\n")
    assert latex(noted).endswith("\n% note: 3\\% of a\\_b\n% note: \\# two lines\n")
    for note in comparison["notes"]:
        assert f"- {escaped(note)}" in markdown(comparison).splitlines()


def test_latex_escapes_what_latex_would_take_for_itself(comparison):
    text = latex(comparison)
    assert r"ce\_1 & " in text
    assert r"50\% \& more|x & " in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {4}


def test_differences_by_site_are_those_of_the_slides_of_that_site_alone(comparison):
    assert [group["site"] for group in comparison["by_site"]] == ["north", "south", "west"]
    for group in comparison["by_site"]:
        alone = [
            (name, Predictions(p.classes, p.table[p.table["site"] == group["site"]]))
            for name, p in RUNS
        ]
        wanted = compare(alone, "auc", SPEC)
        (mine,), (theirs,) = group["differences"], wanted["differences"]
        for key in ("value", "low", "high", "p"):
            assert mine[key] == pytest.approx(theirs[key])
        assert (group["n"], group["n_patients"]) == (wanted["n"], wanted["n_patients"])


def test_one_site_is_not_divided():
    one = [(name, Predictions(p.classes, p.table.assign(site="x"))) for name, p in RUNS]
    assert compare(one, "auc", SPEC)["by_site"] == []
