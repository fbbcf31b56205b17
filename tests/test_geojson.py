"""Shapes as QuPath reads and writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from shapely import MultiPolygon, Point, Polygon, box

from wsi.errors import SlideError
from wsi.geojson import Shape, read_geojson, write_geojson

WITH_HOLE = Polygon([(0, 0), (100, 0), (100, 80), (0, 80)], [[(10, 10), (20, 10), (20, 20)]])


def test_shapes_survive_writing_and_reading(tmp_path: Path) -> None:
    shapes = [
        Shape(WITH_HOLE, "Tumor", (1, 2, 3), "detection", {"score": 0.25}),
        Shape(MultiPolygon([box(0, 0, 1, 1), box(5, 5, 6, 7)]), "Tissue"),
    ]
    write_geojson(tmp_path / "a.geojson", shapes)
    assert read_geojson(tmp_path / "a.geojson") == shapes


def test_the_file_holds_what_qupath_expects(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", [Shape(box(110, 220, 130, 250), "Tumor")], (100, 200))
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    (feature,) = content["features"]
    assert feature["type"] == "Feature"
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"] == {"name": "Tumor", "color": [200, 0, 0]}
    ring = feature["geometry"]["coordinates"][0]
    assert {tuple(p) for p in ring} == {(10, 20), (30, 20), (30, 50), (10, 50)}


def test_the_origin_is_added_again_on_reading(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", [Shape(WITH_HOLE, "x")], (100, 200))
    assert read_geojson(tmp_path / "a.geojson", (100, 200))[0].geometry.equals(WITH_HOLE)
    assert read_geojson(tmp_path / "a.geojson")[0].geometry.bounds == (-100, -200, 0, -120)


def test_the_same_shapes_give_the_same_file(tmp_path: Path) -> None:
    shapes = [Shape(box(0, 0, 1, 1), "a"), Shape(box(0, 0, 1, 1), "a")]
    for name in ("one", "two"):
        write_geojson(tmp_path / name, shapes)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    features = json.loads((tmp_path / "one").read_text())["features"]
    assert features[0]["id"] != features[1]["id"]


def test_a_bare_list_of_features_and_missing_properties_are_read(tmp_path: Path) -> None:
    feature = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4]}}
    (tmp_path / "a.geojson").write_text(json.dumps([feature, feature | {"properties": None}]))
    found = read_geojson(tmp_path / "a.geojson")
    assert [(s.geometry.x, s.geometry.y, s.name) for s in found] == [(3, 4, "")] * 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_feature_by_itself_is_read(tmp_path: Path) -> None:
    feature = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 4]}}
    (tmp_path / "a.geojson").write_text(json.dumps(feature))
    (found,) = read_geojson(tmp_path / "a.geojson", (10, 20))
    assert found.geometry.equals(Point(13, 24))


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "{}",
        "17",
        '{"features": [{"geometry": null}]}',
        '{"features": [{}]}',
        '{"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]}',
        '{"features": [{"geometry": {"type": "Blob", "coordinates": []}}]}',
        '{"features": ["x"]}',
        '{"type": "Feature"}',
        '{"type": "Feature", "geometry": {"type": "Polygon"}}',
        '{"features": [{"geometry": {"type": "Point", "coordinates": [0, 0]}, "properties":'
        ' {"classification": {"name": "x", "color": [1]}}}]}',
    ],
)
def test_what_is_no_geojson_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "shapes.geojson").write_text(text)
    with pytest.raises(SlideError, match=r"shapes\.geojson is no GeoJSON.* — ") as told:
        read_geojson(tmp_path / "shapes.geojson")
    assert not re.search(r"\('\w+'\)|object|attribute|NoneType", str(told.value))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "shapes.geojson").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SlideError, match="shapes"):
        read_geojson(tmp_path / "shapes.geojson")
