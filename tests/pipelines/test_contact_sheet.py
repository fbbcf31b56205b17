"""`wsi preprocess` ends with a contact sheet: every slide on it, whatever became of it."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from shapely import box

from pipelines.cli import run_command
from wsi.bags import open_store
from wsi.geojson import Shape, write_geojson
from wsi.slides.dress import write_slide

Picture = Callable[..., np.ndarray]
Cards = dict[str, str]


def preprocess(slides: Path, out: Path, *words: object) -> int:
    tiling = ("tiling.mpp=1.0", "tiling.tile_px=64")
    given = ["--slides", str(slides), "--out", str(out), *map(str, words)]
    return run_command(["preprocess", *tiling, *given])


def cards_of(out: Path) -> Cards:
    """Return what the page says of each slide, as plain text, and whether it has a picture."""
    text = (out / "report.html").read_text(encoding="utf-8")
    found = {}
    for part in re.findall(r'<li class="card.*?</dl>', text, re.S):
        slide_id = re.search(r'data-id="([^"]*)"', part)
        assert slide_id is not None
        picture = "PICTURE " if "data:image/jpeg" in part else "BARE "
        said = re.sub(r"<[^>]*>", " ", re.sub(r'src="[^"]*"', "", part))
        found[unescape(slide_id[1])] = picture + re.sub(r"\s+", " ", unescape(said))
    return found


@pytest.fixture
def mixed(slide_folder: Path, tmp_path: Path, picture: Picture) -> Path:
    """Three slides with tissue, glass, and one each that cannot be used for another reason."""
    folder = Path(shutil.copytree(slide_folder, tmp_path / "slides"))
    disc = picture((512, 512))
    write_slide(folder / "unknown.svs", [disc], mpp=None, dress="aperio")
    write_slide(folder / "coarse.tif", [disc], mpp=2.0)
    (folder / "zero.svs").write_bytes(b"")
    return folder


def test_every_slide_is_on_the_sheet(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out, "--until", "tiles") == 3
    cards = cards_of(out)
    order = ["coarse", "unknown", "zero", "glass"]
    assert list(cards)[:4] == order
    assert set(cards) == {*order, "a", "site/b", "site/c"}
    assert "quarantined: needs-upsampling" in cards["coarse"]
    assert "quarantined: no-mpp" in cards["unknown"]
    assert "quarantined: open-failed" in cards["zero"]
    assert " empty " in cards["glass"]
    assert "tiles 0 of 16" in cards["glass"]
    assert "of 64" in cards["a"]
    assert "mpp 0.5 (openslide)" in cards["a"]
    # Tissue is drawn wherever a reader opens the file; areas are known only with a resolution.
    assert [i for i, text in cards.items() if text.startswith("BARE")] == ["zero"]
    assert "mm²" in cards["coarse"]
    assert "mm²" not in cards["unknown"]
    share = float(re.findall(r"tissue ([\d.]+) %", cards["unknown"])[0])
    assert share == pytest.approx(100 * np.pi * 0.35**2, rel=0.1)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    for name in ("thumbnails/unknown.jpg", "tissue/unknown.geojson", "thumbnails/coarse.jpg"):
        assert (out / name).is_file()
    assert {p.stem for p in (out / "tiles").iterdir()} == {"a", "glass", "site%2Fb", "site%2Fc"}


def test_a_run_with_nothing_to_do_writes_the_same_sheet(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out) == 3
    first = (out / "report.html").read_bytes()
    assert {i for i, text in cards_of(out).items() if "tiles" in text} == {
        *("a", "glass", "site/b", "site/c")
    }
    (out / "report.html").unlink()
    times = {p: p.stat().st_mtime_ns for p in (out / "thumbnails").iterdir()}
    monkeypatch.setattr("pipelines.extraction.read_slide", None)  # nothing may be taken up again
    assert preprocess(mixed, out) == 3
    assert (out / "report.html").read_bytes() == first
    assert {p: p.stat().st_mtime_ns for p in (out / "thumbnails").iterdir()} == times


def test_a_run_over_fewer_slides_keeps_the_others_on_the_sheet(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out, "--until", "tiles") == 3
    before = cards_of(out)
    assert preprocess(mixed / "a.svs", out, "--until", "tiles") == 0
    assert cards_of(out) == before


def test_another_report_is_never_written_over(slide_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("of a comparison")
    for _ in range(2):
        assert preprocess(slide_folder / "a.svs", out, "--until", "tiles") == 0
    assert (out / "report.html").read_text() == "of a comparison"
    assert {p.name for p in out.glob("*.html")} == {"report.html", "slides.html"}


def test_slides_not_made_into_bags_yet_are_waiting(slide_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(slide_folder, out, "--until", "tiles") == 0
    assert preprocess(slide_folder / "a.svs", out) == 0
    waiting = {i for i, text in cards_of(out).items() if " waiting " in text}
    assert waiting == {"glass", "site/b", "site/c"}


def test_until_tissue_lays_no_tiles(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # A slide too coarse for the tiling has tissue all the same.
    assert preprocess(mixed, out, "--until", "tissue", "--jobs", 1) == 3
    assert not (out / "tiles").exists()
    cards = cards_of(out)
    assert not any(re.search(r"\btiles \d", text) for text in cards.values())
    assert [i for i, text in cards.items() if "quarantined" in text] == ["unknown", "zero"]
    assert " empty " in cards["glass"]
    assert (out / "tissue" / "a.geojson").is_file()


def test_the_picture_of_a_replaced_slide_is_not_shown(mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert preprocess(mixed, out, "--until", "tiles") == 3
    (mixed / "a.svs").write_bytes(b"no slide" * 99)
    assert preprocess(mixed, out, "--until", "tiles") == 3
    card = cards_of(out)["a"]
    assert card.startswith("BARE")
    assert "quarantined" in card
    assert (out / "thumbnails" / "a.jpg").is_file()


def test_what_is_not_as_usual_is_a_flag(tmp_path: Path, picture: Picture) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    disc = picture((512, 512))
    marked = disc.copy()
    marked[20:60, 20:200] = (20, 150, 60)  # green ink beside the tissue
    write_slide(folder / "bare.svs", [disc], mpp=None, dress="aperio")
    write_slide(folder / "pen.tif", [marked], mpp=0.5)
    write_slide(folder / "finer.tif", [disc], mpp=1.03)
    write_slide(folder / "own.tif", [disc], mpp=0.5)
    table = tmp_path / "t.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide_id", "path", "tissue.min_area_mm2", "site"])
        for name in ("bare.svs", "pen.tif", "finer.tif", "own.tif"):
            own = "0.001" if name == "own.tif" else ""
            writer.writerow([name.partition(".")[0], f"slides/{name}", own, "north"])
    assume = ("slides.no_mpp=assume", "slides.assume_mpp=0.5")
    assert preprocess(table, out, *assume, "--until", "tiles") == 0
    cards = cards_of(out)
    assert "bare assumed mpp" in cards["bare"]
    assert "pen pen" in cards["pen"]
    assert "finer upsampled" in cards["finer"]
    assert "own own tissue settings" in cards["own"]
    assert all("site north" in text for text in cards.values())
    assert preprocess(table, out, *assume, "--until", "tiles", "tissue.mpp=4") == 0
    assert not any("other tissue settings" in text for text in cards_of(out).values())


def test_tiles_that_were_not_embedded_are_told(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch, crew_of_one: object
) -> None:
    from wsi.slides.openslide_reader import OpenSlideReader

    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    write_slide(folder / "s.tif", [picture((512, 512))], mpp=0.5)
    read = OpenSlideReader.read_tiles

    def with_a_gap(self, *args, **kwargs):
        for k, tile in enumerate(read(self, *args, **kwargs)):
            yield None if k == 2 else tile

    monkeypatch.setattr(OpenSlideReader, "read_tiles", with_a_gap)
    assert preprocess(folder, out, "slides.reader=openslide") == 0
    card = cards_of(out)["s"]
    assert ", 1 left out" in card
    assert "tiles left out" in card


def coords(out: Path, slide_id: str) -> tuple[np.ndarray, float]:
    with h5py.File(out / "tiles" / f"{slide_id}.h5") as file:
        found = file["coords"]
        return found[:], float(found.attrs["mpp"])  # pyright: ignore


def test_slides_that_are_done_are_drawn_as_their_bags_are(
    slide_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert preprocess(slide_folder, out) == 0
    before, picture = cards_of(out), (out / "thumbnails" / "a.jpg").read_bytes()
    for words in (
        ("tiling.mpp=2.0",),  # after the one of the helper, so it is what counts
        ("tiling.stride=32",),
        ("tiling.min_tissue=1",),
        ("tissue.mpp=16",),
    ):
        assert preprocess(slide_folder, out, "--until", "tiles", *words) == 0
        assert cards_of(out) != before
        assert preprocess(slide_folder, out) == 0
        assert cards_of(out) == before
        assert (out / "thumbnails" / "a.jpg").read_bytes() == picture
        xy0, mpp = coords(out, "a")
        np.testing.assert_array_equal(xy0, open_store(out / "bags").read("a").xy0)
        assert mpp == 1.0
    assert preprocess(slide_folder, out, "--until", "tissue") == 0
    assert preprocess(slide_folder, out) == 0
    assert cards_of(out) == before


def test_a_slide_not_in_this_run_takes_no_number_from_another_tiling(
    slide_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert preprocess(slide_folder, out) == 0
    before = cards_of(out)["site/b"]
    (kept,) = re.findall(r"tiles (\d+) of 64", before)
    assert preprocess(slide_folder, out, "--until", "tiles", "tiling.mpp=2") == 0
    assert preprocess(slide_folder / "a.svs", out) == 0
    card = cards_of(out)["site/b"]
    assert "drawn at 2 um" in card
    assert f"tiles {kept} tissue" in card
    assert " of " not in card
    # Without bags there is no count at all, so such a slide is not done.
    assert preprocess(slide_folder / "a.svs", out, "--until", "tiles") == 0
    card = cards_of(out)["site/b"]
    assert "waiting drawn at 2 um" in card
    assert "tiles" not in card


def test_tiles_left_out_are_still_crossed_out_when_drawn_again(
    tmp_path: Path, picture: Picture
) -> None:
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    sharp = picture((512, 512))
    soft = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 6))
    write_slide(folder / "s.tif", [np.hstack([sharp[:, :256], soft[:, 256:]])], mpp=0.5)
    limit = "quality.max_blur=0.6"
    assert preprocess(folder, out, limit) == 0
    card, drawn = cards_of(out)["s"], (out / "thumbnails" / "s.jpg").read_bytes()
    info = open_store(out / "bags").info("s")
    gone = info.counts["planned"] - info.n
    assert gone > 0
    blur = info.counts["dropped-blur"]
    assert f", {gone} left out : {blur} dropped ({blur} blur)" in card
    text = re.sub(r"<[^>]*>", " ", (out / "report.html").read_text(encoding="utf-8"))
    assert re.search(r"left out above\s+blur 0\.6\s", text)
    assert preprocess(folder, out, "--until", "tiles") == 0  # the same tiling: drawn already
    assert (out / "thumbnails" / "s.jpg").read_bytes() == drawn
    assert preprocess(folder, out, "--until", "tiles", "--redo") == 0  # nothing crossed out
    assert (out / "thumbnails" / "s.jpg").read_bytes() != drawn
    assert preprocess(folder, out, limit) == 0
    assert cards_of(out)["s"] == card
    assert (out / "thumbnails" / "s.jpg").read_bytes() == drawn


@pytest.mark.parametrize("until", ["tiles", "bags"])
def test_a_card_says_which_lesions_were_missed(
    slide_folder: Path, tmp_path: Path, until: str
) -> None:
    folder, out = tmp_path / "lesions", tmp_path / "out"
    folder.mkdir()
    inside, corner = box(420, 420, 620, 600), box(2, 2, 100, 60)  # in the disc, and on glass
    across = box(0, 480, 400, 540)  # by more than half on tissue
    small = box(0, 480, 250, 540)
    named = {"inside": inside, "corner": corner, "across": across, "edge": small}
    write_geojson(folder / "a.geojson", [Shape(s, "Tumor", label=k) for k, s in named.items()])
    write_geojson(folder / "b.geojson", [Shape(inside, "Tumor", label="all")])
    assert preprocess(slide_folder, out, "--until", until, "--lesions", folder) == 0
    cards = cards_of(out)
    with (out / "lesions.csv").open(encoding="utf-8", newline="") as file:
        states = {row["lesion"]: row["state"] for row in csv.DictReader(file)}
    covered = [k for k in named if states[k] == "covered"]
    partly = [k for k in named if states[k] == "partly"]
    assert "inside" in covered
    assert partly
    assert states["corner"] == "missed"
    said = f"lesions {len(covered)} of 4 covered, partly: {', '.join(partly)}, missed: corner"
    assert said in cards["a"]
    assert " lesion missed " in cards["a"]
    assert "lesions 1 of 1 covered" in cards["site/b"]
    assert "lesion missed" not in cards["site/b"]
    assert list(cards).index("a") == 1  # after the empty one, before all that are as usual
    assert "lesion" not in cards["site/c"]
    # Without the annotations nothing is claimed: the table may be of other tiles.
    assert preprocess(slide_folder, out, "--until", until) == 0
    assert not any("lesion" in text for text in cards_of(out).values())
