"""`wsi tissue import`, and what `wsi preprocess` makes of it."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from shapely import Polygon, box
from shapely.geometry import mapping

from pipelines.cli import run_command
from wsi.bags import BagStore, open_store
from wsi.geojson import read_geojson
from wsi.slides.openslide_reader import OpenSlideReader

SETTINGS = ("tiling.mpp=1.0", "tiling.tile_px=64")
EDGE = 128  # level-0 pixels of a tile
DISC = Polygon([(512 + 358 * np.cos(t), 512 + 358 * np.sin(t)) for t in np.linspace(0, 6.28, 200)])


def preprocess(slides: Path, out: Path, *words: str) -> int:
    return run_command(
        ["preprocess", *SETTINGS, "--slides", str(slides), "--out", str(out), *words]
    )


def import_(source: Path, out: Path, *words: str) -> int:
    return run_command(["tissue", "import", str(source), "--out", str(out), *words])


def draw(path: Path, *shapes: tuple[object, str]) -> Path:
    """Write a file as QuPath exports it."""
    features = [
        {
            "type": "Feature",
            "geometry": mapping(geometry),
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for geometry, name in shapes
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def store_of(out: Path) -> BagStore:
    return open_store(out / "bags")


def corners(out: Path, slide_id: str) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in store_of(out).read(slide_id).xy0}


def tiles_on(area: Polygon, minimum: float = 0.05) -> set[tuple[int, int]]:
    """Return the corners of the 8 x 8 grid of which `area` covers at least the minimum."""
    grid = [(x, y) for y in range(0, 1024, EDGE) for x in range(0, 1024, EDGE)]
    cover = {(x, y): area.intersection(box(x, y, x + EDGE, y + EDGE)).area for x, y in grid}
    return {corner for corner, area0 in cover.items() if area0 / EDGE**2 >= minimum}


@pytest.fixture(scope="module")
def finished(slide_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    assert preprocess(slide_folder, out) == 0
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


LEFT = box(0, 0, 512, 1024)
TOP_LEFT = box(0, 0, 512, 512)


def test_a_drawn_mask_replaces_that_of_its_slide_alone(
    slide_folder: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {info.slide_id: info for info in store_of(out).infos()}
    held = corners(out, "a")
    assert import_(draw(tmp_path / "in/a.geojson", (TOP_LEFT, "Tissue")), out) == 0
    assert "a: a.geojson: 1 shapes, 0.0655 mm2" in capsys.readouterr().err  # (512 * .5 um)^2
    assert preprocess(slide_folder, out) == 0
    told = capsys.readouterr().err
    assert "1 slide has an edited mask" in told
    reused = len(held & tiles_on(TOP_LEFT))
    assert f"({reused} reused)" in told
    assert store_of(out).info("a").counts["reused"] == reused > 0
    assert preprocess(slide_folder, out) == 0
    assert "reused" not in capsys.readouterr().err  # nothing was made in this run
    after = {info.slide_id: info for info in store_of(out).infos()}
    assert corners(out, "a") == tiles_on(TOP_LEFT)
    changed = [slide_id for slide_id in before if before[slide_id].key != after[slide_id].key]
    assert changed == ["a"]
    assert after["a"].recipe_key == before["a"].recipe_key
    assert after["a"].provenance.tissue["flags"] == ["edited"]
    assert len(after["a"].provenance.tissue["mask"]) == 64


def test_an_edit_is_never_overwritten_until_it_is_taken_back(
    slide_folder: Path, out: Path, tmp_path: Path
) -> None:
    old = corners(out, "a")
    import_(draw(tmp_path / "a.geojson", (TOP_LEFT, "")), out)
    edit = out / "edits" / "mask" / "a.geojson"
    content = edit.read_bytes()
    for words in ((), ("--redo", "tiling.min_tissue=0.04"), ("--redo", "tissue.mpp=16")):
        assert preprocess(slide_folder, out, *words) == 0
        assert corners(out, "a") == tiles_on(TOP_LEFT)
        assert edit.read_bytes() == content
    edit.unlink()
    assert preprocess(slide_folder, out, "--redo") == 0
    assert corners(out, "a") == old


def test_an_outline_changed_where_it_lies_is_kept_and_told(
    slide_folder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outline = draw(out / "tissue" / "a.geojson", (box(0, 0, 512, 512), "Tissue"))
    drawn = outline.read_bytes()
    capsys.readouterr()
    assert preprocess(slide_folder, out, "--until", "tiles") == 0
    said = capsys.readouterr().err
    assert "1 outline in" in said
    assert "not imported (a)" in said
    assert outline.read_bytes() == drawn
    assert import_(outline, out) == 0
    capsys.readouterr()
    assert preprocess(slide_folder, out) == 0
    assert "not imported" not in capsys.readouterr().err
    assert corners(out, "a") == tiles_on(box(0, 0, 512, 512))


@pytest.mark.parametrize(("roi", "area"), [("include", DISC & LEFT), ("exclude", DISC - LEFT)])
def test_a_region_restricts_what_was_found(
    slide_folder: Path, out: Path, tmp_path: Path, roi: str, area: Polygon
) -> None:
    import_(draw(tmp_path / "a.geojson", (LEFT, "")), out, "--roi", roi)
    assert preprocess(slide_folder, out) == 0
    found = corners(out, "a")
    assert tiles_on(area, 0.1) <= found <= tiles_on(area, 0.01)
    assert "roi" in store_of(out).info("a").provenance.tissue["flags"]


def test_mask_and_region_stand_together_and_holes_are_cut(
    slide_folder: Path, out: Path, tmp_path: Path
) -> None:
    hole = box(0, 0, 256, 256)
    drawn = draw(tmp_path / "m/a.svs.geojson", (TOP_LEFT, "Tissue"), (hole, "fold*"))
    import_(drawn, out)
    import_(draw(tmp_path / "r/a.json", (box(0, 256, 512, 512), "")), out, "--roi", "exclude")
    assert preprocess(slide_folder, out) == 0
    assert corners(out, "a") == tiles_on(box(256, 0, 512, 256))


def test_asap_and_zip_are_imported_too(slide_folder: Path, out: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    draw(tmp_path / "b.geojson", (TOP_LEFT, ""))
    source.mkdir()
    with zipfile.ZipFile(source / "site%2Fb.zip", "w") as archive:
        archive.write(tmp_path / "b.geojson", "export.geojson")
    points = "".join(
        f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>'
        for k, (x, y) in enumerate([(0, 0), (512, 0), (512, 512), (0, 512)])
    )
    (source / "a.xml").write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="x" Type="Polygon" PartOfGroup="None">'
        f"<Coordinates>{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    assert import_(source, out) == 0
    assert preprocess(slide_folder, out) == 0
    assert corners(out, "a") == corners(out, "site/b") == tiles_on(TOP_LEFT)


def test_exports_that_nobody_changed_are_passed_over(
    slide_folder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_(out / "tissue", out, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {item["state"] for item in said["slides"]} == {"as-exported"}
    assert not (out / "edits").exists()
    path = out / "tissue" / "a.geojson"
    content = json.loads(path.read_text())
    content["features"][0]["geometry"] = mapping(TOP_LEFT)  # edited in place
    path.write_text(json.dumps(content))
    for expected in ("imported", "known"):
        assert import_(out / "tissue", out, "--json") == 0
        said = json.loads(capsys.readouterr().out)
        states = {item["slide_id"]: item["state"] for item in said["slides"]}
        assert states == {
            "a": expected,
            "glass": "as-exported",
            "site/b": "as-exported",
            "site/c": "as-exported",
        }
    assert preprocess(slide_folder, out) == 0
    assert corners(out, "a") == tiles_on(TOP_LEFT)
    capsys.readouterr()
    assert import_(out / "tissue", out, "--json") == 0  # the new export shows the edit
    assert {item["state"] for item in json.loads(capsys.readouterr().out)["slides"]} == {
        "as-exported"
    }


def test_an_older_export_brings_back_what_it_shows(out: Path, tmp_path: Path) -> None:
    older = shutil.copy(out / "tissue" / "a.geojson", tmp_path / "a.geojson")
    shapes = read_geojson(Path(older))
    import_(draw(tmp_path / "new/a.geojson", (TOP_LEFT, "")), out)
    assert import_(Path(older), out) == 0
    (kept,) = read_geojson(out / "edits" / "mask" / "a.geojson")
    assert kept.geometry.symmetric_difference(shapes[0].geometry).area < 1e-6


def test_other_files_are_named_and_bad_ones_refused(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    draw(source / "aa.geojson", (LEFT, ""))
    draw(source / "zebra.geojson", (LEFT, ""))
    draw(source / "site%2Fc.geojson", (LEFT, "Ignore"))
    draw(source / "site%2Fb.geojson", (box(5000, 5000, 6000, 6000), ""))
    bow_tie = Polygon([(0, 0), (512, 512), (512, 0), (0, 512)])
    draw(source / "a.geojson", (bow_tie, ""))
    assert import_(source, out) == 3
    told = capsys.readouterr().err
    assert "zebra.geojson is of no slide" in told
    assert "aa.geojson is of no slide" in told
    assert "site/c: refused: site%2Fc.geojson covers no area" in told
    assert "site/b: refused: site%2Fb.geojson lies outside of b.tif" in told
    assert "1 outlines crossed themselves and were mended" in told
    assert "edited masks: 1 imported, 0 known before, 0 not changed, 2 refused" in told
    assert [p.name for p in (out / "edits").rglob("*.geojson")] == ["a.geojson"]


def test_a_dry_run_writes_nothing(out: Path, tmp_path: Path) -> None:
    assert import_(draw(tmp_path / "a.geojson", (LEFT, "")), out, "--dry-run") == 0
    assert not (out / "edits").exists()


def test_a_folder_without_slides_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_(draw(tmp_path / "a.geojson", (LEFT, "")), tmp_path / "out") == 2
    assert "has no slides.csv" in capsys.readouterr().err


def test_a_damaged_edit_stops_before_work(
    slide_folder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "edits" / "mask").mkdir(parents=True)
    (out / "edits" / "mask" / "a.geojson").write_text('{"features"')
    assert preprocess(slide_folder, out) == 2
    assert "a.geojson is no GeoJSON" in capsys.readouterr().err


BOUNDS = (256, 128, 640, 768)


@pytest.mark.parametrize(("origin", "shift"), [("bounds", (256, 128)), ("slide", (0, 0))])
def test_the_origin_is_that_of_the_bounds_unless_said_otherwise(
    slide_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crew_of_one: object,
    origin: str,
    shift: tuple[int, int],
) -> None:
    """On a slide with bounds, a square drawn at (x, y) comes to lie at the bounds plus (x, y)."""
    make = OpenSlideReader.__init__

    def with_bounds(self, *arguments, **more) -> None:
        make(self, *arguments, **more)
        self.info = replace(self.info, bounds0=BOUNDS)

    monkeypatch.setattr(OpenSlideReader, "__init__", with_bounds)
    out, slide = tmp_path / "out", slide_folder / "a.svs"
    square = box(256, 256, 512, 512)  # whole tiles, from either corner
    assert preprocess(slide, out, "--until", "tiles", "slides.reader=openslide") == 0
    assert import_(draw(tmp_path / "a.geojson", (square, "")), out, "--origin", origin) == 0
    assert preprocess(slide, out, "--until", "tiles", "slides.reader=openslide") == 0
    with h5py.File(out / "tiles" / "a.h5") as file:
        found = np.asarray(file["coords"])  # pyright: ignore[reportArgumentType]
    x, y, right, bottom = (np.asarray(square.bounds) + np.tile(shift, 2)).astype(int)
    drawn = {(i, j) for i in range(x, right, EDGE) for j in range(y, bottom, EDGE)}
    assert {(int(i), int(j)) for i, j in found} == drawn
    (shape,) = read_geojson(out / "tissue" / "a.geojson", (BOUNDS[0], BOUNDS[1]))
    assert np.abs(np.asarray(shape.geometry.bounds) - (x, y, right, bottom)).max() <= 16
