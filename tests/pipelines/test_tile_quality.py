"""Bad, missing and dropped tiles as a user meets them: preprocess, rerun, train."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from pipelines.cli import run_command
from pipelines.tilecounts import tiles_line
from wsi.bags import Bag, BagStore, open_store
from wsi.slides.dress import write_slide

if TYPE_CHECKING:
    from tests.pipelines.conftest import Study

Json = Callable[..., Any]
Refused = Callable[..., str]
EDGE = 256
SETTINGS = ("tiling.mpp=0.5", f"tiling.tile_px={EDGE}", "tiling.min_tissue=0")


def preprocess(slides: Path, out: Path, *words: object) -> int:
    where = ["--slides", str(slides), "--out", str(out)]
    return run_command(["preprocess", *SETTINGS, *where, *map(str, words)])


def store_of(out: Path) -> BagStore:
    return open_store(out / "bags")


def quarantine(out: Path) -> dict[str, dict[str, str]]:
    with (out / "quarantine.csv").open(encoding="utf-8", newline="") as handle:
        return {row["slide_id"]: row for row in csv.DictReader(handle)}


def _scramble(path: Path, indices: list[int]) -> None:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        places = [(page.dataoffsets[k], page.databytecounts[k]) for k in indices]
    content = bytearray(path.read_bytes())
    for offset, count in places:
        content[offset : offset + count] = np.random.default_rng(0).bytes(count)
    path.write_bytes(content)


def _empty(path: Path, indices: list[int]) -> None:
    with tifffile.TiffFile(path, mode="r+") as tiff:
        page = tiff.pages.first
        counts, offsets = list(page.databytecounts), list(page.dataoffsets)
        for k in indices:
            counts[k] = offsets[k] = 0
        page.tags["TileByteCounts"].overwrite(counts)
        page.tags["TileOffsets"].overwrite(offsets)


@pytest.fixture(scope="module")
def spoilt(picture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides of 4 x 4 tiles: `good`, `one` and `two` with as many bad tiles, `holed`."""
    folder = tmp_path_factory.mktemp("spoilt")
    pixels = picture(size=(4 * EDGE, 4 * EDGE), radius=0.9)
    # The mask is made from the second level, so that only tiles are bad.
    for name in ("good", "one", "two", "holed"):
        lossless = name == "holed"
        levels = [pixels] if lossless else [pixels, pixels[::4, ::4]]
        write_slide(folder / f"{name}.tif", levels, mpp=0.5, lossless=lossless)
    _scramble(folder / "one.tif", [5])
    _scramble(folder / "two.tif", [5, 14])
    _empty(folder / "holed.tif", [5, 15])
    return folder


@pytest.mark.parametrize("jobs", [1, 2])
def test_bad_tiles_within_the_limit_are_left_out_and_said(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    assert preprocess(spoilt, tmp_path, "--max-bad-tiles", 1, "--jobs", jobs) == 3
    said = capsys.readouterr().err
    assert "one: 1 of 16 tiles cannot be decoded and was left out, at level-0 (256, 256)" in said
    assert "3 slides: 45 tiles, 2 missing, 1 bad" in said
    store = store_of(tmp_path)
    assert {info.slide_id: info.n for info in store.infos()} == {"good": 16, "holed": 14, "one": 15}
    assert [tile["xy0"] for tile in store.info("one").bad_tiles] == [[256, 256]]
    assert store.info("holed").bad_tiles == []
    assert run_command(["bags", "ls", str(tmp_path / "bags")]) == 0
    listed = {line.split("\t")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "\t1 bad\t" in listed["one"]
    assert "\t2 missing\t" in listed["holed"]
    row = quarantine(tmp_path)["two"]
    assert row["reason"] == "decode-error"
    assert (
        "two.tif: 2 of 16 tiles cannot be decoded, the first at level-0 (256, 256)"
        in row["message"]
    )
    assert "--max-bad-tiles 2" in row["message"]


def test_by_default_one_bad_tile_is_one_too_many(
    spoilt: Path, tmp_path: Path, said_json: Json
) -> None:
    words = ["preprocess", *SETTINGS, "--slides", spoilt, "--out", tmp_path]
    assert said_json(words, code=3)["tiles"] == {
        "tiles": 30,
        "missing": 2,
        "bad": 0,
        "dropped": {},
    }
    assert {k: v["reason"] for k, v in quarantine(tmp_path).items()} == {
        "one": "decode-error",
        "two": "decode-error",
    }


def test_a_later_allowance_brings_slides_back_and_only_those_it_covers(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess(spoilt, tmp_path) == 3
    assert preprocess(spoilt, tmp_path, "--max-bad-tiles", 1) == 3
    assert set(quarantine(tmp_path)) == {"two"}
    assert quarantine(tmp_path)["two"]["attempts"] == "1"  # not read again in vain
    assert preprocess(spoilt, tmp_path, "--max-bad-tiles", 2) == 0
    assert store_of(tmp_path).info("two").counts["bad"] == 2
    capsys.readouterr()
    assert preprocess(spoilt, tmp_path, "--max-bad-tiles", 2) == 0
    said = capsys.readouterr().err  # a run that does nothing still says what the bags lack
    assert "4 slides: 59 tiles, 2 missing, 3 bad" in said
    assert "two: 2 of 16 tiles" in said


def test_a_bag_with_bad_tiles_is_not_good_enough_for_a_stricter_run(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preprocess(spoilt, tmp_path, "--max-bad-tiles", 2) == 0
    capsys.readouterr()
    assert preprocess(spoilt, tmp_path, "--max-bad-tiles", 1) == 2
    said = capsys.readouterr().err
    assert "1 bags left out more tiles" in said
    assert "two 2" in said
    assert "--max-bad-tiles 2" in said
    assert store_of(tmp_path).ids() == ["good", "holed", "one", "two"]
    assert preprocess(spoilt, tmp_path, "--redo") == 3
    assert store_of(tmp_path).ids() == ["good", "holed"]
    assert set(quarantine(tmp_path)) == {"one", "two"}


def test_a_quarantine_table_of_before_is_still_read(spoilt: Path, tmp_path: Path) -> None:
    assert preprocess(spoilt, tmp_path) == 3
    path = tmp_path / "quarantine.csv"
    rows = list(quarantine(tmp_path).values())
    with path.open("w", encoding="utf-8", newline="") as handle:
        names = [name for name in rows[0] if name != "bad_tiles"]
        writer = csv.DictWriter(handle, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert preprocess(spoilt, tmp_path) == 3
    assert set(quarantine(tmp_path)) == {"one", "two"}


def test_bags_without_scores_are_made_again_with_redo(spoilt: Path, tmp_path: Path) -> None:
    slide = shutil.copy(spoilt / "good.tif", tmp_path)
    out = tmp_path / "out"
    assert preprocess(slide, out) == 0
    store = store_of(out)
    bag = store.read("good")
    store.put(Bag("good", bag.features, bag.xy0, bag.tissue, bag.provenance))
    assert preprocess(slide, out) == 0
    assert store.read("good").quality is None
    assert preprocess(slide, out, "--redo") == 0
    again = store.read("good").quality
    assert again is not None
    assert bag.quality is not None
    np.testing.assert_array_equal(again["blur"], bag.quality["blur"])


def test_dropped_tiles_are_counted_and_a_limit_is_a_setting(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = spoilt / "good.tif"
    assert preprocess(slide, tmp_path / "all") == 0
    quality = store_of(tmp_path / "all").read("good").quality
    assert quality is not None
    limit = float(np.median(quality["blur"]))
    over = int((quality["blur"] > limit).sum())
    assert 0 < over < 16
    capsys.readouterr()
    assert preprocess(slide, tmp_path / "some", f"quality.max_blur={limit}") == 0
    assert f"{16 - over} tiles, {over} dropped ({over} blur)" in capsys.readouterr().err
    assert store_of(tmp_path / "some").info("good").counts["dropped-blur"] == over
    assert preprocess(slide, tmp_path / "some") == 2
    assert "quality.max_blur" in capsys.readouterr().err
    assert preprocess(slide, tmp_path / "none", "quality.max_blur=0") == 0
    assert "all-dropped" in capsys.readouterr().err
    assert store_of(tmp_path / "none").info("good").status == "empty"


def test_the_line_of_a_run_is_as_documented() -> None:
    counts = {"tiles": 1204, "missing": 12, "bad": 1, "dropped-blur": 31, "dropped-pen": 9}
    assert tiles_line(3, counts) == (
        "3 slides: 1,204 tiles, 12 missing, 1 bad, 40 dropped (31 blur, 9 pen)"
    )
    assert tiles_line(3, {"tiles": 5, "dropped-pen": 0}) == "3 slides: 5 tiles"


# -- training ----------------------------------------------------------------------------------


def give_scores(study: Study, blurred: str) -> int:
    """Give all bags scores: the first tile of each is blurred, all of one; return how many."""
    store, n = open_store(study.bags), 0
    for slide_id in store.ids():
        bag = store.read(slide_id)
        blur = np.zeros(len(bag), np.float16)
        blur[: len(bag) if slide_id == blurred else 1] = 0.9
        scores = {"blur": blur, "pen": blur * 0, "fold": blur * 0}
        store.put(Bag(slide_id, bag.features, bag.xy0, bag.tissue, bag.provenance, scores))
        n += int((blur > 0.5).sum())
    return n


def test_training_leaves_out_tiles_by_score_and_records_it(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blurred = "x-normal-0-0"
    total = sum(info.n for info in open_store(study.bags).infos())
    left_out = give_scores(study, blurred)
    assert study.train(tmp_path / "run", "data.max_blur=0.5") == 0
    said = capsys.readouterr().err
    assert f"tiles: {total - left_out:,} used, {left_out} left out ({left_out} blur)" in said
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert inputs["tiles"] == {"used": total - left_out, "left_out": {"blur": left_out}}
    # The slide that keeps no tile is a state of its own, and the run goes on without it.
    assert "1 slides are not evaluable (1 slides: no tile left by data.max_blur=0.5)" in said
    beside = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert blurred in json.dumps(beside)
    assert f"{left_out} left out" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_a_limit_that_leaves_out_nothing_changes_nothing(study: Study, tmp_path: Path) -> None:
    give_scores(study, "")
    assert study.train(tmp_path / "all") == 0
    assert study.train(tmp_path / "some", "data.max_pen=0.5") == 0
    first, second = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("all", "some"))
    assert first == second


def test_a_limit_on_bags_without_scores_is_one_clear_line(
    study: Study, tmp_path: Path, refused: Refused
) -> None:
    said = refused(study.command(tmp_path / "run", "data.max_fold=0.3"), code=5)
    assert "no scores of tiles" in said
    assert "data.max_fold=0.3" in said
    assert "wsi preprocess --redo" in said
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "config.yaml").exists()
