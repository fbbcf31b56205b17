"""What needs the slide itself, done in child processes: overlays, and pixels of single tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon

from wsi.annotations import read_shapes, regions_of
from wsi.errors import SlideError, WsiError
from wsi.explain import Legend, MapName, TileMaps, draw_heatmap, lesion_tiles, share_in, smooth
from wsi.files import publish_bytes
from wsi.slides import Slide, open_slide
from wsi.specs import SlidesSpec

RGB = NDArray[np.uint8]
_THUMBNAIL_PX = 1200
_TILE_PX = 224  # at most, of a tile in the gallery
_GRAZED = 1e-6  # of a tile's area: less is rounding
_MAX_UPSAMPLING = 16.0  # the gallery shows a tile's field of view, however coarse the slide


@dataclass(frozen=True)
class SlideAt:
    """Where a slide lies, and what its bag knows of it.

    Attributes:
        mpp: um per level-0 pixel (x, y) by which it was tiled.
        fingerprint: of the file that was tiled.
    """

    slide_id: str
    path: Path
    mpp: tuple[float, float]
    fingerprint: str

    def open(self, spec: SlidesSpec) -> Slide:
        """Return the open slide.

        Raises:
            SlideError: it cannot be opened, or is not the file the bag was made from.
        """
        table = self.mpp[0] if self.mpp[0] == self.mpp[1] else None
        slide = open_slide(self.path, self.slide_id, mpp=table, spec=spec)
        if slide.info.fingerprint != self.fingerprint:
            slide.close()
            raise SlideError(
                f"{self.path.name} is not the file that the bag of {self.slide_id} was made from — "
                "run `wsi preprocess` again, or give the right slides"
            )
        return slide


@dataclass(frozen=True, eq=False)
class Drawing:
    """Maps of one slide to draw.

    Attributes:
        pictures: where each map goes.
        lines: of text above each map.
        smoothing: standard deviation in tiles, 0 for none.
        annotations: file of outlines, or None.
    """

    at: SlideAt
    maps: TileMaps
    pictures: Mapping[MapName, Path]
    lines: Mapping[MapName, tuple[str, ...]]
    smoothing: float
    annotations: Path | None


@dataclass(frozen=True, eq=False)
class Drawn:
    """What a child has found out while drawing.

    Attributes:
        origin0: where GeoJSON counts from.
        lesion: bool (N,), tiles that show an annotated lesion; None without annotations.
        touched: bool (N,), tiles of which any part lies in one.
        problem: why nothing was drawn, in one line; empty where all was.
    """

    origin0: tuple[int, int] = (0, 0)
    lesion: NDArray[np.bool_] | None = None
    touched: NDArray[np.bool_] | None = None
    problem: str = ""


def draw_slide(drawing: Drawing, spec: SlidesSpec) -> Drawn:
    """Write the overlays of one slide."""
    try:
        return _drawn(drawing, spec)
    except WsiError as error:
        return Drawn(problem=str(error))


def _drawn(drawing: Drawing, spec: SlidesSpec) -> Drawn:
    maps = drawing.maps
    with drawing.at.open(spec) as slide:
        origin0 = slide.info.bounds0[0], slide.info.bounds0[1]
        thumbnail = slide.thumbnail(max(1.0, max(slide.info.bounds0[2:]) / _THUMBNAIL_PX))
    lesions = None if drawing.annotations is None else _lesions(drawing.annotations, origin0)
    for name, path in drawing.pictures.items():
        values = smooth(maps.values(name), maps.xy0, maps.size0, drawing.smoothing)
        legend = Legend(
            maps.slide_id, drawing.lines[name], against=_against(maps, name), toward=maps.target
        )
        picture = draw_heatmap(
            thumbnail, values, maps.xy0, maps.size0, legend, lesions or (), mpp=drawing.at.mpp
        )
        publish_bytes(path, encoded(picture, ".png"))
    if lesions is None:
        return Drawn(origin0)
    touched = share_in(maps.xy0, maps.size0, lesions) > _GRAZED
    return Drawn(origin0, lesion_tiles(maps.xy0, maps.size0, lesions), touched)


def _lesions(path: Path, origin0: tuple[int, int]) -> list[MultiPolygon]:
    return [region.geometry for region in regions_of(read_shapes(path, origin0), path.name)]


def _against(maps: TileMaps, name: MapName) -> str:
    return maps.rival if name in ("contrast", "leave-one-out") else f"against {maps.target}"


@dataclass(frozen=True, eq=False)
class Wanted:
    """Tiles of one slide to read: corners `xy0` (n, 2) and size `size0` in level-0 px."""

    at: SlideAt
    xy0: Sequence[tuple[int, int]]
    size0: tuple[float, float]


def read_wanted(wanted: Wanted, spec: SlidesSpec) -> list[RGB] | str:
    """Return the pixels of each tile, or why they cannot be read."""
    px = max(1, min(_TILE_PX, round(min(wanted.size0))))
    um_per_px = wanted.size0[0] * wanted.at.mpp[0] / px
    try:
        with wanted.at.open(spec) as slide:
            return [slide.read_at(xy0, (px, px), um_per_px, _MAX_UPSAMPLING) for xy0 in wanted.xy0]
    except WsiError as error:
        return str(error)


def encoded(picture: RGB, suffix: str, *options: Any) -> bytes:
    """Return a picture as the bytes of a file of that kind."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, bgr, list(options))
    if not done:
        raise SlideError(f"a picture of {picture.shape} cannot be written as {suffix} — give less")
    return data.tobytes()
