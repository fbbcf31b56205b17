"""Which file is of which slide, and what area its shapes cover."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from shapely import LineString, MultiPolygon, Point, Polygon, box

from wsi.annotations import area_of, match_files, read_shapes, regions_of, share_inside
from wsi.errors import ConfigError, SlideError
from wsi.geojson import Shape, unchanged_hash, write_geojson

BOW_TIE = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])  # two triangles of 25 each


def test_an_area_is_the_union_less_the_holes() -> None:
    shapes = [
        Shape(box(0, 0, 10, 10), "Tissue"),
        Shape(box(5, 0, 20, 10), "Tumor"),
        Shape(box(2, 2, 4, 4), "Ignore"),
        Shape(box(6, 2, 8, 4), "ink*"),
        Shape(box(12, 2, 14, 4), "exclude"),
        Shape(box(100, 100, 110, 110), "Exclude"),
    ]
    area = area_of(shapes, "a.geojson")
    assert area.geometry.area == 200 - 3 * 4
    assert area.geometry.bounds == (0, 0, 20, 10)
    assert (area.mended, area.without_area) == (0, 0)


def test_an_outline_that_crosses_itself_is_mended_and_counted() -> None:
    area = area_of([Shape(BOW_TIE, "x"), Shape(Point(3, 3), "x")], "a")
    assert area.geometry.is_valid
    assert area.geometry.area == pytest.approx(50)
    assert (area.mended, area.without_area) == (1, 1)


@pytest.mark.parametrize(
    "shapes",
    [
        [],
        [Shape(Point(1, 1), "x"), Shape(LineString([(0, 0), (5, 5)]), "x")],
        [Shape(box(0, 0, 5, 5), "Ignore")],
        [Shape(box(1, 1, 2, 2), "x"), Shape(box(0, 0, 5, 5), "Exclude")],
        [Shape(Polygon([(0, 0), (5, 5), (9, 9)]), "x")],
    ],
)
def test_shapes_without_an_area_are_refused(shapes: list[Shape]) -> None:
    with pytest.raises(SlideError, match=r"a\.xml covers no area — draw"):
        area_of(shapes, "a.xml")


def test_coordinates_that_are_not_finite_are_refused() -> None:
    with pytest.raises(SlideError, match="not finite"):
        area_of([Shape(Polygon([(0, 0), (float("inf"), 1), (1, 1)]), "x")], "a.xml")


def test_each_shape_is_a_region_with_a_name() -> None:
    shapes = [
        Shape(box(0, 0, 10, 10), "Tumor", label="big one"),
        Shape(box(4, 4, 6, 6), "Exclude"),
        Shape(MultiPolygon([box(20, 0, 22, 2), box(30, 0, 32, 2)]), "Tumor"),
    ]
    found = {region.name: region.geometry.area for region in regions_of(shapes, "a")}
    assert found == {"big one": 96, "Tumor 3": 8}


def test_the_share_inside_bounds() -> None:
    assert share_inside(box(0, 0, 10, 10), (5, 0, 100, 100)) == 0.5
    assert share_inside(box(0, 0, 10, 10), (50, 0, 100, 100)) == 0


# -- files -------------------------------------------------------------------------------------

SLIDES = {
    "plain": Path("/s/plain.svs"),
    "site-a/x": Path("/s/site-a/x.tif"),
    "site-b/x": Path("/s/site-b/x.tif"),
    "site-b/y z": Path("/s/site-b/y z.mrxs"),
}


@pytest.mark.parametrize(
    ("name", "slide_id"),
    [
        ("plain.geojson", "plain"),
        ("plain.svs.geojson", "plain"),
        ("plain.xml", "plain"),
        ("plain.JSON", "plain"),
        ("plain.geojson.zip", "plain"),
        ("site-a%2Fx.geojson", "site-a/x"),
        ("site-b/x.geojson", "site-b/x"),
        ("site-b%2Fy z.geojson", "site-b/y z"),
        ("y z.mrxs.geojson", "site-b/y z"),
        ("deep/down/y z.xml", "site-b/y z"),
    ],
)
def test_a_file_finds_its_slide(tmp_path: Path, name: str, slide_id: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    for extra in (".hidden.geojson", "notes.txt"):
        (tmp_path / extra).write_text("")
    assert match_files(tmp_path, SLIDES).files == {slide_id: path}


def test_other_files_are_listed_with_what_could_be_meant(tmp_path: Path) -> None:
    for name in ("x.geojson", "plian.geojson", "zebra.xml"):
        (tmp_path / name).write_text("{}")
    matched = match_files(tmp_path, SLIDES)
    assert matched.files == {}
    assert {path.name: hint for path, hint in matched.unmatched.items()} == {
        "x.geojson": " (could be site-a/x, site-b/x)",
        "plian.geojson": " (did you mean 'plain'?)",
        "zebra.xml": "",
    }


def test_two_files_of_one_slide_are_refused(tmp_path: Path) -> None:
    for name in ("plain.geojson", "plain.xml"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"plain\.geojson and plain\.xml are both of slide plain"):
        match_files(tmp_path, SLIDES)


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no"):
        match_files(tmp_path, SLIDES)
    with pytest.raises(ConfigError, match="no such file or folder"):
        match_files(tmp_path / "gone", SLIDES)


def test_zipped_shapes_are_read_and_odd_archives_refused(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", [Shape(box(0, 0, 4, 4), "x")])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.geojson", "a.geojson")
    assert read_shapes(tmp_path / "a.zip", (7, 9))[0].geometry.bounds == (7, 9, 11, 13)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(tmp_path / "a.geojson", "a.geojson")
        archive.write(tmp_path / "a.geojson", "b.geojson")
    (tmp_path / "no.zip").write_bytes(b"PK no archive")
    for name, told in (("two.zip", "2 GeoJSON files"), ("no.zip", "not a zip")):
        with pytest.raises(SlideError, match=told):
            read_shapes(tmp_path / name)


def test_a_file_knows_whether_it_was_edited(tmp_path: Path) -> None:
    path, other = tmp_path / "a.geojson", tmp_path / "b.geojson"
    write_geojson(path, [Shape(box(0, 0, 4, 4), "x")])
    write_geojson(other, [Shape(box(0, 0, 4, 5), "x")])
    assert unchanged_hash(path) not in (None, unchanged_hash(other))
    other.write_text(path.read_text())
    assert unchanged_hash(other) == unchanged_hash(path)
    path.write_text(path.read_text().replace("4.0", "4.5"))
    assert unchanged_hash(path) is None
    path.write_text("[]")
    assert unchanged_hash(path) is None
