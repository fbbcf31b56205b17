"""Which slides are shown, and what is said of those without a picture."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from wsi.evaluation import Predictions
from wsi.report import Example
from wsi.report.page import render
from wsi.report.telling import MOST, telling

CLASSES = ("a", "b", "c")


def predictions_of(rows, seed_rows=None):
    """Return predictions of (slide, true, p) by seed; one patient per slide."""
    made = []
    for seed, of in enumerate([rows, *(seed_rows or [])]):
        for slide, true, p in of:
            row = {"slide_id": slide, "patient_id": slide, "y_true": true, "seed": seed}
            made.append(row | {f"p_{c}": v for c, v in zip(CLASSES, p, strict=True)})
    return Predictions(CLASSES, pd.DataFrame(made))


def random_rows(n=60, draw=0, sharpness=4.0):
    rng = np.random.default_rng(draw)
    p = rng.dirichlet(np.full(3, 1 / sharpness), n)
    return [(f"s{k:02}", CLASSES[rng.integers(3)], p[k]) for k in range(n)]


@pytest.mark.parametrize("draw", range(4))
def test_wrong_slides_are_the_surest_of_each_class_by_turns(draw):
    rows = random_rows(draw=draw)
    wrong = [(s, t, p) for s, t, p in rows if CLASSES[np.argmax(p)] != t]
    expected = set()
    for name in CLASSES:
        of_class = sorted((r for r in wrong if r[1] == name), key=lambda r: -max(r[2]))
        expected |= {r[0] for r in of_class[: MOST["wrong"] // 3]}
    shown = [s for s in telling(predictions_of(rows)) if s.kind == "wrong"]
    assert {s.slide_id for s in shown} == expected
    # One of every class comes before the second of any.
    assert {s.y_true for s in shown[:3]} == set(CLASSES)


@pytest.mark.parametrize("draw", range(4))
def test_uncertain_slides_have_the_largest_entropy_of_the_others(draw):
    rows = random_rows(draw=draw)
    found = telling(predictions_of(rows))
    wrong = {s.slide_id for s in found if s.kind == "wrong"}
    others = sorted((r for r in rows if r[0] not in wrong), key=lambda r: -entropy(r[2], base=3))
    shown = [s for s in found if s.kind == "uncertain"]
    assert [s.slide_id for s in shown] == [r[0] for r in others[: MOST["uncertain"]]]
    assert [s.entropy for s in shown] == pytest.approx([entropy(r[2], base=3) for r in others[:4]])


def test_a_slide_stands_once_and_every_class_that_is_met_has_a_right_one():
    found = telling(predictions_of(random_rows()))
    assert len({s.slide_id for s in found}) == len(found)
    assert {s.y_true for s in found if s.kind == "right"} == set(CLASSES)
    assert all(s.y_pred == s.y_true for s in found if s.kind == "right")


def test_seeds_are_taken_together_and_how_many_were_wrong_is_said():
    first = [("s", "a", (0.9, 0.1, 0.0)), ("t", "b", (0.2, 0.8, 0.0))]
    second = [("s", "a", (0.4, 0.6, 0.0)), ("t", "b", (0.1, 0.9, 0.0))]
    third = [("s", "a", (0.3, 0.7, 0.0)), ("t", "b", (0.3, 0.7, 0.0))]
    found = {s.slide_id: s for s in telling(predictions_of(first, [second, third]))}
    s = found["s"]
    # Two of three seeds decide for b, though the mean probability of a is larger.
    assert (s.y_pred, s.kind, s.wrong, s.of) == ("b", "wrong", 2, 3)
    assert (s.p, s.p_true) == pytest.approx((1.4 / 3, 1.6 / 3))
    assert found["t"].wrong == 0


def test_a_slide_without_a_picture_is_named_with_the_reason(toy, parsed):
    run = toy(histories={}, pictures=2)
    ids = [s.slide_id for s in telling(run.predictions)]
    gone = {ids[2]: "the slide file is no longer where it was"}
    page = parsed(render("t", [toy(histories={}, pictures=2, without_picture=gone)]))
    state = {row[0]: row[-1] for row in page.rows if row and row[0] in ids}
    assert list(state) == ids
    assert [state[i] for i in ids[:3]] == ["shown", "shown", *gone.values()]
    assert {state[i] for i in ids[3:]} == {"not drawn"}
    assert len(page.all("img")) == 2


def test_pictures_that_find_no_room_are_counted_out_by_name(toy, parsed, monkeypatch):
    run = toy(histories={}, pictures=6)
    rng = np.random.default_rng(0)
    noise = [
        Example(e.slide_id, rng.integers(0, 256, (900, 900, 3), dtype=np.uint8), "noise")
        for e in run.examples
    ]
    run = toy(histories={}, examples=noise)
    bare = len(render("t", [toy(histories={}, pictures=0)]).encode())
    monkeypatch.setattr("wsi.report.page.MOST_BYTES", bare + 40_000)
    text = render("t", [run])
    assert len(text.encode()) <= bare + 40_000
    page = parsed(text)
    assert 0 < len(page.all("img")) < 6
    left_out = [row for row in page.rows if row and row[-1].startswith("left out, as the page")]
    assert len(left_out) == 6 - len(page.all("img"))
