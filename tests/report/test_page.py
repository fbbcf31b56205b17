"""The page: complete in itself, inert, accessible, and saying what the metrics say."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import cv2
import numpy as np
import pytest

from wsi.errors import ConfigError
from wsi.evaluation import compare
from wsi.report import Example, write_report
from wsi.report.page import render

TOLD = "s011"  # a slide that the toy runs take for another class
NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def two(toy, quick):
    runs = [toy("ce"), toy("ncmi", skill=1.6, seeds=2)]
    compared = compare([(run.name, run.predictions) for run in runs], spec=quick)
    return runs, compared, render("Two runs", runs, compared, "A lead.", ["run `wsi view`"])


def test_every_element_is_closed_where_it_was_opened(two, parsed):
    page = parsed(two[2])
    assert page.open == []
    assert len(page.all("table")) >= 10


def test_nothing_is_loaded_from_anywhere(two, parsed):
    text = two[2]
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    page = parsed(text)
    assert not page.all("link")
    for _, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
    assert not re.search(r"@import|url\((?!#)", text)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy


def test_the_policy_lets_exactly_our_script_run(two):
    script = re.search(r"<script>(.*)</script>", two[2], re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script.group(1).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in two[2]


def test_every_figure_has_a_name_and_every_table_a_caption(two, parsed):
    page = parsed(two[2])
    figures = page.all("svg")
    # forest, by site, accuracy against NCMI; per run: confusion, reliability, two curves of each
    # of three classes and three folds
    assert len(figures) == 3 + 2 * (2 + 2 * 3 + 3)
    assert all(f["role"] == "img" and f["aria-label"].strip() for f in figures)
    assert len({f["aria-label"] for f in figures}) > 5
    assert all(image["alt"].strip() for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))


def test_headings_never_skip_a_level_and_one_link_skips_to_the_figures(two, parsed):
    page = parsed(two[2])
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert 4 in levels
    tags = [tag for tag, _ in page.elements]
    for landmark in ("header", "nav", "main", "footer"):
        assert tags.count(landmark) == 1
    assert page.all("html") == [{"lang": "en"}]
    first = page.all("a")[0]
    assert first["href"] == f"#{page.all('main')[0]['id']}"
    # What scrolls sideways is reached by the keyboard, and has a name.
    for box in page.all("div"):
        if "scroll" in (box.get("class") or "").split():
            assert (box["tabindex"], box["role"]) == ("0", "group")
            assert box["aria-label"].strip()


def test_ids_are_distinct_and_references_lead_somewhere(two, parsed):
    page = parsed(two[2])
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        target = attrs.get("href") or attrs.get("xlink:href") or ""
        assert not target.startswith("#") or target[1:] in ids
        for reference in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in attrs.values())):
            assert reference in ids


def test_the_values_shown_are_those_of_the_metrics(two, parsed):
    runs, compared, text = two
    everything = parsed(text).rows
    rows = {row[0]: row for row in everything}
    for run in runs:
        macro = run.metrics["macro_f1"]
        shown = f"{macro['value']:.2f} [{macro['low']:.2f}, {macro['high']:.2f}]"
        assert sum(shown in row for row in everything if row[0] == "macro-F1") >= 2
        assert f"<b>{run.metrics['auc']['value']:.2f}</b>" in text
        for name, figures in run.metrics["per_class"].items():
            wanted = [name, str(figures["support"])]
            keys = ("precision", "recall", "f1", "auc", "average_precision")
            wanted += [f"{figures[k]:.2f}" for k in keys]
            wanted += [f"{run.metrics['information']['per_class'][name]['cmi']:.3f}"]
            assert wanted in everything
    (difference,) = compared["differences"]
    row = rows["ncmi − ce"]
    bounds = [f"{difference[k]:+.2f}".replace("-", "−") for k in ("value", "low", "high")]
    assert row[1] == f"{bounds[0]} [{bounds[1]}, {bounds[2]}]"


def test_names_with_markup_come_out_inert(toy, quick, parsed):
    classes = (NASTY, 'id="x" href="#y"', "_a$b$ & 'c'", "正常")
    example = Example("s000", np.zeros((9, 9, 3), np.uint8), NASTY)
    kwargs = {"examples": [example], "facts": {NASTY: NASTY}, "warnings": [NASTY]}
    runs = [toy(f"{NASTY}{k}", classes, monitor=NASTY, **kwargs) for k in range(2)]
    compared = compare([(r.name, r.predictions) for r in runs], spec=quick)
    text = render(NASTY, runs, compared, NASTY, [NASTY])
    page = parsed(text)
    assert text.count("<script") == 1
    assert page.open == []
    words = "".join(page.words)
    assert NASTY in words
    assert 'id="x" href="#y"' in words
    assert "_a$b$ & 'c'" in words
    assert not any("alert(1)" in (v or "") for a in page.all("script") for v in a.values())


def test_the_same_input_gives_the_same_bytes(two, tmp_path):
    runs, compared, text = two
    write_report(tmp_path / "r.html", "Two runs", runs, compared, "A lead.", ["run `wsi view`"])
    assert (tmp_path / "r.html").read_bytes() == text.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_pages_of_several_runs_stay_within_their_bytes(toy, parsed, monkeypatch):
    monkeypatch.setattr("wsi.report.run_figures.by_class", lambda index, run: [])  # they take long
    runs = [toy(name, pictures=3) for name in ("ce", "ncmi")]
    bare = len(render("t", [toy(name, pictures=0) for name in ("ce", "ncmi")]).encode())
    for most, drawn in ((bare + 30_000, 6), (bare - 9_000, 2)):
        monkeypatch.setattr("wsi.report.page.MOST_BYTES", most)
        text = render("t", runs)
        assert len(text.encode()) <= most
        assert text.count("Loss and AUC by epoch") == drawn
        assert ("Curves of 2 folds are left out" in text) == (drawn < 6)
        # Each run keeps its first picture before either has its second.
        shown = [image["alt"].partition(": ")[2] for image in parsed(text).all("img")]
        assert shown.count("attention 1") <= shown.count("attention 0") == 2


def test_ten_pictures_of_noise_stay_below_five_megabytes(toy, tmp_path, parsed):
    run = toy(pictures=10)  # noise is the hardest thing to compress
    write_report(tmp_path / "r.html", "Ten", [run])
    size = (tmp_path / "r.html").stat().st_size
    assert 100_000 < size < 5_000_000
    assert len(parsed((tmp_path / "r.html").read_text(encoding="utf-8")).all("img")) == 10


def test_one_patient_is_no_patients(toy, parsed):
    of = {"n": 2}  # two slides of one patient
    text = render("t", [toy(classes=("a", "b"), of=of, histories={}, parts=())])
    words = " ".join(" ".join(parsed(text).words).split())
    assert "2 slides of 1 patient in the test parts" in words
    assert not re.search(r"\b1 (slides|patients|seeds|folds)\b", words)


def test_an_example_keeps_its_own_picture(toy, parsed):
    colours = [(200, 30, 40), (20, 180, 60)]
    runs = [
        toy(
            str(colour),
            histories={},
            examples=[Example(TOLD, np.full((60, 80, 3), colour, np.uint8), "")],
        )
        for colour in colours
    ]
    images = parsed(render("t", runs)).all("img")
    for image, colour in zip(images, colours, strict=True):
        data = np.frombuffer(base64.b64decode(image["src"].partition(",")[2]), np.uint8)
        decoded = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        assert decoded.shape == (60, 80, 3)
        assert np.abs(decoded.astype(int) - colour).max() < 8


def test_a_bare_run_leaves_no_empty_panel(toy, parsed):
    empty = {"histories": {}, "facts": {}, "parts": (), "examples": (), "chosen": {}}
    text = render("Bare", [toy(**empty)])
    for heading in ("Learning curves", "Examples", "What was run", "Next steps", "Comparison"):
        assert heading not in text
    assert all(len(row) > 1 for row in parsed(text).rows)


def test_curves_without_validation_say_nothing_about_it(toy, parsed):
    rows = [
        {"epoch": e, "train_loss": 1.0 / (e + 1), "val_loss": None, "monitor": None}
        for e in range(3)
    ]
    text = render("t", [toy(histories={"fold0-seed0": rows}, chosen={})])
    assert "training loss" in text
    said = "".join(parsed(text).words)
    assert said.count("validation") == 1  # by the temperatures, which the table lacks
    assert "figures at temperatures of validation" in said


def test_warnings_are_announced_at_the_top(toy):
    text = render("t", [toy(warnings=["rates were not tuned"], histories={})])
    assert text.index("1 warning to read") < text.index("All metrics")
    assert "rates were not tuned" in text


def test_undefined_values_are_dashes_with_a_reason(toy, parsed):
    run = toy("ce", ("a", "b", "c"), of={"absent": 1})
    text = render("t", [run])
    rows = parsed(text).rows
    (absent,) = [row for row in rows if row[0] == "c" and row[1] == "0"]
    assert absent[3].startswith("–")  # recall of a class without slides
    assert "no slide of this class" in text


def test_runs_of_one_name_or_none_are_refused(toy, tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        write_report(tmp_path / "r.html", "t", [])
    with pytest.raises(ConfigError, match="different names"):
        write_report(tmp_path / "r.html", "t", [toy(), toy()])
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_of_other_runs_is_refused(two, tmp_path):
    runs, compared, _ = two
    with pytest.raises(ConfigError, match="compare the runs that are reported"):
        write_report(tmp_path / "r.html", "t", runs[:1], compared)


def test_metrics_that_do_not_belong_are_refused(toy):
    run = toy()
    with pytest.raises(ConfigError, match="schema"):
        toy(metrics={**run.metrics, "schema": "wsi-metrics/9"})
    with pytest.raises(ConfigError, match="classes"):
        toy(metrics={**run.metrics, "classes": ["high", "low", "normal"]})


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8)]
)
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(ConfigError, match="uint8"):
        Example("s", picture, "")


def test_writing_a_report_and_drawing_attention_need_no_torch():
    code = "import sys, wsi.report.page, wsi.explain; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


BROWSER = shutil.which("chromium")
PROBE = """<script>
const table = [...document.querySelectorAll("table.sortable")]
  .find((t) => t.caption.textContent.startsWith("By class"));
const said = [];
for (const column of [4, 4, 3, 3, 0]) {
  const head = table.tHead.rows[0].cells[column];
  head.querySelector("button").click();
  const names = [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
  said.push(names.join("") + " " + head.getAttribute("aria-sort"));
}
document.title = said.join("; ");
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_sorts_by_the_column_pressed(toy, tmp_path):
    run = toy("ce", ("a", "b", "c", "d"), of={"absent": 1})
    text = render("t", [run])
    assert browse(text, tmp_path).count('aria-sort="none"') > 10  # the policy lets it run
    probed = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", PROBE)
    title = re.search(r"<title>(.*)</title>", browse(probed, tmp_path))
    per_class = run.metrics["per_class"]
    f1 = sorted(per_class, key=lambda name: per_class[name]["f1"])
    recall = sorted("abc", key=lambda name: per_class[name]["recall"])
    expected = [
        f"{''.join(f1)} ascending",
        f"{''.join(reversed(f1))} descending",
        f"{''.join(recall)}d ascending",  # d has no recall, and comes last either way
        f"{''.join(reversed(recall))}d descending",
        "abcd ascending",
    ]
    assert title is not None
    assert title.group(1).split("; ") == expected


def browse(text, folder):
    """Return the document as it stands after its scripts ran."""
    page = folder / "page.html"
    page.write_text(text, encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def alarmed(history, epochs):
    def alarm(epoch):
        return {"name": "saturation", "since": epoch, "message": "too steep — raise it"}

    return [
        row | {"alarms": [alarm(row["epoch"])] if row["epoch"] in epochs else []} for row in history
    ]


def test_alarms_stand_beside_the_curves_with_their_epochs(toy, parsed):
    histories = toy().histories
    first, *others = histories
    changed = {name: alarmed(histories[name], ()) for name in others}
    text = render("t", [toy(histories={first: alarmed(histories[first], (2, 3, 5)), **changed})])
    assert ["fold 0, seed 0", "saturation", "2-3, 5", "3 of 6", "too steep — raise it"] in parsed(
        text
    ).rows
    assert text.index("Training raised alarms") < text.index("All metrics")
    assert text.count('id="r0-learning-0-alarms"') == 1
    assert 'id="r0-learning-1-alarms"' not in text
    assert "No alarm" not in text


def test_that_there_was_no_alarm_is_said_only_where_it_was_watched_for(toy):
    histories = toy().histories
    watched = {name: alarmed(rows, ()) for name, rows in histories.items()}
    assert "No alarm in any epoch" in render("t", [toy(histories=watched)])
    text = render("t", [toy(histories=histories)])
    assert "No alarm" not in text
    assert "raised alarms" not in text
