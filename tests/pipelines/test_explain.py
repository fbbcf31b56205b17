"""`wsi explain`: whose models speak for which slide, what is written, and what a rerun keeps."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pandas as pd
import pytest
from shapely.geometry import box

from pipelines.cli import run_command
from pipelines.commands.base import TileMap
from pipelines.explain_files import write_shapes
from tests.pipelines.conftest import CLASSES, DIM, TINY, Study, provenance
from wsi.bags import Bag, create_store, open_store
from wsi.data import BagDataset
from wsi.explain import MAPS, TileMaps
from wsi.geojson import Shape, read_geojson, write_geojson
from wsi.objectives.rules import RULES
from wsi.slides import open_slide
from wsi.slides.dress import write_slide
from wsi.training import load, save
from wsi.training.predict import predict

KNOWN, STRANGER = "x-macro-0-0", "stranger"
TILES = 9


@dataclass(frozen=True)
class Site:
    """Slides with bags of the run's recipe; `KNOWN` is of the run and has a lesion, on 3 tiles."""

    slides: Path
    bags: Path


def put(store, slide_id, path, seed):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((TILES, DIM)).astype(np.float32)
    features[:3, CLASSES.index("macro")] += 4.0
    xy0 = np.stack([np.arange(TILES) * 256, np.zeros(TILES)], axis=1).astype(np.int32)
    made = provenance(slide_id)
    with open_slide(path, slide_id) as slide:
        made.slide["fingerprint"] = slide.info.fingerprint
    store.put(Bag(slide_id, features, xy0, np.ones(TILES, np.float16), made))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("explain")
    slides = root / "slides"
    slides.mkdir()
    store = create_store(root / "bags" / "texture-v1_0.5um_256px")
    for seed, slide_id in enumerate((KNOWN, STRANGER)):
        picture = np.full((256, TILES * 256, 3), 240, np.uint8)
        picture[:, : 3 * 256] = (200, 60, 140)
        write_slide(slides / f"{slide_id}.tif", [picture], mpp=0.5)
        put(store, slide_id, slides / f"{slide_id}.tif", seed)
    write_geojson(slides / f"{KNOWN}.geojson", [Shape(box(0, 0, 3 * 256, 256), "Tumour")])
    return Site(slides, root / "bags")


def words(run: Path, site: Site, out: Path, *more: object) -> list[str]:
    given = ["explain", run, "--slides", site.slides, "--bags", site.bags, "--out", out, *more]
    return [str(word) for word in given]


@dataclass(frozen=True)
class Explained:
    """What one command wrote, and its document."""

    out: Path
    summary: dict[str, Any]

    def facts(self, slide_id: str) -> dict[str, Any]:
        return json.loads((self.out / "facts" / f"{slide_id}.json").read_text())

    def tiles(self, slide_id: str) -> pd.DataFrame:
        return pd.read_csv(self.out / f"{slide_id}.csv")


@pytest.fixture(scope="session")
def explained(shared_run: Path, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Explained:
    out = tmp_path_factory.mktemp("maps") / "out"
    more = ("--target", "macro", "--against", "normal", "--map", "contrast", "--map", "pmi")
    assert run_command(words(shared_run, site, out, *more)) == 0
    return Explained(out, json.loads((out / "summary.json").read_text()))


def test_it_writes_what_it_says(explained: Explained) -> None:
    written = {p.relative_to(explained.out).as_posix() for p in explained.out.rglob("*.*")}
    of_slides = {f"{s}.{end}" for s in (KNOWN, STRANGER) for end in ("png", "csv", "geojson")}
    assert of_slides | {f"pmi/{KNOWN}.png", f"pmi/{STRANGER}.png"} <= written
    assert {"index.html", "summary.json", "top_tiles/macro.jpg"} <= written
    assert list(explained.tiles(KNOWN).columns) == [
        "slide_id", "x", "y", "w0", "h0", "attention", "evidence", "contrast", "pmi",
        "leave_one_out",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def own(shared_study: Study, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The run's own bag of `KNOWN`, so that its recorded predictions are of the same tiles."""
    root = tmp_path_factory.mktemp("own")
    store = create_store(root / "bags" / "texture-v1_0.5um_256px")
    bag = open_store(shared_study.recipe).read(KNOWN)
    made = provenance(KNOWN)
    with open_slide(site.slides / f"{KNOWN}.tif", KNOWN) as slide:
        made.slide["fingerprint"] = slide.info.fingerprint
    store.put(Bag(KNOWN, bag.features, bag.xy0, bag.tissue, made))
    return Site(site.slides, root / "bags")


def predicted(run: Path) -> pd.DataFrame:
    """Return what the two seeds of the fold that tested `KNOWN` predicted."""
    predictions = pd.read_csv(run / "predictions.csv")
    rows = predictions[predictions["slide_id"] == KNOWN]
    assert len(rows) == 2
    return rows.assign(ratio=np.log(rows["p_macro"] / rows["p_normal"]))


def training_ratio(run: Path, fold: int, study: Study) -> float:
    """Return the log ratio of macro to normal training slides of a fold."""
    labels = {row.slide_id: row.label for row in study.rows}
    with (run / "splits.csv").open(newline="") as handle:
        parts = [r for r in csv.DictReader(handle) if int(r["fold"]) == fold]
    counts = Counter(labels[r["slide_id"]] for r in parts if r["part"] == "train")
    return float(np.log(counts["macro"] / counts["normal"]))


def test_contrasts_sum_to_the_out_of_fold_prediction_less_the_prior(
    shared_run: Path, own: Site, shared_study: Study, tmp_path: Path
) -> None:
    out, rows = tmp_path / "out", predicted(shared_run)
    more = ("--slide", KNOWN, "--target", "macro", "--against", "normal")
    assert run_command(words(shared_run, own, out, *more)) == 0
    prior = training_ratio(shared_run, int(rows["fold"].iloc[0]), shared_study)
    got = pd.read_csv(out / f"{KNOWN}.csv")["contrast"].sum()
    assert got == pytest.approx(rows["ratio"].mean() - prior, abs=1e-5)
    facts = json.loads((out / "facts" / f"{KNOWN}.json").read_text())
    for name in CLASSES:
        assert facts["probabilities"][name] == pytest.approx(rows[f"p_{name}"].mean(), abs=1e-6)


def settle(run: Path, fold: int, *rules: str) -> None:
    """Let the models of a fold, seed by seed, decide by other rules, as predict=auto may."""
    for seed, rule in enumerate(rules):
        path = run / f"fold{fold}-seed{seed}" / "model.safetensors"
        model, origin = load(path)
        model.objective.settled.fill_(RULES.index(rule))
        save(path, model, origin)


def test_models_that_decide_by_different_rules_are_each_freed_of_their_own_prior(
    shared_study: Study, own: Site, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    settings = (*TINY, "fit.seeds=2", "objective.predict=auto")
    assert shared_study.train(run, settings=settings) == 0
    fold = int(predicted(run)["fold"].iloc[0])
    settle(run, fold, "own", "probe")
    prior = training_ratio(run, fold, shared_study)
    assert prior != 0
    ratios = []
    for seed in (0, 1):
        model, _ = load(run / f"fold{fold}-seed{seed}" / "model.safetensors")
        bag = open_store(shared_study.recipe).read(KNOWN)
        p = predict(model, BagDataset(lambda _, bag=bag: bag, [KNOWN])).probabilities[0]
        ratios.append(np.log(p[CLASSES.index("macro")] / p[CLASSES.index("normal")]))
    more = ("--slide", KNOWN, "--target", "macro", "--against", "normal")
    assert run_command(words(run, own, out, *more)) == 0
    got = pd.read_csv(out / f"{KNOWN}.csv")["contrast"].sum()
    # A probe weighs classes alike: only the head of cross-entropy has learned the prior.
    assert got == pytest.approx((ratios[0] - prior + ratios[1]) / 2, abs=1e-5)
    assert json.loads((out / "summary.json").read_text())["exact"]


def test_a_slide_of_the_run_is_explained_by_models_that_never_saw_it(explained: Explained) -> None:
    known, stranger = explained.facts(KNOWN), explained.facts(STRANGER)
    assert known["out_of_fold"]
    assert known["models"].startswith("out-of-fold (fold ")
    assert known["models"].endswith("mean of 2 models")
    assert known["label"] == "macro"
    assert stranger["models"] == "not in the run, mean of 6 models"
    assert not stranger["out_of_fold"]
    assert stranger["label"] is None


def test_maps_are_exact_and_point_at_the_annotated_lesion(explained: Explained) -> None:
    assert explained.summary["exact"]
    assert explained.summary["max_gap"] < 1e-5
    assert explained.summary["auroc"]["contrast"]["slides"] == 1  # the other has no outlines
    tiles = explained.tiles(KNOWN)
    lesion, rest = tiles["contrast"][:3], tiles["contrast"][3:]
    pairs = np.mean([a > b for a in lesion for b in rest])
    assert explained.facts(KNOWN)["auroc"]["contrast"] == pytest.approx(pairs)


def test_qupath_gets_the_tiles_with_raw_values(explained: Explained) -> None:
    shapes, tiles = read_geojson(explained.out / f"{KNOWN}.geojson"), explained.tiles(KNOWN)
    assert len(shapes) == TILES
    for shape, (_, row) in zip(shapes, tiles.iterrows(), strict=True):
        assert shape.geometry.bounds == (row.x, row.y, row.x + row.w0, row.y + row.h0)
        assert shape.measurements["contrast (nats)"] == pytest.approx(row.contrast, rel=1e-6)
        assert shape.kind == "tile"


def test_large_tables_for_qupath_are_zipped(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pipelines.explain_files.LARGEST_PLAIN", 100)
    v = np.array([0.5, -0.5])
    xy0 = np.array([[0, 0], [10, 0]])
    maps = TileMaps("s", xy0, (10, 10), "a", "b", v, v, v, None, np.full(2, np.nan), True)
    path = write_shapes(tmp_path / "s.geojson", maps, "contrast", (0, 0))
    assert path.name == "s.geojson.zip"
    assert not (tmp_path / "s.geojson").exists()
    assert [s.measurements["evidence (nats)"] for s in read_geojson(path)] == [0.5, -0.5]


def test_the_gallery_shows_the_slides_own_pixels(explained: Explained) -> None:
    picture = cv2.imread(str(explained.out / "top_tiles" / "macro.jpg"))
    assert picture is not None
    best = explained.facts(KNOWN)["top"]["macro"] + explained.facts(STRANGER)["top"]["macro"]
    _, x, _ = max(best)
    b, g, r = picture[66 + 88, 12 + 88]
    expected = (200, 60, 140) if x < 3 * 256 else (240, 240, 240)
    np.testing.assert_allclose((r, g, b), expected, atol=12)


def test_the_page_loads_nothing_and_names_every_slide(explained: Explained) -> None:
    page = (explained.out / "index.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    for slide_id in (KNOWN, STRANGER):
        assert f'src="{slide_id}.png"' in page
        assert f'href="{slide_id}.csv"' in page


def test_a_rerun_keeps_what_is_done_and_makes_what_is_missing(
    explained: Explained, shared_run: Path, site: Site
) -> None:
    more = ("--target", "macro", "--against", "normal", "--map", "contrast", "--map", "pmi")
    kept, lost = explained.out / f"{KNOWN}.png", explained.out / f"{STRANGER}.png"
    lost.unlink()
    before = kept.stat().st_mtime_ns
    assert run_command(words(shared_run, site, explained.out, *more)) == 0
    assert kept.stat().st_mtime_ns == before
    assert lost.is_file()


def test_maps_of_slides_learned_by_heart_say_so(
    run_copy: Path, site: Site, tmp_path: Path, said_json, capsys
) -> None:
    lines = (run_copy / "splits.csv").read_text().splitlines()
    lines = [x.replace(",test", ",train") if x.startswith(f"{KNOWN},") else x for x in lines]
    (run_copy / "splits.csv").write_text("\n".join(lines) + "\n")
    assert run_command(words(run_copy, site, tmp_path / "out", "--dry-run", "--json")) == 0
    captured = capsys.readouterr()
    how = json.loads(captured.out)["slides"]
    assert how[KNOWN] == "trained on it, mean of 6 models"
    assert "learned by heart" in captured.err


def test_bags_that_were_moved_are_asked_for(
    run_copy: Path, site: Site, tmp_path: Path, refused
) -> None:
    inputs = json.loads((run_copy / "inputs.json").read_text())
    inputs["bags"] = str(tmp_path / "gone")
    (run_copy / "inputs.json").write_text(json.dumps(inputs))
    given = ["explain", run_copy, "--slides", site.slides, "--out", tmp_path / "out"]
    assert "say where with --bags" in refused(given, 2)


def test_every_map_can_be_asked_for() -> None:
    assert get_args(TileMap) == MAPS


def test_a_dry_run_writes_nothing(shared_run: Path, site: Site, tmp_path: Path, said_json) -> None:
    document = said_json(words(shared_run, site, tmp_path / "out", "--dry-run"))
    assert set(document["slides"]) == {KNOWN, STRANGER}
    assert not (tmp_path / "out").exists()


def test_lesions_of_the_cohort_table_are_used_and_an_empty_file_holds_none(
    shared_run: Path, site: Site, tmp_path: Path, said_json, capsys
) -> None:
    write_geojson(tmp_path / "drawn.geojson", [Shape(box(0, 0, 256, 256), "Tumour")])
    write_geojson(tmp_path / "nothing.geojson", [])
    table = tmp_path / "c.csv"
    lines = [f"{KNOWN},{site.slides / KNOWN}.tif,nothing.geojson"]
    lines += [f"{STRANGER},{site.slides / STRANGER}.tif,drawn.geojson"]
    table.write_text("\n".join(["slide_id,path,lesions", *lines]))
    listed = Site(table, site.bags)
    assert run_command(words(shared_run, listed, tmp_path / "out", "--target", "macro")) == 0
    assert "; 1 with annotated lesions" in "".join(capsys.readouterr())
    facts = {
        slide: json.loads((tmp_path / "out" / "facts" / f"{slide}.json").read_text())
        for slide in (KNOWN, STRANGER)
    }
    assert facts[STRANGER]["lesion_tiles"] == 1
    assert facts[KNOWN]["lesion_tiles"] == 0
    by_name = words(shared_run, site, tmp_path / "no", "--dry-run", "--annotations", table)
    assert run_command(by_name) == 0
    assert "; 1 with annotated lesions" in "".join(capsys.readouterr())


def test_a_replaced_slide_is_told_and_costs_no_other(
    shared_run: Path, site: Site, tmp_path: Path, capsys
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / f"{STRANGER}.tif").write_bytes((site.slides / f"{STRANGER}.tif").read_bytes())
    other = np.full((256, TILES * 256, 3), 100, np.uint8)
    write_slide(slides / f"{KNOWN}.tif", [other], mpp=0.5)
    replaced = Site(slides, site.bags)
    assert run_command(words(shared_run, replaced, tmp_path / "out")) == 3
    assert "is not the file that the bag" in capsys.readouterr().err
    assert (tmp_path / "out" / f"{STRANGER}.png").is_file()
    assert not (tmp_path / "out" / "facts" / f"{KNOWN}.json").exists()


def test_what_cannot_be_done_is_one_line(
    shared_run: Path, site: Site, tmp_path: Path, refused, explained: Explained
) -> None:
    out = tmp_path / "out"
    assert "did you mean 'macro'" in refused(words(shared_run, site, out, "--target", "macr"), 2)
    said = refused(words(shared_run, site, out, "--slide", "strangr"), 2)
    assert f"did you mean '{STRANGER}'" in said
    assert "is not empty and holds no maps" in refused(words(shared_run, site, site.slides), 2)
    said = refused(words(shared_run, site, explained.out, "--target", "itc"), 2)
    assert "other settings (target" in said
    assert "not a run folder" in refused(words(site.slides, site, out), 2)
    assert not out.exists()


def test_bags_of_another_recipe_are_refused(
    shared_run: Path, site: Site, tmp_path: Path, refused
) -> None:
    store = create_store(tmp_path / "bags" / "other")
    made = provenance(STRANGER, tile_px=128)
    store.put(
        Bag(STRANGER, np.ones((2, DIM), np.float32), np.zeros((2, 2), np.int32),
            np.ones(2, np.float16), made)
    )  # fmt: skip
    other = Site(site.slides, tmp_path / "bags")
    assert "another recipe" in refused(words(shared_run, other, tmp_path / "out"), 5)


@pytest.mark.slow
def test_maps_of_the_demo_point_at_the_planted_lesions(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    assert run_command(["demo", "--out", str(demo), "--quiet"]) == 0
    for name, exact in (("ce", True), ("ncmi", False)):
        out = tmp_path / name
        words = ["explain", demo / "runs" / name, "--slides", demo / "slides", "--out", out]
        assert run_command([*map(str, words), "--quiet"]) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert summary["exact"] is exact
        assert summary["auroc_of_label"]["contrast"]["slides"] == 24
        assert summary["auroc_of_label"]["contrast"]["mean"] >= 0.9
        assert summary["max_gap"] < (1e-5 if exact else 0.05)


def test_slides_without_a_bag_are_named_and_exit_with_3(
    shared_run: Path, site: Site, tmp_path: Path, capsys
) -> None:
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    for name in (f"{KNOWN}.tif", "lonely.tif"):
        (slides / name).write_bytes((site.slides / f"{KNOWN}.tif").read_bytes())
    assert run_command(words(shared_run, Site(slides, site.bags), out)) == 3
    assert "1 slide without a bag left out: lonely" in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text())["left_out"] == ["lonely"]
    assert "lonely" in (out / "index.html").read_text()


def test_pmi_is_missing_only_where_the_decision_has_no_prior(explained: Explained) -> None:
    assert explained.tiles(KNOWN)["pmi"].notna().all()  # cross-entropy
    assert explained.summary["without_pmi"] == 0


def test_a_run_whose_decision_has_no_prior_says_that_pmi_is_missing(
    shared_study: Study, site: Site, tmp_path: Path, capsys
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert shared_study.train(run, "objective=ncmi", "fit.epochs=1") == 0
    assert run_command(words(run, site, out, "--slide", KNOWN)) == 0
    assert pd.read_csv(out / f"{KNOWN}.csv")["pmi"].isna().all()
    said = capsys.readouterr().err
    assert "no pmi of 1 slide" in said
    assert "leave-one-out exact" in said
    assert "PMI and" not in (out / "index.html").read_text()
