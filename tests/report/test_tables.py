"""Tables: numbers as printed, worst sites, footnotes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from wsi.evaluation import compare, evaluate
from wsi.report import PartRow, cells, tables
from wsi.specs import EvaluateSpec


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.714, False, "0.71"),
        (-0.004, True, "+0.00"),
        (-0.31, False, "−0.31"),
        (0.05, True, "+0.05"),
        (None, True, "–"),
    ],
)
def test_numbers_are_rounded_and_never_minus_zero(value, signed, text):
    assert cells.number(value, signed=signed) == text


def test_an_interval_stands_behind_its_value_or_not_at_all():
    assert cells.interval({"value": 0.714, "low": 0.577, "high": 0.82}) == "0.71 [0.58, 0.82]"
    assert cells.interval({"value": 0.714, "low": None, "high": None}) == "0.71"
    assert cells.interval({"value": None, "low": None, "high": None}) == "–"


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.00005, "<0.001"), (0.0461, "0.046"), (0.5, "0.50"), (1.0, "1.00"), (None, "–")],
)
def test_p_values_have_the_digits_they_bear(p, text):
    assert cells.p_value(p) == text


def test_the_worst_site_is_marked_where_sites_differ(toy):
    metrics = toy().metrics
    table = tables.by_group(metrics, "site")
    assert table is not None
    sites = metrics["by"]["site"]
    for column, name in enumerate(("macro_f1", "auc", "balanced_accuracy"), 3):
        marked = [row[0].text for row in table.rows if row[column].remark == "worst"]
        values = {site: group[name]["value"] for site, group in sites.items()}
        worst = [min(values, key=lambda site: values[site])]
        assert marked == (worst if len(set(values.values())) > 1 else [])


def test_all_sites_of_the_worst_value_are_marked(toy):
    metrics = copy.deepcopy(toy().metrics)
    for site, value in (("c0", 0.0), ("c1", 0.5), ("c2", 0.0)):
        metrics["by"]["site"][site]["macro_f1"]["value"] = value
    metrics["worst_site"]["macro_f1"] = {"site": "c0", "value": 0.0, "sites": ["c0", "c2"]}
    table = tables.by_group(metrics, "site")
    assert table is not None
    assert [row[0].text for row in table.rows if row[3].remark == "worst"] == ["c0", "c2"]
    assert not table.summary


def test_slides_without_a_site_are_counted_below_the_sites(toy):
    base = toy(of={"n": 40}).predictions
    blank = base.table["slide_id"].isin(["s000", "s001", "s002"])
    rows = base.table.assign(site=base.table["site"].mask(blank, ""))
    metrics = evaluate(replace(base, table=rows), EvaluateSpec(replicates=100))
    table = tables.by_group(metrics, "site")
    assert table is not None
    (last,) = table.summary
    assert [cell.text for cell in last[:2]] == ["no site", "3"]
    (number,) = last[0].notes
    assert table.notes[number - 1].startswith("3 slides have no site")
    assert len(last) == len(table.columns)


def test_groups_that_are_not_named_make_no_table(toy):
    assert tables.by_group(toy().metrics, "cohort") is None


def test_the_same_remark_has_one_number(toy):
    table = tables.headline(toy().metrics)
    assert len(set(table.notes)) == len(table.notes)
    expanded = [k for k, note in enumerate(table.notes, 1) if "18 patients" in note]
    assert len(expanded) == 1
    assert all(expanded[0] in row[1].notes for row in table.rows)
    used = {n for row in table.rows for cell in row for n in cell.notes}
    assert used == set(range(1, len(table.notes) + 1))


def test_seeds_get_their_spread_and_ensemble(toy):
    metrics = toy(seeds=2).metrics
    table = tables.headline(metrics)
    (auc,) = [row for row in table.rows if row[0].text.startswith("AUC")]
    assert table.columns[2:4] == ("SD over seeds", "Ensemble of seeds")
    assert auc[2].text == f"{metrics['auc']['seeds_sd']:.2f}"
    assert auc[3].text.startswith(f"{metrics['ensemble']['auc']['value']:.2f} [")
    seeds = tables.by_seed(metrics)
    assert seeds is not None
    assert [row[0].text for row in seeds.rows] == ["seed 0", "seed 1"]
    assert tables.by_seed(toy().metrics) is None


def test_folds_are_followed_by_mean_and_spread(toy):
    metrics = toy().metrics
    table = tables.by_fold(metrics)
    assert table is not None
    assert [row[0].text for row in table.rows] == ["fold 0", "fold 1", "fold 2"]
    values = [fold["nll"] for fold in metrics["folds"]["each"].values()]
    column = table.columns.index("negative log-likelihood")
    assert table.summary[0][column].text == f"{sum(values) / 3:.2f}"
    assert all(len(row) == len(table.columns) for row in (*table.rows, *table.summary))


def test_runs_stand_beside_each_other(toy):
    runs = [toy("ce"), toy("ncmi", skill=2.0)]
    table = tables.side_by_side(runs)
    assert table.columns == ("Metric", "ce", "ncmi")
    (macro,) = [row for row in table.rows if row[0].text == "macro-F1"]
    for cell, run in zip(macro[1:], runs, strict=True):
        assert cell.text.startswith(f"{run.metrics['macro_f1']['value']:.2f} [")
    assert [cell.text for cell in table.rows[-1]] == ["patients", "18", "18"]


def test_differences_name_both_runs_and_both_p_values(toy, quick):
    runs = [toy("ce"), toy("ncmi", skill=2.0)]
    compared = compare([(run.name, run.predictions) for run in runs], spec=quick)
    ((names, difference, p, holm),) = tables.differences(compared).rows
    (found,) = compared["differences"]
    assert names.text == "ncmi − ce"
    assert difference.sort == found["value"]
    assert (p.sort, holm.sort) == (found["p"], found["p_holm"])


def test_facts_that_differ_are_marked(toy):
    table = tables.facts([toy("ce"), toy("ncmi")])
    assert {row[0].text: row[0].remark for row in table.rows} == {
        "encoder": "",
        "objective": "differs",
    }


def test_parts_count_the_classes_in_their_order():
    table = tables.parts([PartRow(1, "val", 6, 3, {"b": 4, "a": 2})], ("a", "b", "c"))
    assert [cell.text for cell in table.rows[0]] == ["1", "val", "6", "3", "2", "4", "0"]


def test_the_information_table_tells_values_and_what_they_are_of(toy):
    run = toy(seeds=2)
    found = run.metrics["information"]
    table = tables.information(run.metrics)
    rows = {row[0].text: row[1:] for row in table.rows}
    mi = rows["information on the label, I(X;Y)"]
    assert (mi[0].sort, mi[1].sort) == (found["mi"]["value"], found["mi"]["seeds_sd"])
    assert any("unknown training frequencies" in table.notes[k - 1] for k in mi[0].notes)
    for key, title in (("ncmi", "classes by frequency"), ("ncmi_balanced", "classes equal")):
        cell = rows[f"NCMI, {title}"][0]
        assert cell.sort == found[key]["ncmi"]
        assert any("not comparable" in table.notes[k - 1] for k in cell.notes)
    assert "information before re-targeting the prior" not in rows


def test_metrics_from_before_information_have_no_such_table(toy):
    metrics = {k: v for k, v in toy().metrics.items() if k != "information"}
    assert tables.information(metrics) is None
    assert "CMI" not in tables.by_class(metrics).columns
