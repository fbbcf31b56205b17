"""The page of classic results comes from one command; here on little, its figures mean nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.io import savemat

from benchmarks.classic import digits
from benchmarks.classic.__main__ import main
from benchmarks.classic.figures import corrected
from benchmarks.classic.recipe import DIGITS, MODELS, PUBLISHED, RECIPES
from benchmarks.evidence.sets import CLASSIC


@pytest.fixture(scope="module")
def mil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one made-up classic set of 24 bags, in which the mean tells."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("mil")
    folder = root / "musk1_scaled"
    folder.mkdir()
    bag = np.repeat(np.arange(1, 25), 3)
    label = np.arange(24) % 2
    tiles = rng.normal(0, 1, (72, 5)) + 3 * label[bag - 1][:, None]
    for word, values in (("X", tiles), ("Bag2", bag[:, None]), ("bagI", label[:, None])):
        savemat(folder / f"{word}.mat", {word: values})
    return root


def words(mil: Path, out: Path, *more: object) -> list[str]:
    return [str(w) for w in ("--mil", mil, "--out", out, "--short", "--jobs", 1, *more)]


def run_here(monkeypatch: pytest.MonkeyPatch, *asked: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.classic", *asked])
    main()


@pytest.fixture(scope="module")
def out(mil: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classic")
    asked = words(mil, out, "--only", "musk1", "--page", out / "page.md")
    with pytest.MonkeyPatch.context() as patch:
        run_here(patch, *asked)
    return out


def fits(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "fits").rglob("*.json")}


def test_the_page_holds_the_accuracy_of_the_fits_and_of_an_easy_floor(out: Path) -> None:
    right, n = 0.0, 0
    for path in sorted((out / "fits/musk1/gated").glob("*.json")):
        found = json.loads(path.read_text())
        # Bags are numbered from 1, and those with an even number are positive.
        y = np.array([int(name.rpartition("-")[2]) % 2 == 0 for name in found["slide_ids"]])
        right, n = right + float(np.mean((np.array(found["p"]) > 0.5) == y)), n + 1
    accuracies = (out / "page.md").read_text(encoding="utf-8").partition("AUC, mean")[0]
    lines = [
        [c.strip() for c in line.split("|")] for line in accuracies.splitlines() if "|" in line
    ]
    shown = {line[2]: line[3] for line in lines if line[1] == "musk1" and line[2] in MODELS}
    assert n == 3
    assert shown["gated"] == f"{right / n:.3f}"
    assert next(line[3] for line in lines if line[2] == "floor") == "1.000"


def test_a_run_that_lost_a_fit_makes_that_one_alone(
    mil: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = fits(out)
    lost = sorted(before)[0]
    lost.unlink()
    run_here(monkeypatch, *words(mil, out, "--only", "musk1"))
    after = fits(out)
    assert "8 of 9 fits are done already" in capsys.readouterr().err
    assert {path for path in before if after[path] != before[path]} == {lost}


def test_folds_of_a_repetition_test_every_bag_once_and_choose_on_others(out: Path) -> None:
    from benchmarks.classic.cells import splits_of
    from benchmarks.evidence.stores import Made

    made = Made(out / "sets" / "musk1", ("negative", "positive"))
    seen = []
    for repetition in range(2):
        folds = splits_of(made, repetition, 3).folds
        tested = [s for fold in folds for s in fold.test]
        assert len(tested) == len(set(tested)) == 24
        assert all(fold.val and not set(fold.val) & {*fold.train, *fold.test} for fold in folds)
        seen.append(tuple(fold.test for fold in folds))
    assert seen[0] != seen[1]


def test_the_corrected_interval_is_students_with_a_wider_variance() -> None:
    values = np.random.default_rng(1).normal(0.02, 0.1, 50)
    naive = stats.t.interval(0.95, 49, values.mean(), stats.sem(values))
    wider = np.sqrt((1 / 50 + 1 / 9) / (1 / 50))
    found = corrected(values, 1 / 9)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.value == pytest.approx(wider * (naive[1] - values.mean()))
    assert found.value - found.low == pytest.approx(wider * (values.mean() - naive[0]))


def test_attention_on_nines_is_scored_as_finding_them(tmp_path: Path) -> None:
    """A model that attends to nines alone scores 1, one that shuns them 0, a flat one .5."""
    from sklearn.datasets import load_digits

    from benchmarks.classic.cells import bags_of, key_of_cell

    images, digit = load_digits(return_X_y=True)
    made = digits.two_class(tmp_path / "set", short=True)
    (cell,) = digits.two_class_cells(made, tmp_path, "digit-bags-2", 1, short=True)
    bags, fold = bags_of(made), digits.fold_of(cell)
    cell.path.parent.mkdir(parents=True)
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0), (0.0, 0.5)):
        attention = []
        for slide_id in fold.test:
            tiles = np.asarray(bags.read(slide_id).features)
            nearest = ((tiles[:, None] - images[None]) ** 2).sum(-1).argmin(1)
            attention.append((0.5 + sign * 0.1 * (digit[nearest] == 9)).tolist())
        row = {"key": key_of_cell(cell), "p": [0.5] * len(fold.test), "attention": attention}
        cell.path.write_text(json.dumps(row | {"slide_ids": list(fold.test)}))
        found = digits.found_nines([cell])
        assert found.within == pytest.approx(expected)
        assert found.pooled == pytest.approx(expected)
        assert found.auc == pytest.approx(0.5)
        assert found.bags == sum(bags.y[s] for s in fold.test)


def test_a_folder_without_the_sets_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"fox_scaled has no X\*\.mat — give the folder"):
        run_here(monkeypatch, *words(tmp_path, tmp_path, "--only", "fox"))


def test_digits_fill_their_part_of_the_page(
    mil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(monkeypatch, *words(mil, tmp_path, "--only", "digit", "--page", tmp_path / "page.md"))
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    study = json.loads((tmp_path / "digit-bags-4/study/results.json").read_text())
    for run in study["selections"]["patient"]["metrics"]["macro_f1"]["runs"]:
        assert f"| {run['name']} | " in page
        assert f" | {run['value']:.3f} | {run['seeds_sd']:.3f} | " in page
    assert "tiles: AUC of attention inside a positive bag" in page


def test_every_model_of_a_published_row_is_run() -> None:
    assert set(PUBLISHED) == set(CLASSIC) == set(RECIPES) - {DIGITS}
    assert all(set(row) == set(MODELS) for row in PUBLISHED.values())
