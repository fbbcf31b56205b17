"""The model card: the facts of the metrics, readable by hubs, and no id of a slide or patient."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from wsi.evaluation import METRICS
from wsi.report import PartRow
from wsi.report.cells import interval
from wsi.report.markdown import escaped
from wsi.report.model_card import model_card, without_ids, write_model_card

NASTY = ("a|b", "`c`\n# x", "$x$ <script> *y* [z](u)")


def ids_in(run):
    table = run.predictions.table
    return {*table["slide_id"], *table["patient_id"]}


def front_matter(text):
    _, yaml, _ = text.split("---\n", 2)
    return YAML(typ="safe").load(yaml)


def cells(text):
    """Return the cells of each line of a table, by its first."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [re.split(r" \| ", line.strip("| ")) for line in lines]
    return {row[0]: row for row in rows}


@pytest.fixture(scope="module")
def run(toy):
    return toy("ce", seeds=2, tags=("abmil", "ce", "texture-v1"))


def test_the_values_are_those_of_the_metrics(run):
    rows = cells(model_card(run))
    for name in ("macro_f1", "auc", "ece"):
        shown = rows[METRICS[name].title + ("" if name != "ece" else ", lower is better")][1]
        expected = interval(run.metrics[name]).replace("[", r"\[").replace("]", r"\]")
        assert shown.split(" (")[0] == expected
    for name, figures in run.metrics["per_class"].items():
        assert rows[name][1:6] == [
            str(figures["support"]),
            *(f"{figures[key]:.2f}" for key in ("precision", "recall", "f1", "auc")),
        ]
    worst = run.metrics["worst_site"]["macro_f1"]["site"]
    assert "**worst**" in rows[worst][3]
    lowest = escaped(interval(run.metrics["by"]["site"][worst]["macro_f1"]))
    assert f"Worst site: macro-F1 {lowest} at {worst}" in model_card(run)


def test_a_hub_reads_the_results(run):
    card = ModelCard(model_card(run))
    assert card.data.library_name == "wsi"
    assert {"abmil", "texture-v1", "multiple-instance-learning"} <= set(card.data.tags or [])
    assert card.data.license is None
    assert card.data.eval_results is not None
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values["macro-F1"] == run.metrics["macro_f1"]["value"]
    assert values[METRICS["auc"].title] == run.metrics["auc"]["value"]
    assert {result.metric_type for result in card.data.eval_results} >= {"f1", "roc_auc"}


def test_undefined_figures_are_left_out_of_the_front_matter(toy):
    run = toy(histories={})
    undefined = {**run.metrics["auc"], "value": None, "low": None, "high": None}
    content = front_matter(model_card(toy(metrics={**run.metrics, "auc": undefined})))
    (result,) = content["model-index"][0]["results"]
    assert "roc_auc" not in {metric["type"] for metric in result["metrics"]}
    assert "roc_auc" not in content["metrics"]


def test_hostile_names_stay_in_their_cells_and_on_their_line(toy):
    run = toy("x\n- y", NASTY, histories={}, warnings=["say `rm`\n# heading"])
    text = model_card(run)
    assert front_matter(text)["model-index"][0]["name"] == "x\n- y"
    body = text.split("---\n", 2)[2]
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert [h for h in headings if h.startswith("# ")] == ["# x - y"]
    assert "## Limitations" in headings
    assert len(headings) == 6
    for table in re.findall(r"(?:^\|.*\n)+", body, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert "<script>" not in body
    assert r"\$x\$ &lt;script&gt; \*y\* \[z\](u)" in body
    assert "- say \\`rm\\` \\# heading" in body


def test_no_slide_or_patient_is_named(toy):
    run = toy(histories={})
    missing = {"evaluable": 36, "total": 37, "fraction": 36 / 37}
    missing |= {"not_evaluable": {"p003_x": "no bag of p003_x"}}
    notes = ["2 slides have no site: s001, s002", "p017 is in train and val"]
    ids = frozenset(ids_in(run) | {"p003_x", "p999"})
    text = model_card(
        toy(
            histories={},
            metrics={**run.metrics, "coverage": missing, "notes": notes},
            warnings=["patient p999 is in train and val"],
            ids=ids,
        )
    )
    assert not [name for name in ids if re.search(rf"(?<!\w){name}(?!\w)", text)]
    assert "- 2 slides have no site: …" in text
    assert "- patient … is in train and val" in text
    assert "1 slide could not be evaluated" in text
    assert "- not evaluated: no bag of …" in text


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("patient 67 is in train and val", "patient … is in train and val"),
        ("patients 67, 68 and 12 are", "patients …, 68 and … are"),
        ("3 slides have no site: 67, 12, 67", "3 slides have no site: …"),
        ("67 slides, 12 of 200 replicates", "67 slides, 12 of 200 replicates"),
        ("a site of a: few slides", "a site of a: few slides"),
    ],
)
def test_ids_that_are_numbers_too_are_left_out_where_they_are_ids(said, left):
    assert without_ids(said, frozenset({"67", "12", "a"})) == left


def test_parts_and_sites_of_the_training_data_are_listed(toy):
    classes = ("normal", "low", "high")
    parts = [
        PartRow(0, "train", 24, 12, dict.fromkeys(classes, 8), {"c0": 20, "c1": 4}),
        PartRow(0, "test", 12, 6, None, {"c1": 12}),
    ]
    text = model_card(toy(histories={}, parts=parts))
    assert "| 0 | train | 24 | 12 | 8 | 8 | 8 |" in text
    assert "| 0 | test | 12 | 6 | – (1) | – (1) | – (1) |" in text
    assert "| 0 | train | 20 | 4 |" in text
    assert "labels unknown: the cohort table is gone" in text


def test_floors_are_shown_where_they_were_scored(toy):
    run = toy(histories={})
    score = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 36, "n_patients": 18, "note": ""}
    floors = {"majority": {"macro_f1": score, "auc": score, "note": "every slide is normal"}}
    noted = score | {"note": "degenerate interval"}
    floors["site"] = {"macro_f1": score, "auc": noted, "note": ""}
    site = {"auc": None, "balanced_accuracy": None, "note": "fewer than two sites"}
    told = {"floors": floors, "floors_note": "above every floor in AUC", "site_from_features": site}
    text = model_card(toy(histories={}, metrics={**run.metrics, **told}))
    assert r"| majority (1) | 0.25 \[0.20, 0.30\] | 0.25 \[0.20, 0.30\] |" in text
    assert r"| site | 0.25 \[0.20, 0.30\] | 0.25 \[0.20, 0.30\] (2, 3) |" in text
    assert "2. degenerate interval" in text
    assert "3. an AUC of the site floor below 0.5" in text
    assert "How well mean features tell the site is unknown: fewer than two sites." in text
    assert "- floors: above every floor in AUC" in text
    assert "majority" not in model_card(run)
    assert "mean features" not in model_card(run)


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    write_model_card(tmp_path / "model-card.md", run)
    assert (tmp_path / "model-card.md").read_bytes() == model_card(run).encode()
