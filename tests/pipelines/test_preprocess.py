"""`wsi preprocess` from slides to bags, with sound, bad, changed and hostile slides."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from pipelines.cli import run_command
from wsi.bags import BagStore, open_store
from wsi.geojson import read_geojson
from wsi.slides import open_slide, search_archive
from wsi.slides.dress import pyramid, write_slide

SETTINGS = ("tiling.mpp=1.0", "tiling.tile_px=64")
RECIPE = "texture-v1_1um_64px"


def preprocess(slides: Path, out: Path, *words: object, settings=SETTINGS) -> int:
    return run_command(
        ["preprocess", *settings, "--slides", str(slides), "--out", str(out), *map(str, words)]
    )


def store_of(out: Path, recipe: str = RECIPE) -> BagStore:
    return open_store(out / "bags" / recipe)


def quarantined(out: Path) -> dict[str, dict[str, str]]:
    path = out / "quarantine.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as handle:
        return {row["slide_id"]: row for row in csv.DictReader(handle)}


def states(out: Path, recipe: str = RECIPE) -> dict[str, str]:
    found = {info.slide_id: info.status for info in store_of(out, recipe).infos()}
    return found | {slide_id: row["reason"] for slide_id, row in quarantined(out).items()}


def times(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of one run over the four sound slides; copy before changing."""
    out = tmp_path_factory.mktemp("finished") / "out"
    assert preprocess(slide_folder, out) == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.fixture
def slides(slide_folder: Path, tmp_path: Path) -> Path:
    """A copy of the sound slides that a test may change; times and all are kept."""
    return Path(shutil.copytree(slide_folder, tmp_path / "slides"))


# -- what a run leaves -------------------------------------------------------------------------


def test_every_slide_has_a_bag_or_is_empty(finished: Path) -> None:
    assert states(finished) == {"a": "done", "glass": "empty", "site/b": "done", "site/c": "done"}
    assert quarantined(finished) == {}
    info = store_of(finished).info("a")
    assert (info.status, info.dtype) == ("done", "float16")
    assert info.counts["considered"] == 64
    assert 0 < info.n == info.counts["planned"] < 64
    assert info.provenance.slide["mpp"] == [0.5, 0.5]
    assert info.provenance.tiling["settings"]["tile_px"] == 64
    assert store_of(finished).info("glass").reason == "no-tissue"


def test_bags_lie_where_the_drawn_tissue_is(finished: Path) -> None:
    bag = store_of(finished).read("a")
    edge = 128  # level-0 pixels: 64 px of 1 um at 0.5 um/px
    assert (bag.xy0 % edge == 0).all()
    y, x = np.mgrid[0:1024, 0:1024] + 0.5
    disc = np.hypot(x - 512, y - 512) < 0.35 * 1024  # as the picture was drawn
    share = disc.reshape(8, edge, 8, edge).mean((1, 3))
    kept = np.zeros((8, 8), bool)
    kept[bag.xy0[:, 1] // edge, bag.xy0[:, 0] // edge] = True
    assert kept[share > 0.15].all()
    assert not kept[share == 0].any()
    drawn = share[bag.xy0[:, 1] // edge, bag.xy0[:, 0] // edge]
    assert np.abs(bag.tissue - drawn).max() < 0.15


def test_features_are_those_of_the_tiles(finished: Path, slide_folder: Path) -> None:
    import torch

    from wsi.encoders import load_encoder
    from wsi.specs import Component

    bag = store_of(finished).read("a")
    encoder = load_encoder(Component(name="texture-v1"))
    row = len(bag.xy0) // 2
    with open_slide(slide_folder / "a.svs") as slide:
        tile = slide.read_at(tuple(bag.xy0[row]), (64, 64), 1.0)  # pyright: ignore[reportArgumentType]
    alone = encoder.embed(torch.from_numpy(tile[None])).numpy()[0]
    np.testing.assert_allclose(bag.features[row], alone, rtol=2e-3, atol=2e-3)


def test_pictures_and_shapes_stand_beside_the_bags(finished: Path) -> None:
    names = {"a", "glass", "site%2Fb", "site%2Fc"}
    for folder, suffix in [("tissue", ".geojson"), ("tiles", ".h5")]:
        assert {p.name for p in (finished / folder).iterdir()} == {n + suffix for n in names}
    beside = {p.name for p in (finished / "thumbnails").iterdir()}
    assert beside == {n + suffix for n in names for suffix in (".jpg", ".json")}
    (tissue,) = read_geojson(finished / "tissue" / "a.geojson")
    assert tissue.geometry.area == pytest.approx(np.pi * (0.35 * 1024) ** 2, rel=0.06)
    assert read_geojson(finished / "tissue" / "glass.geojson") == []
    with h5py.File(finished / "tiles" / "a.h5") as file:
        np.testing.assert_array_equal(file["coords"][:], store_of(finished).read("a").xy0)  # pyright: ignore[reportIndexIssue]


def test_nothing_is_left_lying_about(finished: Path) -> None:
    top = {p.name for p in finished.iterdir()}
    beside = {"slides.csv", "report.html", "log", "claims"}
    assert top == {"bags", "tiles", "tissue", "thumbnails"} | beside
    assert not list((finished / "claims").iterdir())
    assert sorted(p.suffix for p in (finished / "log").iterdir()) == [".jsonl", ".log"]
    assert not [p for p in finished.rglob("*") if p.name.startswith((".tmp", "."))]


# -- running again -----------------------------------------------------------------------------


def test_a_second_run_writes_no_bag_again(slide_folder: Path, out: Path) -> None:
    before = times(out / "bags")
    assert preprocess(slide_folder, out) == 0
    assert times(out / "bags") == before
    assert len(before) == 7  # three bags, four sidecars


def test_a_replaced_slide_is_done_again_alone(
    slides: Path, out: Path, picture: Callable[..., np.ndarray]
) -> None:
    before, old = times(out / "bags"), store_of(out).read("a")
    levels = pyramid(picture(radius=0.2, seed=9), 2)
    write_slide(slides / "a.svs", levels, mpp=0.5, dress="aperio", magnification=20)
    assert preprocess(slides, out) == 0
    changed = {name for name, time in times(out / "bags").items() if before[name] != time}
    assert changed == {f"{RECIPE}/a.h5", f"{RECIPE}/a.json"}
    assert 0 < store_of(out).info("a").n < len(old.xy0)


def test_a_bag_that_was_lost_is_made_again(slide_folder: Path, out: Path) -> None:
    old = store_of(out).read("a").features
    (out / "bags" / RECIPE / "a.json").unlink()
    assert preprocess(slide_folder, out) == 0
    np.testing.assert_array_equal(store_of(out).read("a").features, old)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("tiling.min_tissue=0.5", "min_tissue"),
        ("tissue.mpp=16", "tissue.mpp"),
        ("precision=float32", "precision float16 -> float32"),
    ],
)
def test_a_changed_setting_is_refused_by_name_until_redo(
    slide_folder: Path, out: Path, capsys: pytest.CaptureFixture[str], setting: str, told: str
) -> None:
    before = times(out / "bags")
    assert preprocess(slide_folder, out, setting) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "--redo" in err
    assert times(out / "bags") == before
    assert preprocess(slide_folder, out, setting, "--redo") == 0
    after = times(out / "bags")
    assert all(after[name] != before[name] for name in before)
    assert preprocess(slide_folder, out, setting) == 0
    assert times(out / "bags") == after


def test_another_tiling_stands_beside(slide_folder: Path, out: Path) -> None:
    before = times(out / "bags")
    assert preprocess(slide_folder, out, settings=("tiling.mpp=1.0", "tiling.tile_px=128")) == 0
    after = times(out / "bags")
    assert {name: after[name] for name in before} == before
    other = store_of(out, "texture-v1_1um_128px").info("a")
    assert other.provenance.tiling["settings"]["tile_px"] == 128


def test_the_other_file_format_holds_the_same(slide_folder: Path, out: Path) -> None:
    assert preprocess(slide_folder, out, "store=zarr") == 0
    one, other = store_of(out), store_of(out, f"{RECIPE}-zarr")
    assert one.ids() == other.ids()
    for slide_id in one.ids():
        if one.info(slide_id).status == "done":
            np.testing.assert_array_equal(
                one.read(slide_id).features, other.read(slide_id).features
            )
            np.testing.assert_array_equal(one.read(slide_id).xy0, other.read(slide_id).xy0)


# -- stopping early ----------------------------------------------------------------------------


def test_until_tiles_makes_no_bags(slide_folder: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(slide_folder, out, "--until", "tiles") == 0
    assert not (out / "bags").exists()
    assert {p.name for p in (out / "tiles").iterdir()} == {
        p.name for p in (finished / "tiles").iterdir()
    }
    with h5py.File(out / "tiles" / "a.h5") as file:
        np.testing.assert_array_equal(file["coords"][:], store_of(finished).read("a").xy0)  # pyright: ignore[reportIndexIssue]


def test_two_processes_lay_the_tiles_of_one(mixed: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out, "--until", "tiles", "--jobs", 2) == 3
    assert set(quarantined(out)) == set(BAD)
    for name in ("a", "site%2Fb", "site%2Fc"):
        with (
            h5py.File(out / "tiles" / f"{name}.h5") as two,
            h5py.File(finished / "tiles" / f"{name}.h5") as one,
        ):
            np.testing.assert_array_equal(two["coords"][:], one["coords"][:])  # pyright: ignore[reportIndexIssue]


def test_a_dry_run_writes_nothing(
    slide_folder: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert preprocess(slide_folder, out, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert not out.exists()
    tiles = sum(info.n for info in store_of(finished).infos())
    assert (plan["slides"], plan["unresolved"], plan["tiles"]) == (4, 0, tiles)


def test_a_dry_run_counts_slides_that_would_need_upsampling_as_not_ready(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    glass = np.full((300, 300, 3), 240, np.uint8)
    write_slide(slides / "coarse.tif", [glass], mpp=2.0)
    assert preprocess(slides, tmp_path / "out", "--dry-run", "--json") == 3
    told = capsys.readouterr()
    plan = json.loads(told.out)
    assert (plan["slides"], plan["unresolved"]) == (4, 1)
    assert "needs-upsampling: coarse is coarser than tiling.mpp=1" in told.err


def test_what_a_scan_found_is_not_opened_by_preprocess(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crew_of_one: object
) -> None:
    out = tmp_path / "out"
    assert run_command(["scan", str(slides), "--out", str(out / "slides.csv")]) == 0

    def never(*words, **more):
        raise AssertionError("a slide was opened")

    monkeypatch.setattr("pipelines.survey.open_slide", never)
    assert preprocess(slides, out, "--until", "tiles") == 0
    assert preprocess(out / "slides.csv", tmp_path / "other", "--until", "tiles") == 0


def test_fewer_slides_never_shrink_the_table(slides: Path, out: Path) -> None:
    assert preprocess(slides / "a.svs", out) == 0
    with (out / "slides.csv").open(encoding="utf-8", newline="") as handle:
        ids = [row["slide_id"] for row in csv.DictReader(handle)]
    assert ids == ["a", "glass", "site/b", "site/c"]


def test_a_slide_that_is_being_copied_waits_for_the_next_run(slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for path in slides.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    os.utime(slides / "a.svs")
    assert preprocess(slides, out, "--until", "tiles", "--settle", 3600) == 3
    assert {i: row["reason"] for i, row in quarantined(out).items()} == {"a": "still-being-written"}
    assert preprocess(slides, out, "--until", "tiles") == 0
    assert quarantined(out) == {}
    assert (out / "tiles" / "a.h5").is_file()


# -- bad slides --------------------------------------------------------------------------------


@pytest.fixture
def mixed(slides: Path) -> Path:
    """The sound slides, and six that are not."""
    sound = (slides / "a.svs").read_bytes()
    (slides / "zero.svs").write_bytes(b"")
    (slides / "text.svs").write_text("no slide\n" * 50)
    (slides / "cut.svs").write_bytes(sound[: len(sound) * 2 // 3])
    pixels = open_slide(slides / "a.svs").read((0, 0), 0, (1024, 1024))
    write_slide(slides / "scrambled.svs", [pixels], mpp=0.5, dress="aperio")
    with tifffile.TiffFile(slides / "scrambled.svs") as tiff:
        offset, count = tiff.pages.first.dataoffsets[5], tiff.pages.first.databytecounts[5]
    scrambled = bytearray((slides / "scrambled.svs").read_bytes())
    scrambled[offset : offset + count] = np.random.default_rng(0).bytes(count)
    (slides / "scrambled.svs").write_bytes(scrambled)
    glass = np.full((300, 300, 3), 240, np.uint8)
    write_slide(slides / "unknown.svs", [glass], mpp=None, dress="aperio")
    write_slide(slides / "coarse.tif", [glass], mpp=2.0)
    return slides


BAD = {
    "coarse": {"needs-upsampling"},
    "cut": {"open-failed", "unsupported-format", "decode-error"},
    "scrambled": {"decode-error"},
    "text": {"unsupported-format"},
    "unknown": {"no-mpp"},
    "zero": {"open-failed"},
}


def test_bad_slides_are_quarantined_and_the_others_done(
    mixed: Path, tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out, "--json") == 3
    told = capsys.readouterr()
    entries = quarantined(out)
    assert set(entries) == set(BAD)
    for slide_id, row in entries.items():
        assert row["reason"] in BAD[slide_id], slide_id
        assert " — " in row["message"]
        assert row["attempts"] == "1"
        assert row["first_time"] == row["last_time"] != ""
        assert slide_id in told.err
    assert "Traceback" not in told.err
    good = states(finished)
    assert {i: s for i, s in states(out).items() if i in good} == good
    summary = json.loads(told.out)
    assert (summary["total"], summary["quarantined"]) == (10, 6)
    assert summary["done"] + summary["empty"] + summary["quarantined"] == summary["total"]
    with (out / "slides.csv").open(encoding="utf-8", newline="") as handle:
        assert len(list(csv.DictReader(handle))) == 10


def test_a_rerun_tries_nothing_again_unless_asked(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out) == 3
    first, bags = quarantined(out), times(out / "bags")
    assert preprocess(mixed, out) == 3
    assert quarantined(out) == first
    assert times(out / "bags") == bags
    assert preprocess(mixed, out, "--retry-quarantined") == 3
    again = quarantined(out)
    assert again["scrambled"]["attempts"] == again["coarse"]["attempts"] == "2"
    assert again["scrambled"]["first_time"] == first["scrambled"]["first_time"]
    assert times(out / "bags") == bags


def test_a_mended_slide_leaves_quarantine(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out) == 3
    for name in ("scrambled.svs", "zero.svs"):
        shutil.copy(mixed / "a.svs", mixed / name)
    assert preprocess(mixed, out) == 3
    assert set(quarantined(out)) == set(BAD) - {"scrambled", "zero"}
    assert states(out)["scrambled"] == states(out)["zero"] == "done"


def test_some_quarantined_slides_may_be_allowed(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out, "--until", "tiles", "--allow-quarantined", 6) in (0, 3)
    n = len(quarantined(out))
    assert preprocess(mixed, out, "--until", "tiles", "--allow-quarantined", n) == 0
    assert preprocess(mixed, out, "--until", "tiles", "--allow-quarantined", n - 1) == 3
    assert preprocess(mixed, out, "--until", "tiles", "--allow-quarantined", "60%") == 0
    assert preprocess(mixed, out, "--until", "tiles", "--allow-quarantined", "some") == 2


def test_an_mpp_column_rescues_a_slide(slides: Path, tmp_path: Path) -> None:
    levels = pyramid(np.asarray(open_slide(slides / "a.svs").read((0, 0), 0, (1024, 1024))), 2)
    write_slide(slides / "bare.svs", levels, mpp=None, dress="aperio")
    out = tmp_path / "out"
    assert preprocess(slides / "bare.svs", out) == 3
    assert quarantined(out)["bare"]["reason"] == "no-mpp"
    table = tmp_path / "t.csv"
    table.write_text("slide_id,path,mpp\nbare,slides/bare.svs,0.5\n")
    assert preprocess(table, out) == 0
    assert quarantined(out) == {}
    made = store_of(out).info("bare").provenance.slide
    assert (made["mpp"], made["mpp_source"]) == ([0.5, 0.5], "table")


def test_a_resolution_may_be_assumed_for_gaps_only(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assume = ("slides.no_mpp=assume", "slides.assume_mpp=0.25")
    assert preprocess(mixed, out, *assume, "--until", "tiles") == 3
    assert "unknown" not in quarantined(out)
    with (out / "slides.csv").open(encoding="utf-8", newline="") as handle:
        rows = {row["slide_id"]: row for row in csv.DictReader(handle)}
    assert (rows["unknown"]["mpp"], rows["unknown"]["mpp_source"]) == ("0.25", "assumed")
    assert (rows["a"]["mpp"], rows["a"]["mpp_source"]) == ("0.5", "openslide")


def test_a_run_may_stop_before_computing(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out, "slides.no_mpp=stop", "--dry-run") == 3
    assert "would embed" not in capsys.readouterr().err
    assert preprocess(mixed, out, "slides.no_mpp=stop") == 3
    assert (out / "slides.csv").exists()
    assert not (out / "bags").exists()
    assert not (out / "thumbnails").exists()


def test_a_slide_whose_name_is_no_text_stops_nothing(slide_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(slide_folder / "a.svs", folder / "good.svs")
    shutil.copy(slide_folder / "a.svs", folder / os.fsdecode(b"caf\xe9.svs"))
    shutil.copy(slide_folder / "a.svs", folder / "line\nbreak.svs")
    assert preprocess(folder, tmp_path / "out") == 3
    assert states(tmp_path / "out")["good"] == "done"
    assert len(quarantined(tmp_path / "out")) == 2


# -- hostile input -----------------------------------------------------------------------------


@pytest.mark.parametrize("slide_id", ["../../escape", "/etc/escape", "a/../../escape"])
def test_an_id_never_leads_out_of_the_output_folder(
    slides: Path, tmp_path: Path, slide_id: str
) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"slide_id,path\n{slide_id},slides/a.svs\n")
    before = {str(p) for p in tmp_path.rglob("*")}
    code = preprocess(table, tmp_path / "deep" / "out")
    assert code in (2, 3, 5)
    created = {str(p) for p in tmp_path.rglob("*")} - before
    assert all(p.startswith(str(tmp_path / "deep")) for p in created)
    assert not [p for p in created if "escape" in p]


def test_long_foreign_and_twin_ids_all_have_bags(slides: Path, tmp_path: Path) -> None:
    ids = ["日" * 100, "x" * 240, "CON", "con", "per/cent", "per%2Fcent", "é", "e\u0301"]
    table = tmp_path / "t.csv"
    rows = "".join(f"{slide_id},slides/a.svs\n" for slide_id in ids)
    table.write_text("slide_id,path\n" + rows, encoding="utf-8")
    out = tmp_path / "out"
    preprocess(table, out)
    assert states(out) == dict.fromkeys(ids, "done")


def test_what_a_slide_says_of_its_patient_is_written_nowhere(
    tmp_path: Path, picture: Callable[..., np.ndarray]
) -> None:
    canary = "CANARY^PATIENT"
    slides, out = tmp_path / "slides", tmp_path / "out"
    slides.mkdir()
    levels = pyramid(picture((512, 512)), 2)
    for name, mpp in [("s.svs", 0.5), ("bare.svs", None)]:
        path = slides / name
        write_slide(path, levels, mpp=mpp, dress="aperio")
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tag = tiff.pages.first.tags["ImageDescription"]
            tag.overwrite(f"{tag.value}|Filename = {canary}|User = {canary}|Title = {canary}")
        assert canary in open_slide(path).properties["aperio.User"]
    (slides / "cut.svs").write_bytes((slides / "s.svs").read_bytes()[:-20_000])
    assert preprocess(slides, out, "-v") == 3
    assert run_command(["scan", str(slides), "--out", str(out / "scan.csv")]) == 3
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) > 6
    for path in written:
        assert canary.encode() not in path.read_bytes(), path


def run_program(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "preprocess", *SETTINGS, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow  # three processes import torch
def test_two_processes_of_the_program_make_the_bags_of_one(
    slide_folder: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    done = run_program("--slides", slide_folder, "--out", out, "--jobs", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 3
    assert states(out) == states(finished)
    one, two = store_of(finished), store_of(out)
    for slide_id in ("a", "site/b", "site/c"):
        np.testing.assert_array_equal(one.read(slide_id).xy0, two.read(slide_id).xy0)
        np.testing.assert_allclose(
            two.read(slide_id).features, one.read(slide_id).features, rtol=2e-3, atol=2e-3
        )


def test_the_program_says_what_was_misspelt_on_one_line(slide_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    wrong = run_program("tiling.tile_pxx=3", "--slides", slide_folder, "--out", out)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error[CONFIG]: unknown setting 'tiling.tile_pxx'")
    assert wrong.stderr.count("\n") == 1
    assert wrong.stdout == ""
    assert not out.exists()


def test_a_folder_that_may_not_be_read_is_no_success(
    slide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = search_archive([slide_folder])
    monkeypatch.setattr(
        "pipelines.survey.search_archive",
        lambda roots: replace(archive, closed=(slide_folder / "x",)),
    )
    assert preprocess(slide_folder, tmp_path / "out", "--until", "tissue") == 3


def test_settings_may_follow_the_slides(slide_folder: Path, tmp_path: Path) -> None:
    words = ["preprocess", "--slides", slide_folder, "tiling.mpp=2.0", "tiling.tile_px=64"]
    assert run_command([*map(str, words), "--out", str(tmp_path), "--until", "tiles"]) == 0
    with h5py.File(next((tmp_path / "tiles").glob("*.h5"))) as file:
        assert file["coords"].attrs["mpp"] == 2.0


def test_settings_alone_are_no_slides(tmp_path: Path, capsys) -> None:
    words = ["preprocess", "--slides", "tiling.mpp=2.0", "--out", str(tmp_path / "out")]
    assert run_command(words) == 2
    assert "only settings — give folders" in capsys.readouterr().err


def test_settings_of_training_are_said_to_do_nothing_here(
    slide_folder: Path, tmp_path: Path, capsys
) -> None:
    given = ("data.min_tissue=0.5", "fit.epochs=3")
    assert preprocess(slide_folder, tmp_path, *given, "--dry-run") == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "training only" in line]
    assert told == [
        "warning: data.min_tissue, fit.epochs act in training only — give them to wsi train"
    ]
    config = tmp_path / "all.yaml"
    config.write_text("fit: {epochs: 3}\n")
    assert preprocess(slide_folder, tmp_path, config, "--dry-run") == 0
    assert "training only" not in capsys.readouterr().err


def test_a_slide_too_coarse_is_taken_up_once_the_tiling_allows_it(
    mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out, "--until", "tiles") == 3
    assert "coarse" in quarantined(out)
    assert preprocess(mixed, out, "--until", "tiles", "tiling.mpp=4") == 3
    assert "coarse" not in quarantined(out)


@pytest.mark.parametrize("inside", ["out", "."])
def test_outputs_among_the_slides_are_no_slides(slides: Path, tmp_path: Path, inside: str) -> None:
    among = Path(shutil.copytree(slides, tmp_path / "among"))
    assert preprocess(among, among / inside, "--until", "tiles") == 0
    before = times(among / inside / "thumbnails")
    assert preprocess(among, among / inside, "--until", "tiles") == 0
    assert times(among / inside / "thumbnails") == before
    table = (among / inside / "slides.csv").read_text()
    assert "thumbnails" not in table


@pytest.mark.parametrize("name", ["bags", "thumbnails", "log"])
def test_outputs_that_a_link_leads_elsewhere_are_refused(
    slides: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (out, elsewhere):
        folder.mkdir()
    (out / name).symlink_to(elsewhere)
    assert preprocess(slides, out) == 2
    assert f"{name} leads out of" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []


def test_slides_that_a_file_system_would_mix_up_are_refused(
    slides: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy2(slides / "a.svs", slides / "A.svs")
    out = tmp_path / "out"
    monkeypatch.setattr("wsi.files._tells_case_apart", lambda folder: False)
    assert preprocess(slides, out) == 5
    assert "A and a" in capsys.readouterr().err
    assert not (out / "bags").exists()
