"""Tissue drawn or restricted by a person: kept beside the outputs, stronger than any method.

`<folder>/mask/<id>.geojson` replaces a slide's mask, `include/<id>.geojson` and
`exclude/<id>.geojson` restrict it. No run writes here: a new import does, and removing a file
takes its edit back. The files have QuPath's origin, as all GeoJSON that we write.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon

from wsi.annotations import area_of
from wsi.files import file_name_of, sha256_json
from wsi.geojson import Shape, read_geojson, write_geojson
from wsi.slides import SlideInfo
from wsi.tissue.mask import TissueMask

EditKind = Literal["mask", "include", "exclude"]

_COLOR = (0, 158, 115)


@dataclass(frozen=True)
class Edits:
    """Shapes in level-0 pixels that change a slide's tissue; all three may be there.

    Attributes:
        mask: stands in place of what the method found.
        include: tissue outside of it is left out.
        exclude: tissue inside of it is left out.
    """

    mask: MultiPolygon | None = None
    include: MultiPolygon | None = None
    exclude: MultiPolygon | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) is not None for f in fields(self))

    @property
    def sha256(self) -> str:
        """Return the hash of all shapes, whatever order their corners were written in."""
        areas = {f.name: getattr(self, f.name) for f in fields(self)}
        return sha256_json({k: _digest(area) for k, area in areas.items() if area is not None})

    def apply(self, tissue: TissueMask) -> TissueMask:
        """Return `tissue` as the edits want it, with flags `edited` and `roi` that say so."""
        if not self:
            return tissue
        mask, flags = tissue.mask, [flag for flag in tissue.flags if flag != "empty"]
        method, params = tissue.method, tissue.params
        if self.mask is not None:
            mask, flags, method, params = filled(self.mask, tissue), ["edited"], "edited", {}
        if self.include is not None:
            mask = mask & filled(self.include, tissue)
        if self.exclude is not None:
            mask = mask & ~filled(self.exclude, tissue)
        if self.include is not None or self.exclude is not None:
            flags.append("roi")
        if not mask.any():
            flags.append("empty")
        return replace(tissue, mask=mask, method=method, params=params, flags=tuple(flags))


def edit_path(folder: Path, kind: EditKind, slide_id: str) -> Path:
    """Return where an edit of a slide lies, whether or not there is one."""
    return folder / kind / f"{file_name_of(slide_id)}.geojson"


def read_edits(folder: Path, info: SlideInfo) -> Edits:
    """Return the edits of a slide below `folder`.

    Raises:
        SlideError: a file is damaged, or holds no area.
    """
    paths = {
        f.name: folder / f.name / f"{file_name_of(info.slide_id)}.geojson" for f in fields(Edits)
    }
    origin0 = info.bounds0[0], info.bounds0[1]
    found = {
        kind: area_of(read_geojson(path, origin0), path.name).geometry
        for kind, path in paths.items()
        if path.is_file()
    }
    return Edits(**found)


def write_edit(folder: Path, kind: EditKind, info: SlideInfo, area: MultiPolygon) -> Path:
    """Write one edit of a slide, in place of an earlier one of its kind, and return its path."""
    path = edit_path(folder, kind, info.slide_id)
    name = "Tissue" if kind == "mask" else "Region"
    shapes = [Shape(part, name, _COLOR) for part in area.geoms]
    write_geojson(path, shapes, (info.bounds0[0], info.bounds0[1]))
    return path


def filled(area: MultiPolygon, tissue: TissueMask) -> NDArray[np.bool_]:
    """Return the pixels (H, W) of `tissue` whose centres lie in `area`.

    By the even-odd rule along rows, so holes need no case of their own; exact, where drawing
    functions round corners to pixels and widen outlines.
    """
    H, W = tissue.mask.shape
    start, end = _edges(area, tissue)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first, last = (np.clip(np.ceil(y), 0, H).astype(int) for y in (low, high))
    crossed = last - first
    edge = np.repeat(np.arange(len(crossed)), crossed)
    row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
    slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
    x = start[edge, 0] + (row - start[edge, 1]) * slope
    toggles = np.zeros((H, W + 1), np.uint8)
    np.bitwise_xor.at(toggles, (row, np.clip(np.ceil(x), 0, W).astype(int)), 1)
    return np.bitwise_xor.accumulate(toggles, axis=1)[:, :W].astype(bool)


def _edges(
    area: MultiPolygon, tissue: TissueMask
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both ends (k, 2) of every edge, in mask pixels whose centres are whole numbers."""
    rings, ring = shapely.get_coordinates(
        shapely.get_rings(shapely.get_parts(area)), return_index=True
    )
    xy = (rings - tissue.origin0) / tissue.scale - 0.5
    same = ring[1:] == ring[:-1]
    return xy[:-1][same], xy[1:][same]


def _digest(area: MultiPolygon) -> str:
    return hashlib.sha256(shapely.to_wkb(shapely.normalize(area))).hexdigest()
