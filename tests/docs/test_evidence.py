"""The page of results comes from one command; here with a few bags, whose figures mean nothing."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.evidence.__main__ import main


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one short study and the page made from it."""
    out = tmp_path_factory.mktemp("evidence")
    words = ["--out", out, "--tier", "core", "--only", "digit-bags-2", "--short", "--jobs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(w) for w in (__name__, *words, "--page", out / "page.md")])
        main()
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_the_page_holds_the_figures_of_the_study(out: Path) -> None:
    page = (out / "page.md").read_text(encoding="utf-8")
    study = json.loads((out / "studies/core/digit-bags-2/results.json").read_text())
    metric = study["selections"]["patient"]["metrics"]["macro_f1"]
    lines = {
        line.split("|")[1].strip().removesuffix(" (rival)"): line
        for line in page[page.index("### digit-bags-2") :].splitlines()
        if line.startswith("|")
    }
    assert {run["name"] for run in metric["runs"]} == set(lines) - {"arm", "---"}
    for run in metric["runs"]:
        assert f"{run['value']:.3f}" in lines[run["name"]]


def test_no_digit_is_in_two_parts_of_a_fold(out: Path) -> None:
    from sklearn.datasets import load_digits

    from benchmarks.evidence.sets import digit_bags
    from wsi.bags import open_store

    made = digit_bags(2, 1000, out / "sets" / "digit-bags-2")
    store = open_store(made.bags)
    part = {(row["fold"], row["slide_id"]): row["part"] for row in rows(made.root / "splits.csv")}
    part_ids = {slide_id for _, slide_id in part}
    images = load_digits().data
    seen: dict[tuple[str, int], set[str]] = {}
    for slide_id in sorted(part_ids)[::4]:
        tiles = store.read(slide_id).features
        nearest = ((tiles[:, None] - images[None]) ** 2).sum(-1).argmin(1)
        for fold in "01234":
            for image in nearest:
                seen.setdefault((fold, int(image)), set()).add(part[fold, slide_id])
    assert max(Counter(len(parts) for parts in seen.values())) == 1


def test_labels_are_wrong_as_often_as_asked(tmp_path: Path) -> None:
    from benchmarks.evidence.sets import digit_images

    made = digit_images(0.3, 5, tmp_path, n=120)
    table = rows(made.cohort)
    wrong = sum(row["label"] != row["truth"] for row in table) / len(table)
    assert abs(wrong - 0.3) < 0.13  # three standard deviations of a share of 120
