"""Shapes in and out as QuPath GeoJSON, in level-0 pixels of the scanned bounds.

QuPath crops a slide to its bounds, so the origin of its files is the bounds origin; ours is the
slide's. `origin0` carries the difference: added on reading, subtracted on writing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shapely.affinity import translate
from shapely.errors import ShapelyError
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry

from wsi.errors import SlideError
from wsi.files import publish_bytes

_NAMESPACE = uuid.UUID("6f1c9c0e-3d0a-4a57-9c1b-3a1a7c1f0d52")


@dataclass(frozen=True)
class Shape:
    """A geometry in level-0 pixels with the class QuPath shows."""

    geometry: BaseGeometry
    name: str
    color: tuple[int, int, int] = (200, 0, 0)
    kind: Literal["annotation", "detection", "tile"] = "annotation"
    measurements: dict[str, float] = field(default_factory=dict)


def write_geojson(path: Path, shapes: Sequence[Shape], origin0: tuple[int, int] = (0, 0)) -> None:
    """Write `shapes` as a FeatureCollection that QuPath opens."""
    features = [_feature(k, s, origin0) for k, s in enumerate(shapes)]
    text = json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False)
    publish_bytes(path, text.encode())


def read_geojson(path: Path, origin0: tuple[int, int] = (0, 0)) -> list[Shape]:
    """Return the shapes of a GeoJSON file in level-0 pixels of the slide.

    Raises:
        SlideError: the file is not GeoJSON or a geometry is malformed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        features = content["features"] if isinstance(content, dict) else content
        return [_shape(feature, origin0) for feature in features]
    except (ValueError, LookupError, TypeError, AttributeError, ShapelyError) as error:
        raise SlideError(
            f"{path.name} is no GeoJSON FeatureCollection ({error}) — export it again"
        ) from error


def _feature(index: int, item: Shape, origin0: tuple[int, int]) -> dict[str, Any]:
    geometry = translate(item.geometry, -origin0[0], -origin0[1])
    properties: dict[str, Any] = {
        "objectType": item.kind,
        "classification": {"name": item.name, "color": list(item.color)},
    }
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
    )
