"""The page and picture of a sweep."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from tests.report.conftest import Page
from wsi.report.sweep import draw_sweep, render_sweep


def trial(number: int, rate: float, gated: bool, value: float | None, reason: str = "") -> Any:
    return {
        "trial": number,
        "state": "failed" if reason else "complete",
        "values": {"fit.lr": rate, "objective": "ce" if gated else "ncmi (temperature=<0.3>)"},
        "validation": value,
        "sd": None if value is None else 0.01,
        "folds": [],
        "nll": value,
        "fits": 3,
        "seconds": 1.5,
        "reason": reason or None,
    }


@pytest.fixture
def result() -> Any:
    trials = [
        trial(0, 1e-4, True, 0.71),
        trial(1, 1e-2, False, 0.83),
        trial(2, 1e-1, True, None, "fold0-seed0: the loss is <not> finite"),
        trial(3, 1e-3, True, 0.79),
    ]
    score = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 40}
    best = {key: trials[1][key] for key in ("trial", "values", "validation", "sd", "nll")}
    return {
        "schema": "wsi-sweep/1",
        "cohort": "made & up",
        "classes": ["a", "b"],
        "slides": 40,
        "patients": 20,
        "label": "label",
        "aggregator": {"name": "abmil", "hidden": 8},
        "objective": {"name": "ce"},
        "monitor": "auc",
        "higher_is_better": True,
        "sampler": "tpe",
        "seed": 0,
        "prune": False,
        "space": {
            "fit.lr": {"low": 1e-4, "high": 1e-1, "log": True},
            "objective": ["ce", "ncmi (temperature=<0.3>)"],
        },
        "folds": 3,
        "seeds": [0],
        "epochs": 5,
        "splits_sha256": "0" * 64,
        "fits": 12,
        "seconds": 6.0,
        "trials": trials,
        "best": best | {"run": "trial-0001", "edges": {"fit.lr": "highest"}},
        "test": {"macro_f1": score, "auc": score, "level": 0.9},
        "warnings": ["1 trial failed"],
        "notes": ["one seed"],
    }


def test_the_page_names_the_choice_its_test_figures_and_every_trial(result: Any) -> None:
    page = Page(render_sweep(result, draw_sweep(result)))
    text = " ".join(" ".join(page.words).split())
    assert "trial-0001 has the best validation AUC, 0.830: fit.lr=0.01" in text
    assert ["macro-F1", "0.600 [0.500, 0.700]", "40"] in page.rows
    objective = "ncmi (temperature=<0.3>)"
    assert ["1", "complete", "0.01", objective, "0.8300", "0.0100", "3", "1.5", ""] in page.rows
    why = "fold0-seed0: the loss is <not> finite"
    assert ["2", "failed", "0.1", "ce", "–", "–", "3", "1.5", why] in page.rows
    assert "chosen" in page.words
    assert "highest end" in page.words
    assert "intervals (90%)" in text


def test_the_page_loads_nothing_from_elsewhere(result: Any) -> None:
    page = Page(render_sweep(result, draw_sweep(result)))
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))


def test_the_picture_has_a_panel_per_setting_and_stands_alone(result: Any) -> None:
    root = ElementTree.fromstring(draw_sweep(result))
    words = {"".join(e.itertext()).strip() for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"fit.lr", "objective", "trial, best so far as a line", "validation AUC"} <= words
    assert {"best on validation", "failed"} <= words


def test_numbers_to_choose_from_stand_exactly_over_their_ticks(result: Any) -> None:
    svg = "{http://www.w3.org/2000/svg}"
    result["space"]["aggregator.hidden"] = [64, 128]
    for row in result["trials"]:
        row["values"]["aggregator.hidden"] = 64 if row["trial"] % 2 else 128
    root = ElementTree.fromstring(draw_sweep(result))
    places = {}
    for key in ("aggregator.hidden", "objective"):
        group = next(e for e in root.iter(f"{svg}g") if e.get("id") == f"sweep-trials-{key}")
        places[key] = {round(float(u.attrib["x"]), 2) for u in group.iter(f"{svg}use")}
    assert len(places["aggregator.hidden"]) == 2  # trials 1 and 3 over 64, trial 0 over 128
    assert len(places["objective"]) == 3  # words, of which trials step aside


def test_every_complete_trial_is_a_point_of_every_panel(result: Any) -> None:
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(draw_sweep(result))
    for key in ("fit.lr", "objective"):
        group = next(e for e in root.iter(f"{svg}g") if e.get("id") == f"sweep-trials-{key}")
        assert len(list(group.iter(f"{svg}use"))) == 3
