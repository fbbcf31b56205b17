"""Shapes from ASAP XML, the annotation format of CAMELYON, in level-0 pixels of the slide.

ASAP counts from the corner of the slide, not of its scanned bounds. A shape's class is its group.
Groups whose shapes are cut out of the others, by the conventions of the two challenges:

- CAMELYON16: `_0` and `_1` are tumour, `_2` is normal tissue inside of them;
- CAMELYON17: `metastases` are tumour, `normal` is normal tissue inside of them;
- `Exclusion`, in files of other authors.

They come as class `Exclude`. Splines are taken through their control points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.parsers import expat

from shapely import MultiPoint, Point, Polygon
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from wsi.errors import SlideError
from wsi.geojson import Shape

HOLE_GROUPS = ("_2", "normal", "exclusion")
"""Groups, in any case, that are cut out of the others."""

_AREAS = ("polygon", "spline", "rectangle")
_COLORS = {"tumour": (200, 0, 0), "hole": (0, 158, 115)}


def read_asap(path: Path) -> list[Shape]:
    """Return the shapes of an ASAP file: class by group, label by the annotation's name.

    Raises:
        SlideError: the file is no ASAP XML, has a DOCTYPE, or a shape is malformed.
    """
    reader = _Reader()
    parser = expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    # Entities live in a DOCTYPE, which ASAP never writes: without one nothing can expand.
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(path.read_bytes(), True)
        if not reader.is_asap:
            raise ValueError("no ASAP_Annotations in it")
    except (expat.ExpatError, ValueError, KeyError, ShapelyError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise SlideError(f"{path.name} is no ASAP XML ({reason}) — save it again") from error
    return reader.shapes


def _refuse_doctype(*_: object) -> None:
    raise ValueError("it has a DOCTYPE, which is refused for safety")


class _Reader:
    """Collects annotations from the events of the parser."""

    def __init__(self) -> None:
        self.is_asap = False
        self.shapes: list[Shape] = []
        self._annotation: dict[str, str] | None = None
        self._points: list[tuple[float, float, float]] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "ASAP_Annotations":
            self.is_asap = True
        elif tag == "Annotation":
            self._annotation, self._points = attributes, []
        elif tag == "Coordinate" and self._annotation is not None:
            order, x, y = (float(attributes[name]) for name in ("Order", "X", "Y"))
            self._points.append((order, x, y))

    def end(self, tag: str) -> None:
        if tag != "Annotation" or self._annotation is None:
            return
        if self._points:  # ASAP saves an annotation that was begun and never drawn
            self.shapes.append(_shape(self._annotation, self._points))
        self._annotation = None


def _shape(annotation: dict[str, Any], points: list[tuple[float, float, float]]) -> Shape:
    corners = [(x, y) for _, x, y in sorted(points, key=lambda point: point[0])]
    group = annotation.get("PartOfGroup", "None")
    hole = group.casefold() in HOLE_GROUPS
    name = "Exclude" if hole else "" if group == "None" else group
    color = _COLORS["hole" if hole else "tumour"]
    kind = annotation.get("Type", "Polygon").casefold()
    return Shape(_geometry(kind, corners), name, color, label=annotation.get("Name", ""))


def _geometry(kind: str, corners: list[tuple[float, float]]) -> BaseGeometry:
    if kind in _AREAS and len(corners) >= 3:
        return Polygon(corners)
    if kind in _AREAS:
        raise ValueError(f"a {kind} of {len(corners)} corners")
    return Point(corners[0]) if len(corners) == 1 else MultiPoint(corners)
