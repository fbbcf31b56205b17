"""Lesion recall: how much of what a pathologist outlined lies in the tiles that were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import union_all

from wsi.annotations import Region

State = Literal["covered", "partly", "missed", "no-tiles"]

MOST = 0.5
"""A lesion counts as covered when at least this share of its area lies in kept tiles."""

_NOTHING = 1e-6  # of a lesion's area: less is rounding


@dataclass(frozen=True)
class Lesion:
    """One annotated lesion of a slide.

    Attributes:
        lesion: its name in the annotation file.
        centroid0: a point (x, y) at its middle, level-0 pixels.
        area0: in level-0 pixels.
        area_mm2: None where the slide has no resolution.
        covered: share of its area in kept tiles, in [0, 1]; None where the slide has no tiles.
        state: `covered` (at least half), `partly`, `missed` (nothing), or `no-tiles` when the
            slide was not tiled.
    """

    slide_id: str
    lesion: str
    centroid0: tuple[float, float]
    area0: float
    area_mm2: float | None
    covered: float | None
    state: State


@dataclass(frozen=True)
class Recall:
    """What kept tiles cover of all lesions of all tiled slides.

    Attributes:
        lesions: how many there are on tiled slides.
        covered, partly, missed: how many of them, by state.
        touched: share of lesions that are not missed; None without lesions.
        area: share of the lesions' area in kept tiles, by um where slides have a resolution.
        no_tiles: lesions on slides that were not tiled; they enter no share.
    """

    lesions: int
    covered: int
    partly: int
    missed: int
    touched: float | None
    area: float | None
    no_tiles: int


def lesions_of(
    slide_id: str,
    regions: Sequence[Region],
    xy0: NDArray[np.integer] | None,
    size0: tuple[float, float],
    mpp: tuple[float, float] | None,
) -> list[Lesion]:
    """Return every lesion of a slide with the share of it that lies in kept tiles.

    Tiles that overlap count once.

    Args:
        regions: the lesions, holes cut out, level-0 pixels.
        xy0: (N, 2) top-left corners of the kept tiles, level-0 pixels; None when not tiled.
        size0: size (w, h) of a tile in level-0 pixels.
        mpp: um per level-0 pixel (x, y).
    """
    boxes = None
    if xy0 is not None:
        corner = np.asarray(xy0, np.float64).reshape(-1, 2)
        end = corner + size0
        boxes = np.asarray(shapely.box(corner[:, 0], corner[:, 1], end[:, 0], end[:, 1]), object)
    tree = None if boxes is None else shapely.STRtree(boxes)
    found = []
    for region in regions:
        shape = region.geometry
        share = None
        if boxes is not None and tree is not None:
            near = union_all(boxes[tree.query(shape)])
            share = min(1.0, shape.intersection(near).area / shape.area)
        point = shape.centroid
        mm2 = shape.area * mpp[0] * mpp[1] / 1e6 if mpp else None
        at = (point.x, point.y)
        found.append(Lesion(slide_id, region.name, at, shape.area, mm2, share, _state(share)))
    return found


def recall_of(lesions: Sequence[Lesion]) -> Recall:
    """Return the recall over lesions and over their area; lesions without tiles stand apart."""
    tiled = [lesion for lesion in lesions if lesion.covered is not None]
    counts = {
        state: sum(x.state == state for x in tiled) for state in ("covered", "partly", "missed")
    }
    areas = np.asarray([x.area0 if x.area_mm2 is None else x.area_mm2 for x in tiled])
    shares = np.asarray([x.covered for x in tiled], float)
    return Recall(
        lesions=len(tiled),
        **counts,
        touched=1 - counts["missed"] / len(tiled) if tiled else None,
        area=float((areas * shares).sum() / areas.sum()) if tiled else None,
        no_tiles=len(lesions) - len(tiled),
    )


def _state(share: float | None) -> State:
    if share is None:
        return "no-tiles"
    if share >= MOST:
        return "covered"
    return "partly" if share > _NOTHING else "missed"
