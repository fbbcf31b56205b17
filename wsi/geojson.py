"""Shapes in and out as QuPath GeoJSON, in level-0 pixels of the scanned bounds.

QuPath crops a slide to its bounds, so the origin of its files is the bounds origin; ours is the
slide's. `origin0` carries the difference: added on reading, subtracted on writing.
"""

from __future__ import annotations

import json
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shapely.affinity import translate
from shapely.errors import ShapelyError
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from wsi.errors import SlideError
from wsi.files import publish_bytes, sha256_json

_NAMESPACE = uuid.UUID("6f1c9c0e-3d0a-4a57-9c1b-3a1a7c1f0d52")
_HASH = "features_sha256"
_MAX_UNZIPPED = 2**31
_MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    ShapelyError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Shape:
    """A geometry in level-0 pixels with the class QuPath shows; `label` is its own name."""

    geometry: BaseGeometry
    name: str
    color: tuple[int, int, int] = (200, 0, 0)
    kind: Literal["annotation", "detection", "tile"] = "annotation"
    measurements: dict[str, float] = field(default_factory=dict)
    label: str = ""


def write_geojson(path: Path, shapes: Sequence[Shape], origin0: tuple[int, int] = (0, 0)) -> None:
    """Write `shapes` as a FeatureCollection that QuPath opens.

    Beside the features stands their hash, which other programs ignore: see `unchanged_hash`.
    """
    features = [_feature(k, s, origin0) for k, s in enumerate(shapes)]
    collection = {
        "type": "FeatureCollection",
        _HASH: sha256_json(features),
        "features": features,
    }
    publish_bytes(path, json.dumps(collection, allow_nan=False).encode())


def read_geojson(path: Path, origin0: tuple[int, int] = (0, 0)) -> list[Shape]:
    """Return the shapes of a GeoJSON file, plain or zipped, in level-0 pixels of the slide.

    The file holds a FeatureCollection, a list of features, or one feature.

    Raises:
        SlideError: the file is not GeoJSON or a geometry is malformed.
    """
    try:
        return [_shape(feature, origin0) for feature in _features(_content(path))]
    except _MALFORMED as error:
        raise SlideError(
            f"{path.name} is no GeoJSON of features{_told(error)} — export it again"
        ) from error


def unchanged_hash(path: Path) -> str | None:
    """Return the hash of the shapes we wrote to a file; None when it was edited, or is not ours."""
    try:
        content = _content(path)
        stated = content[_HASH]
        return stated if sha256_json(content["features"]) == stated else None
    except _MALFORMED:
        return None


def _content(path: Path) -> Any:
    if path.suffix.lower() != ".zip":
        return json.loads(path.read_text(encoding="utf-8"))
    with zipfile.ZipFile(path) as archive:
        inside = [
            m for m in archive.infolist() if m.filename.lower().endswith((".geojson", ".json"))
        ]
        if len(inside) != 1:
            raise ValueError(f"{len(inside)} GeoJSON files in it, not one")
        if inside[0].file_size > _MAX_UNZIPPED:
            raise ValueError(f"{inside[0].file_size} bytes unzipped")
        return json.loads(archive.read(inside[0]).decode())


def _features(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, dict) and content.get("type") == "Feature":
        return [content]
    return content["features"] if isinstance(content, dict) else content


def _told(error: Exception) -> str:
    """Return what is wrong in words for people; nothing where Python alone would understand."""
    if isinstance(error, KeyError):
        return f" (something in it has no '{error.args[0]}')"
    if isinstance(error, ValueError | ShapelyError | zipfile.BadZipFile):
        return f" ({error})"
    return ""


def _feature(index: int, item: Shape, origin0: tuple[int, int]) -> dict[str, Any]:
    geometry = translate(item.geometry, -origin0[0], -origin0[1])
    properties: dict[str, Any] = {
        "objectType": item.kind,
        "classification": {"name": item.name, "color": list(item.color)},
    }
    if item.label:
        properties["name"] = item.label
    if item.measurements:
        properties["measurements"] = item.measurements
    return {
        "type": "Feature",
        # Derived, not drawn, so that the same shapes give the same file.
        "id": str(uuid.uuid5(_NAMESPACE, f"{index} {item.name} {geometry.wkt}")),
        "geometry": mapping(geometry),
        "properties": properties,
    }


def _shape(feature: dict[str, Any], origin0: tuple[int, int]) -> Shape:
    properties = feature.get("properties") or {}
    classification = properties.get("classification") or {}
    color = classification.get("color") or (200, 0, 0)
    return Shape(
        translate(shape(feature["geometry"]), origin0[0], origin0[1]),
        str(classification.get("name", "")),
        (int(color[0]), int(color[1]), int(color[2])),
        properties.get("objectType", "annotation"),
        dict(properties.get("measurements") or {}),
        str(properties.get("name") or ""),
    )
