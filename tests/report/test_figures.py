"""Figures: what is drawn lies where the numbers say."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from wsi.report import figures

SVG = "{http://www.w3.org/2000/svg}"


def points(root: ET.Element, gid: str) -> np.ndarray:
    """Return the vertices (n, 2) of the path of one element, in SVG units."""
    (group,) = [g for g in root.iter(f"{SVG}g") if g.get("id") == gid]
    path = next(group.iter(f"{SVG}path")).attrib["d"]
    return np.array([[float(v) for v in xy] for xy in re.findall(r"[ML] (\S+) (\S+)", path)])


def texts(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter(f"{SVG}text")]


def test_the_confusion_matrix_shows_counts_and_row_percent():
    counts = np.array([[8.0, 2.0, 0.0], [1.5, 4.5, 0.0], [0.0, 0.0, 0.0]])
    svg = figures.confusion(counts, ["a", "b", "c"], "u")
    words = " ".join(texts(svg)).split()
    for expected in ("8", "80%", "2", "20%", "1.5", "25%", "4.5", "75%"):
        assert expected in words
    assert words.count("–") == 3  # a class without slides has no percent
    assert "a 8 of 10 right" in svg


def test_the_forest_draws_each_interval_to_scale():
    runs = [
        {"name": "ce", "value": 0.6, "low": 0.5, "high": 0.7},
        {"name": "ncmi", "value": 0.8, "low": 0.7, "high": 0.9},
        {"name": "none", "value": None, "low": None, "high": None},
    ]
    differences = [
        {"name": "ncmi", "value": 0.2, "low": 0.1, "high": 0.3},
        {"name": "none", "value": None, "low": None, "high": None},
    ]
    svg = figures.forest("macro-F1", runs, differences, "ce", "u")
    root = ET.fromstring(svg)
    drawn = [(str(p.attrib).lower(), p.get("d", "")) for p in root.iter(f"{SVG}path")]
    bars = [
        vertices
        for name in ("ce", "ncmi")
        for style, d in drawn
        if figures.run_style(name, [run["name"] for run in runs])["color"].lower() in style
        and len(vertices := re.findall(r"[ML] (\S+) (\S+)", d)) == 2
    ]
    (low, _), (high, _) = bars[0]
    (low2, _), (high2, _) = bars[1]
    # [0.5, 0.7] and [0.7, 0.9] on one axis: equally long, and the second begins where one ends.
    assert float(high) - float(low) == pytest.approx(float(high2) - float(low2), abs=1e-3)
    assert float(low2) == pytest.approx(float(high), abs=1e-3)
    assert len(bars) == 3
    assert texts(svg).count("undefined") == 2
    assert "reference" in texts(svg)


def marks(root: ET.Element, gid: str) -> np.ndarray:
    """Return the places (n, 2) of the marks of one element, in SVG units."""
    (group,) = [g for g in root.iter(f"{SVG}g") if g.get("id") == gid]
    return np.array([[float(u.attrib[k]) for k in "xy"] for u in group.iter(f"{SVG}use")])


def test_accuracy_lies_over_ncmi_with_a_mark_for_every_model():
    models = [("a", 0, 0.5, 0.4), ("a", 1, 0.7, 0.3), ("b", 0, 0.9, 0.1), ("b", 1, 0.6, 0.35)]
    points_of = [dict(zip(("run", "seed", "accuracy", "ncmi"), row)) for row in models]
    svg = figures.accuracy_ncmi(points_of, "u")
    root = ET.fromstring(svg)
    drawn = np.concatenate([marks(root, "u-run-0"), marks(root, "u-run-1")])
    values = np.array([(x, y) for _, _, y, x in models])
    for k, sign in ((0, 1), (1, -1)):  # y of an SVG grows downwards
        slope, _ = np.polyfit(values[:, k], drawn[:, k], 1)
        assert np.corrcoef(values[:, k], drawn[:, k])[0, 1] == pytest.approx(sign, abs=1e-6)
        assert slope * sign > 0
    assert texts(svg).count("seed 0") == texts(svg).count("seed 1") == 2
    assert {"a", "b", "accuracy"} <= set(texts(svg))
    assert "b seed 0: 0.900 at 0.1" in root.attrib["aria-label"]


def test_ncmi_that_spans_decades_is_drawn_on_a_logarithmic_axis():
    points_of = [
        {"run": "a", "seed": k, "accuracy": 0.5 + k / 10, "ncmi": 10.0**-k} for k in range(4)
    ]
    svg = figures.accuracy_ncmi(points_of, "u")
    assert {"0.001", "0.01", "0.1", "1"} <= set(texts(svg))
    assert not any("$" in text for text in texts(svg))
    x = marks(ET.fromstring(svg), "u-run-0")[:, 0]
    np.testing.assert_allclose(np.diff(x), np.diff(x)[0], rtol=1e-4)


def rows(*losses, monitor=(None, None, None)):
    return [
        {"epoch": e, "train_loss": t, "val_loss": v, "monitor": m}
        for e, (t, v, m) in enumerate(zip(*losses, monitor, strict=True))
    ]


def test_learning_limits_hold_every_fold():
    histories = {
        "fold0-seed0": rows((1.0, 0.5, 0.2), (1.1, 0.8, 0.9), monitor=(0.5, 0.6, 0.7)),
        "fold1-seed0": rows((3.0, 0.5, 0.1), (1.1, 0.8, 0.9), monitor=(0.4, 0.6, 0.9)),
    }
    limits = figures.learning_limits(histories)
    assert limits["loss"][0] < 0.1 < 3.0 < limits["loss"][1]
    assert limits["monitor"][0] < 0.4 < 0.9 < limits["monitor"][1]
    assert figures.learning_limits({"a": rows((1.0,), (None,), monitor=(None,))}).keys() == {"loss"}


def test_the_kept_epoch_is_ringed_and_named():
    history = {"fold0-seed0": rows((1.0, 0.5, 0.2), (1.1, 0.8, 0.9), monitor=(0.5, 0.6, 0.7))}
    limits = figures.learning_limits(history)
    svg, bare = (
        figures.learning(history, chosen, "AUC", limits, "u", "fold 0")
        for chosen in ({"fold0-seed0": 1}, {})
    )
    assert "fold0-seed0 kept epoch 1" in svg
    assert "kept" not in bare
    # The ring is one more marker in each of the two panels.
    assert svg.count("<use ") == bare.count("<use ") + 2
    assert {"loss", "AUC", "epoch", "fold 0"} <= set(texts(svg))


def test_a_run_has_one_colour_and_mark_in_every_figure_of_a_comparison():
    runs = ["ce", "ncmi", "mean", "focal"]
    score = {"value": 0.1, "low": 0.0, "high": 0.2}
    whole = [{"name": name} | score for name in runs[1:]]
    sites = [{"site": "x", "n": 9, "differences": whole}]
    # ncmi has no defined NCMI, so it has no point there.
    models = [
        {"run": name, "seed": 0, "accuracy": 0.5, "ncmi": 0.1} for name in runs if name != "ncmi"
    ]
    drawn = [
        figures.forest("macro-F1", [{"name": n} | score for n in runs], whole, "ce", "u"),
        figures.forest_by_site("macro-F1", sites, whole, runs, "u"),
        figures.accuracy_ncmi(models, "u", runs),
    ]
    styles = [figures.run_style(name, runs) for name in runs]
    assert len({(s["color"], s["marker"]) for s in styles}) == 4
    for svg, absent in zip(drawn, ([], ["ce"], ["ncmi"]), strict=True):
        for name, style in zip(runs, styles, strict=True):
            assert (style["color"].lower() in svg) == (name not in absent)


def test_ids_begin_with_the_prefix_and_names_stay_as_they_are():
    names = ['id="x"', "_hidden", "$a$ <b>"]
    svg = figures.confusion(np.eye(3), names, "mine")
    ids = [e.get("id") for e in ET.fromstring(svg).iter() if e.get("id")]
    assert ids
    assert all(i.startswith("mine-") for i in ids)
    said = " ".join(texts(svg))
    assert all(name in said for name in names)


def test_figures_are_the_same_every_time():
    first, again = (figures.confusion(np.eye(2), ["a", "b"], "u") for _ in range(2))
    assert first == again
    assert "<metadata" not in first


def test_letters_the_measuring_font_lacks_make_no_noise():
    svg = figures.confusion(np.eye(2), ["正常", "腫瘍"], "u")
    assert "正常" in texts(svg)
