"""What validation settled, on the page and in the card: the figures of metrics.json."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.report.conftest import predictions_of
from wsi.evaluation import METRICS, evaluate
from wsi.evaluation.validated import Calibration, Thresholds, fit_name
from wsi.report.markdown import escaped
from wsi.report.model_card import model_card
from wsi.report.page import render

SEVEN = tuple("abcdefg")
RULES = {
    "youden": "largest sensitivity + specificity",
    "sensitivity_95": "sensitivity of 0.95 or more",
}
BARE = {"histories": {}, "pictures": 0}


def settled(classes, t, cut):
    """Return what a fit settled; it has no threshold for the last class."""
    found = {name: Thresholds(cut, cut / 2, 30, 60) for name in classes}
    found[classes[-1]] = Thresholds(reason=f"no validation row of {classes[-1]}")
    return Calibration(t, found, 90, "" if t else "too few rows")


def metrics_of(classes, quick, ts=(0.5, 1.25, 19.999)):
    calibration = {
        fit_name(fold, 0): settled(classes, t, 0.2 + 0.1 * fold) for fold, t in enumerate(ts)
    }
    return evaluate(replace(predictions_of(classes), calibration=calibration), quick)


@pytest.fixture(scope="module", params=[("a", "b"), SEVEN], ids=["two", "seven"])
def run(request, toy, quick):
    classes = request.param
    return toy("ce", classes, metrics=metrics_of(classes, quick), **BARE)


def told(score):
    value = "–" if score["value"] is None else f"{score['value']:.2f}"
    return value if score["low"] is None else f"{value} [{score['low']:.2f}, {score['high']:.2f}]"


@pytest.fixture(scope="module")
def text(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsi.report.run_figures.by_class", lambda index, run: [])  # they take long
        return render("t", [run])


def cells_of(text, parsed):
    """Return the rows of the page without the numbers of their footnotes."""
    return parsed(re.sub(r"<sup>[^<]*</sup>", "", text)).rows


def test_calibration_stands_before_and_after_the_temperatures(run, text, parsed):
    rows = cells_of(text, parsed)
    before, after = run.metrics, run.metrics["calibrated"]
    for name in ("nll", "brier", "ece"):
        (row,) = [r for r in rows if r[0].startswith(METRICS[name].title) and len(r) == 3]
        assert row[1:] == [told(before[name]), told(after[name])]
    assert after["nll"]["value"] != before["nll"]["value"]
    assert "At the temperatures of validation (0.50 to 20.00), with 95% intervals" in text
    assert f"<li>{after['note'].split('; ')[0]}</li>" in text
    assert after["note"].startswith("1 of 3 temperatures are at an end")


def test_every_class_and_rule_has_its_rates_and_counts(run, text, parsed):
    rows = cells_of(text, parsed)
    points = run.metrics["operating_points"]
    *most, last = run.metrics["classes"]
    for name in (*most, last):
        for rule, words in RULES.items():
            point = points[name][rule]
            found, spared = point["sensitivity"], point["specificity"]
            span = {"youden": "0.20 to 0.40", "sensitivity_95": "0.10 to 0.20"}[rule]
            expected = [name, words, "–" if name == last else span, told(found), told(spared)]
            assert [*expected, str(found["n"]), str(spared["n"])] in rows
    assert points[most[0]]["youden"]["sensitivity"]["value"] is not None
    assert points[last]["youden"]["sensitivity"]["value"] is None
    reason = f"no threshold in 3 of 3 fits (no validation row of {last}): fold0-seed0"
    assert text.count(reason) == 1  # one footnote for both rules


def test_a_card_has_the_operating_points_of_few_classes(run):
    text = re.sub(r" \([\d, ]+\) \|", " |", model_card(run))  # without numbers of footnotes
    a = run.metrics["operating_points"]["a"]["youden"]
    row = [escaped(told(a[side])) for side in ("sensitivity", "specificity")]
    few = len(run.metrics["classes"]) == 2
    assert (f"{RULES['youden']} | 0.20 to 0.40 | {row[0]} | {row[1]} |" in text) == few
    assert ("thresholds of validation: see `report.html`" in text) != few
    assert escaped(told(run.metrics["calibrated"]["nll"])) in text


def test_a_fit_without_temperature_leaves_one_line_that_says_why(toy, quick):
    metrics = metrics_of(("a", "b"), quick, ts=(0.5, 1.25, None))
    text = render("t", [toy("ce", ("a", "b"), metrics=metrics, **BARE)])
    assert metrics["calibrated"]["nll"] is None
    assert (
        f"No figures at temperatures of validation: {metrics['calibrated']['reason']}.</p>" in text
    )
    assert "At the temperatures of validation" not in text
    assert "Operating points chosen on validation" in text


def test_metrics_from_before_it_still_make_a_page_and_a_card(toy, quick):
    metrics = metrics_of(("a", "b"), quick)
    old = {k: v for k, v in metrics.items() if k not in ("calibrated", "operating_points")}
    run = toy("ce", ("a", "b"), metrics=old, **BARE)
    for text in (render("t", [run]), model_card(run)):
        assert "of validation" not in text
        assert "on validation" not in text
