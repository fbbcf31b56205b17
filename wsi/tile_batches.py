"""A slide's tiles in batches, and what becomes of those that cannot be decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from wsi.errors import BadTilesError, RegionError
from wsi.slides import Slide
from wsi.tiling import TileGrid

_LOOK_ON = 256  # tiles read after one too many is bad, to say how many there are


@dataclass(frozen=True)
class BadTile:
    """A tile that cannot be decoded: its corner (x, y) in level-0 pixels, and why."""

    xy0: tuple[int, int]
    reason: str


@dataclass
class TileBatch:
    """Consecutive tiles of a grid.

    Attributes:
        rows: rows of the grid that `tiles` are.
        tiles: uint8 (h, w, 3) each.
        missing: how many more hold no data.
        bad: those that cannot be decoded.
    """

    rows: list[int] = field(default_factory=list)
    tiles: list[NDArray[np.uint8]] = field(default_factory=list)
    missing: int = 0
    bad: list[BadTile] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Return the number of tiles dealt with, of any kind."""
        return len(self.rows) + self.missing + len(self.bad)


def tile_batches(
    slide: Slide,
    grid: TileGrid,
    batch: int,
    max_bad: int = 0,
    rows: NDArray[np.integer] | None = None,
) -> Iterator[TileBatch]:
    """Yield the tiles of a grid in its order, at most `batch` at a time.

    Args:
        rows: which of them, in order; all when None.
        max_bad: how many tiles may fail to decode.

    Raises:
        BadTilesError: more fail.
    """
    wanted = np.arange(len(grid)) if rows is None else rows
    corners = map(tuple, grid.xy0[wanted].tolist())
    tiles = zip(wanted.tolist(), slide.read_tiles(corners, grid.tile_px, grid.mpp))
    current, bad = TileBatch(), []
    for row, tile in tiles:
        if isinstance(tile, RegionError):
            current.bad.append(_bad(grid, row, tile))
            bad.append(current.bad[-1])
            if len(bad) > max_bad:
                raise _too_many(slide, grid, bad, max_bad, tiles)
        elif tile is None:
            current.missing += 1
        else:
            current.rows.append(row)
            current.tiles.append(tile)
        if len(current.tiles) == batch:
            yield current
            current = TileBatch()
    if current.size:
        yield current


def _bad(grid: TileGrid, row: int, error: RegionError) -> BadTile:
    x, y = grid.xy0[row].tolist()
    return BadTile((x, y), str(error).partition(" — ")[0])  # what to do next is the slide's affair


def _too_many(
    slide: Slide,
    grid: TileGrid,
    bad: list[BadTile],
    max_bad: int,
    tiles: Iterator[tuple[int, NDArray[np.uint8] | RegionError | None]],
) -> BadTilesError:
    """Return the error of a slide, having read on a little to count what else is bad."""
    further = list(islice(tiles, _LOOK_ON))
    n = len(bad) + sum(isinstance(tile, RegionError) for _, tile in further)
    least = "at least " if next(tiles, None) is not None else ""
    x, y = bad[0].xy0
    name = slide.info.path.name
    return BadTilesError(
        f"{name}: {least}{n} of {len(grid)} tiles cannot be decoded, the first at level-0 "
        f"({x}, {y}): {bad[0].reason.removeprefix(f'{name}: ')} — copy the slide again from its "
        f"source, or leave such tiles out with --max-bad-tiles {n}",
        n,
    )
