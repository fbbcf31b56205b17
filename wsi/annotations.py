"""Drawings of people, from any tool: which file is of which slide, and what area it stands for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from shapely import MultiPolygon, Polygon, union_all
from shapely.geometry.base import BaseGeometry

from wsi.asap import read_asap
from wsi.errors import ConfigError, SlideError
from wsi.files import file_name_of
from wsi.findings import few
from wsi.geojson import Shape, read_geojson
from wsi.registry import suggest

SUFFIXES = (".geojson", ".json", ".zip", ".xml")
HOLE_CLASSES = ("ignore", "exclude")
"""Classes, in any case, whose shapes are cut out of the others; so are those that end in `*`."""


@dataclass(frozen=True)
class Area:
    """What shapes cover, holes cut out, in level-0 pixels.

    Attributes:
        mended: shapes whose outline crossed itself and was mended.
        without_area: points and lines, which cover nothing.
    """

    geometry: MultiPolygon
    mended: int
    without_area: int


@dataclass(frozen=True)
class Region:
    """One shape that is no hole, with the holes cut out; `name` is its label, class or number."""

    name: str
    geometry: MultiPolygon


@dataclass(frozen=True)
class Matched:
    """Files by the slide they belong to; the unmatched ones with what could be meant."""

    files: dict[str, Path] = field(default_factory=dict)
    unmatched: dict[Path, str] = field(default_factory=dict)


def read_shapes(path: Path, bounds_origin0: tuple[int, int] = (0, 0)) -> list[Shape]:
    """Return the shapes of a GeoJSON (plain or zipped) or ASAP XML file, in level-0 pixels.

    Args:
        bounds_origin0: where GeoJSON counts from; ASAP always counts from the slide's corner.

    Raises:
        SlideError: the file is not of its format.
    """
    if path.suffix.lower() == ".xml":
        return read_asap(path)
    return read_geojson(path, bounds_origin0)


def is_hole(shape: Shape) -> bool:
    """Return whether a shape is cut out of the others: class Ignore, Exclude, or ending in `*`."""
    return shape.name.casefold() in HOLE_CLASSES or shape.name.endswith("*")


def area_of(shapes: Sequence[Shape], file: str) -> Area:
    """Return the area that `shapes` cover together, less the holes.

    Args:
        file: what the shapes come from, for messages.

    Raises:
        SlideError: nothing is left, or a coordinate is not finite.
    """
    regions = regions_of(shapes, file)
    covered = _polygons(union_all([region.geometry for region in regions]))
    if covered.is_empty:
        raise SlideError(f"{file} covers no area — draw at least one closed shape that is no hole")
    mended = sum(not shape.geometry.is_valid for shape in shapes)
    return Area(covered, mended, sum(_polygons(s.geometry).is_empty for s in shapes))


def regions_of(shapes: Sequence[Shape], file: str) -> list[Region]:
    """Return every shape with an area that is no hole, the holes cut out of it.

    Outlines that cross themselves are mended.

    Raises:
        SlideError: a coordinate is not finite.
    """
    if not all(np.isfinite(shapely.get_coordinates(shape.geometry)).all() for shape in shapes):
        raise SlideError(f"{file} has coordinates that are not finite — export it again")
    holes = union_all([_polygons(shape.geometry) for shape in shapes if is_hole(shape)])
    drawn = [(k, shape) for k, shape in enumerate(shapes, start=1) if not is_hole(shape)]
    cut = (
        Region(
            shape.label or f"{shape.name or 'shape'} {k}",
            _polygons(_polygons(shape.geometry) - holes),
        )
        for k, shape in drawn
    )
    return [region for region in cut if not region.geometry.is_empty]


def _polygons(geometry: BaseGeometry) -> MultiPolygon:
    """Return the part of a geometry that has an area, valid."""
    valid = geometry if geometry.is_valid else shapely.make_valid(geometry)
    parts = [p for p in shapely.get_parts(shapely.get_parts(valid)) if isinstance(p, Polygon)]
    return MultiPolygon([part for part in parts if part.area > 0])


def annotation_files(source: Path) -> list[Path]:
    """Return the annotation files that `source` is, or that lie below it.

    Raises:
        ConfigError: there are none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ConfigError(f"{source}: no such file or folder — check the path")
    files = [p for p in sorted(source.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
    visible = [p for p in files if not any(x.startswith(".") for x in p.relative_to(source).parts)]
    if not visible:
        raise ConfigError(f"{source} holds no {', '.join(SUFFIXES)} file — check the path")
    return visible


def match_files(source: Path, slides: Mapping[str, Path]) -> Matched:
    """Return which slide each file of `source` belongs to, by name.

    A file is named by the slide's id (with folders, or percent-encoded), its file name with or
    without extension, or the id's last part; the surer of these first.

    Args:
        slides: the file of every slide, by id.

    Raises:
        ConfigError: there are no files, or two of them belong to one slide.
    """
    surer, weaker = _names(slides)
    matched = Matched()
    for path in annotation_files(source):
        stem = _stem(path.name)
        below = path.relative_to(source).with_name(stem).as_posix() if source.is_dir() else stem
        ids = surer.get(below) or surer.get(stem) or weaker.get(stem) or set()
        if len(ids) != 1:
            near = suggest(stem, [*surer, *weaker])
            matched.unmatched[path] = f" (could be {few(sorted(ids))})" if ids else near
            continue
        (slide_id,) = ids
        if slide_id in matched.files:
            raise ConfigError(
                f"{matched.files[slide_id].name} and {path.name} are both of slide {slide_id} — "
                "keep one of them"
            )
        matched.files[slide_id] = path
    return matched


def _names(slides: Mapping[str, Path]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return the ids by their sure names and by those that several slides may share."""
    surer: dict[str, set[str]] = defaultdict(set)
    weaker: dict[str, set[str]] = defaultdict(set)
    for slide_id, path in slides.items():
        for name in (slide_id, file_name_of(slide_id)):
            surer[name].add(slide_id)
        for name in (path.name, path.stem, slide_id.rsplit("/", 1)[-1]):
            weaker[name].add(slide_id)
    return surer, weaker


def _stem(name: str) -> str:
    """Return the file name without the suffixes of annotations: `x.svs.geojson.zip` -> `x.svs`."""
    for suffix in (".zip", ".geojson", ".json", ".xml"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def share_inside(area: BaseGeometry, bounds0: Iterable[int]) -> float:
    """Return the share of an area that lies inside bounds (x, y, w, h)."""
    x, y, w, h = bounds0
    return area.intersection(shapely.box(x, y, x + w, y + h)).area / area.area
