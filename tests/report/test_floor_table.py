"""Floors on the page: what their figures bear is said below them."""

from __future__ import annotations

from wsi.report.floor_table import floor_table, shown_floors, site_sentence

DIFFERENCE = {"value": 0.2, "low": 0.1, "high": 0.3}
DEGENERATE = "degenerate interval: nothing varies"


def score(value: float, note: str = "") -> dict:
    return {"value": value, "low": value, "high": value, "note": note} | {
        "run_minus_floor": DIFFERENCE
    }


def floors(site_auc: float) -> dict:
    return {
        "majority": {"macro_f1": score(0.2), "auc": score(0.5, DEGENERATE), "note": "told"},
        "site": {"macro_f1": score(0.3), "auc": score(site_auc, DEGENERATE), "note": ""},
    }


def remarks(table, row: int, column: int) -> list[str]:
    return [table.notes[k - 1] for k in table.rows[row][column].notes]


def test_notes_of_scores_are_footnotes_of_their_cells() -> None:
    table = floor_table(floors(0.6), 0.95)
    assert remarks(table, 0, 0) == ["told"]
    assert remarks(table, 0, 1) == []
    assert remarks(table, 0, 3) == [DEGENERATE]
    assert remarks(table, 1, 3) == [DEGENERATE]
    assert len(table.notes) == 2


def test_a_site_floor_below_chance_is_explained() -> None:
    table = floor_table(floors(0.2), 0.95)
    (_, why) = remarks(table, 1, 3)
    assert "what small folds do" in why
    assert all("small folds" not in note for note in floor_table(floors(0.5), 0.95).notes)


def test_the_sentence_on_sites_says_what_its_intervals_bear() -> None:
    found = {
        "balanced_accuracy": score(1.0, DEGENERATE) | {"chance": 0.5},
        "auc": score(1.0, f"{DEGENERATE}; interval expanded") | {"chance": 0.5},
        "n_sites": 2,
        "note": "",
    }
    told = site_sentence({"site_from_features": found})
    assert f"Of these figures: {DEGENERATE}; interval expanded." in told
    assert told.count(DEGENERATE) == 1
    without = found | {"auc": score(1.0) | {"chance": 0.5}}
    without["balanced_accuracy"] = without["auc"]
    assert "Of these figures" not in site_sentence({"site_from_features": without})
    metrics = {"floors": floors(0.6), "floors_note": "x", "level": 0.95}
    shown = shown_floors(metrics | {"site_from_features": found})
    assert shown is not None
    assert shown.site == told
