"""Curves and the reliability diagram: what is drawn lies where the numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from tests.report.test_figures import points, texts
from wsi.evaluation.curves import GRID, Curve
from wsi.report import curve_figures
from wsi.report.run_figures import beside_each_other, by_class

CURVE = Curve(
    x=np.array([0, 0, 0.25, 0.25, 1]),
    y=np.array([0, 0.5, 0.5, 1, 1]),
    low=GRID * 0.8,
    high=np.ones(101),
    area=0.875,
    share=0.3,
    defined=1,
)


def on_axes(root: ET.Element, gid: str, frame: str) -> np.ndarray:
    """Return the vertices of an element where a line from (0, 0) to (1, 1) gives the scale."""
    corners = points(root, f"u-{frame}")
    return (points(root, f"u-{gid}") - corners[0]) / (corners[-1] - corners[0])


def test_the_curve_and_its_band_are_drawn_to_scale():
    root = ET.fromstring(curve_figures.roc_panel(CURVE, "itc", "u"))
    np.testing.assert_allclose(
        on_axes(root, "curve", "chance"), np.stack([CURVE.x, CURVE.y], axis=1), atol=1e-4
    )
    # The band is one outline: its lowest corners are the lower bounds.
    band = on_axes(root, "band", "chance")
    at = {round(x, 2): band[np.isclose(band[:, 0], x, atol=1e-3), 1].min() for x in (0.5, 1)}
    assert at == pytest.approx({0.5: 0.4, 1: 0.8}, abs=1e-3)


def test_the_area_stands_over_the_panel_and_in_its_name():
    svg = curve_figures.precision_recall_panel(CURVE, "itc", "u")
    assert {"itc", "AP 0.88", "recall", "precision"} <= set(texts(svg))
    assert 'aria-label="Precision-recall curve of itc against the rest: AP 0.88"' in svg


def test_a_panel_without_a_curve_says_that_it_is_undefined():
    svg = curve_figures.roc_panel(None, "itc", "u")
    assert any("undefined" in text for text in texts(svg))
    assert "u-curve" not in svg


def test_a_curve_without_a_band_is_drawn_alone():
    unbounded = Curve(**(vars(CURVE) | {"low": np.full(101, np.nan), "high": np.ones(101)}))
    svg = curve_figures.roc_panel(unbounded, "itc", "u")
    assert "u-band" not in svg
    assert "u-curve" in svg


def test_scores_without_bins_get_those_of_their_predictions(toy):
    run = toy(seeds=2, histories={})
    bare = replace(run, metrics={k: v for k, v in run.metrics.items() if k != "reliability"})
    assert beside_each_other(0, run)[1] == beside_each_other(0, bare)[1]
    told = re.findall(r"([\d.]+) at 0\.", beside_each_other(0, run)[1].svg)
    assert sum(map(float, told)) == 2 * run.metrics["n"]


def test_the_reliability_diagram_counts_slides_and_is_hollow_without_an_interval():
    rows = ((0.4, 0.5, 2, 0.45, 0.5, 0.1, 0.9), (0.9, 1.0, 1, 0.95, 1.0, None, None))
    keys = ("low", "high", "n", "confidence", "accuracy", "accuracy_low", "accuracy_high")
    bins = [dict(zip(keys, row, strict=True)) for row in rows]
    svg = curve_figures.reliability(bins, "0.07", "slides", "u")
    assert {"ECE 0.07", "2", "1", "slides"} <= set(texts(svg))
    assert "2 at 0.45: 0.50 right" in svg
    root = ET.fromstring(svg)
    marks = [g for k in (0, 1) for g in root.iter() if g.get("id") == f"u-bin-{k}"]
    filled = ["#0072b2" in ET.tostring(g, "unicode").partition("fill:")[2][:9] for g in marks]
    assert filled == [True, False]


def test_captions_of_curves_over_folds_say_that_the_table_pools_them(toy):
    for panels in by_class(0, toy()):
        assert "The table by class pools the folds" in panels.caption
    of_one = toy()
    table = of_one.predictions.table.assign(fold=0)
    alone = replace(of_one, predictions=replace(of_one.predictions, table=table))
    for panels in by_class(0, alone):
        assert "pools the folds" not in panels.caption
