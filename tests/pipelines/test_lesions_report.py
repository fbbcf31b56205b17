"""`wsi preprocess --lesions`: what kept tiles cover of what was annotated."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from shapely import Polygon, box, union_all

from pipelines.cli import run_command
from wsi.bags import open_store
from wsi.geojson import Shape, write_geojson

SETTINGS = ("tiling.mpp=1.0", "tiling.tile_px=64")
EDGE = 128
INSIDE = box(420, 420, 620, 600)  # in the middle of the disc of tissue
CORNER = box(2, 2, 100, 60)  # on glass
ACROSS = box(0, 480, 400, 540)  # from glass into tissue


def preprocess(slides: Path, out: Path, *words: object) -> int:
    return run_command(
        ["preprocess", *SETTINGS, "--slides", str(slides), "--out", str(out), *map(str, words)]
    )


def rows(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (out / "lesions.csv").open(encoding="utf-8", newline="") as handle:
        return {(row["slide_id"], row["lesion"]): row for row in csv.DictReader(handle)}


def share(area: Polygon, corners: np.ndarray) -> float:
    tiles = union_all([box(x, y, x + EDGE, y + EDGE) for x, y in corners.tolist()])
    return area.intersection(tiles).area / area.area


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    folder = tmp_path / "lesions"
    folder.mkdir()
    named = {"inside": INSIDE, "corner": CORNER, "across": ACROSS}
    write_geojson(folder / "a.geojson", [Shape(s, "Tumor", label=k) for k, s in named.items()])
    write_geojson(folder / "glass.geojson", [])
    points = [(420, 420), (620, 420), (620, 600), (420, 600)]
    corners = "".join(
        f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(points)
    )
    (folder / "b.xml").write_text(
        '<ASAP_Annotations><Annotations><Annotation Name="Annotation 0" Type="Polygon" '
        f'PartOfGroup="_0"><Coordinates>{corners}</Coordinates></Annotation></Annotations>'
        "</ASAP_Annotations>"
    )
    return folder


@pytest.mark.parametrize("until", ["tiles", "bags"])
def test_each_lesion_is_a_row_and_missed_ones_are_named(
    slide_folder: Path,
    lesions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    until: str,
) -> None:
    out = tmp_path / "out"
    write_geojson(lesions / "zebra.geojson", [Shape(INSIDE, "Tumor")])
    assert preprocess(slide_folder, out, "--lesions", lesions, "--until", until, "--json") == 0
    said = capsys.readouterr()
    with h5py.File(out / "tiles" / "a.h5") as file:
        corners = np.asarray(file["coords"])  # pyright: ignore[reportArgumentType]
    found = rows(out)
    assert set(found) == {
        ("a", "inside"),
        ("a", "corner"),
        ("a", "across"),
        ("site/b", "Annotation 0"),
    }
    for name, area in (("inside", INSIDE), ("corner", CORNER), ("across", ACROSS)):
        row = found["a", name]
        assert float(row["covered"]) == pytest.approx(share(area, corners), abs=1e-4)
        assert float(row["area_mm2"]) == pytest.approx(area.area * 0.25e-6, rel=1e-5)
    assert 0.2 < float(found["a", "across"]["covered"]) < 0.9
    assert [found["a", n]["state"] for n in ("inside", "corner")] == ["covered", "missed"]
    assert "missed lesion: a: corner at (51, 31), 0.00142 mm2" in said.err
    assert "zebra.geojson is of none of the slides" in said.err
    recall = json.loads(said.out)["lesions"]
    assert (recall["lesions"], recall["missed"], recall["no_tiles"]) == (4, 1, 0)
    assert recall["touched"] == 0.75
    areas = [float(row["area_mm2"]) for row in found.values()]
    shares = [float(row["covered"]) for row in found.values()]
    assert recall["area"] == pytest.approx(np.average(shares, weights=areas), abs=1e-4)
    assert [m["lesion"] for m in recall["missed_lesions"]] == ["corner"]


def test_slides_that_are_done_are_counted_without_doing_them_again(
    slide_folder: Path, lesions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert preprocess(slide_folder, out) == 0
    assert not (out / "lesions.csv").exists()
    before = {p: p.stat().st_mtime_ns for p in (out / "bags").rglob("*")}
    assert preprocess(slide_folder, out, "--lesions", lesions) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "bags").rglob("*")} == before
    assert rows(out)["a", "inside"]["covered"] == "1.0000"


def test_tiles_of_another_recipe_are_not_mistaken_for_these(
    slide_folder: Path, lesions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert preprocess(slide_folder, out) == 0
    with h5py.File(out / "tiles" / "a.h5", "r+") as file:  # as many tiles, elsewhere and larger
        file["coords"][:] = 0  # pyright: ignore[reportIndexIssue]
        file["coords"].attrs["tile_px"] = 128
    assert preprocess(slide_folder, out, "--lesions", lesions) == 0
    bag = open_store(out / "bags").read("a")
    assert float(rows(out)["a", "across"]["covered"]) == pytest.approx(
        share(ACROSS, bag.xy0), abs=1e-4
    )


def test_a_slide_without_tiles_counts_apart(
    slide_folder: Path, lesions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ("tiling.mpp=0.2", "--until", "tiles", "--lesions", lesions, "--json")
    assert preprocess(slide_folder, out, *words) == 3  # finer than the slides are
    said = capsys.readouterr()
    assert "4 lesions lie on slides without tiles: a, site/b" in said.err
    assert {row["state"] for row in rows(out).values()} == {"no-tiles"}
    assert json.loads(said.out)["lesions"]["touched"] is None


def test_a_bad_file_stops_before_work(
    slide_folder: Path, lesions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (lesions / "b.xml").write_text("<gpx/>")
    out = tmp_path / "out"
    assert preprocess(slide_folder, out, "--lesions", lesions) == 2
    assert "b.xml is no ASAP XML" in capsys.readouterr().err
    assert not (out / "bags").exists()
