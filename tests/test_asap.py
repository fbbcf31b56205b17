"""ASAP XML as the CAMELYON challenges ship it."""

from __future__ import annotations

from pathlib import Path

import pytest
from shapely import Polygon

from wsi.asap import read_asap
from wsi.errors import SlideError


def annotation(name: str, group: str, corners: list[tuple[float, float]], kind: str = "Polygon"):
    points = "".join(
        f'<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in enumerate(corners)
    )
    return (
        f'<Annotation Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        f"<Coordinates>{points}</Coordinates></Annotation>"
    )


def write(path: Path, *annotations: str) -> Path:
    path.write_text(
        '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>'
        + "".join(annotations)
        + '</Annotations><AnnotationGroups><Group Name="_2" PartOfGroup="None" Color="#64FE2E">'
        "<Attributes /></Group></AnnotationGroups></ASAP_Annotations>"
    )
    return path


SQUARE: list[tuple[float, float]] = [(10, 20), (110.5, 20), (110.5, 220), (10, 220)]


def test_a_polygon_comes_with_name_group_and_corners(tmp_path: Path) -> None:
    (shape,) = read_asap(write(tmp_path / "a.xml", annotation("Annotation 0", "Tumor", SQUARE)))
    assert (shape.label, shape.name) == ("Annotation 0", "Tumor")
    assert shape.geometry.equals(Polygon(SQUARE))
    assert shape.geometry.area == 100.5 * 200


def test_corners_are_put_in_their_order(tmp_path: Path) -> None:
    text = write(tmp_path / "a.xml", annotation("x", "None", SQUARE)).read_text()
    first, last = (
        '<Coordinate Order="0" X="10" Y="20" />',
        '<Coordinate Order="3" X="10" Y="220" />',
    )
    (tmp_path / "b.xml").write_text(
        text.replace(first, "@").replace(last, first).replace("@", last)
    )
    (shape,) = read_asap(tmp_path / "b.xml")
    assert shape.geometry.is_valid
    assert shape.geometry.equals(Polygon(SQUARE))
    assert shape.name == ""


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("_0", "_0"),
        ("_1", "_1"),
        ("_2", "Exclude"),
        ("metastases", "metastases"),
        ("normal", "Exclude"),
        ("Exclusion", "Exclude"),
        ("None", ""),
    ],
)
def test_groups_are_classes_and_normal_tissue_is_a_hole(
    tmp_path: Path, group: str, name: str
) -> None:
    (shape,) = read_asap(write(tmp_path / "a.xml", annotation("x", group, SQUARE)))
    assert shape.name == name


@pytest.mark.parametrize(
    ("kind", "corners", "geometry"),
    [
        ("Rectangle", SQUARE, "Polygon"),
        ("Spline", SQUARE, "Polygon"),
        ("Dot", SQUARE[:1], "Point"),
        ("PointSet", SQUARE, "MultiPoint"),
    ],
)
def test_every_type_of_asap_is_read(tmp_path: Path, kind: str, corners, geometry: str) -> None:
    (shape,) = read_asap(write(tmp_path / "a.xml", annotation("x", "_0", corners, kind)))
    assert shape.geometry.geom_type == geometry


def test_an_annotation_never_drawn_is_left_out(tmp_path: Path) -> None:
    assert read_asap(write(tmp_path / "a.xml", annotation("x", "_0", []))) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no element"),
        ("slides are round", "syntax error"),
        ("<a><b></a>", "mismatched tag"),
        ("<gpx><trk/></gpx>", "no ASAP_Annotations"),
        (
            '<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><ASAP_Annotations>&c;'
            "</ASAP_Annotations>",
            "DOCTYPE",
        ),
        (
            '<!DOCTYPE x SYSTEM "file:///etc/passwd"><ASAP_Annotations></ASAP_Annotations>',
            "DOCTYPE",
        ),
        (f"<ASAP_Annotations>{annotation('x', '_0', SQUARE[:2])}</ASAP_Annotations>", "2 corners"),
        (
            '<ASAP_Annotations><Annotation Name="x"><Coordinates><Coordinate Order="0" X="1"/>'
            "</Coordinates></Annotation></ASAP_Annotations>",
            "no 'Y'",
        ),
        (
            '<ASAP_Annotations><Annotation><Coordinates><Coordinate Order="0" X="1" Y="left"/>'
            "</Coordinates></Annotation></ASAP_Annotations>",
            "left",
        ),
    ],
)
def test_what_is_no_asap_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "lesions.xml").write_text(text)
    with pytest.raises(SlideError, match=rf"lesions\.xml is no ASAP XML \(.*{told}.*\) — "):
        read_asap(tmp_path / "lesions.xml")
