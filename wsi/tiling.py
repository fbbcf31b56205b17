"""The tile grid: pure numpy, no input or output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.slides import SlideInfo

_ROUNDING = 1e-6

Fractions = Callable[[NDArray[np.integer], tuple[float, float]], NDArray[np.float32]]


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one slide, row by row.

    Attributes:
        xy0: int32 (N, 2), top-left corner in level-0 pixels.
        tissue: float32 (N,), tissue fraction of each tile.
        tile_px: tile edge in output pixels, of `mpp` um each.
        size0: tile size (w, h) in level-0 pixels, not rounded.
        level: level the tiles are read from.
        upsampling: how much finer than the slide `mpp` is; 1 when it is not.
        considered: tiles of the whole grid, kept or not.
        edge_tissue: share of the slide's tissue right of or below the last whole tile, in no tile
            of the grid however little tissue is asked for.
    """

    xy0: NDArray[np.int32]
    tissue: NDArray[np.float32]
    tile_px: int
    mpp: float
    size0: tuple[float, float]
    level: int
    upsampling: float
    considered: int
    edge_tissue: float = 0.0

    def __len__(self) -> int:
        return len(self.xy0)


def make_grid(
    info: SlideInfo,
    fraction: Fractions,
    *,
    tile_px: int,
    mpp: float,
    stride_um: float | None = None,
    min_tissue: float = 0.05,
    max_upsampling: float = 1.05,
) -> TileGrid:
    """Return the tiles of one global grid that hold at least `min_tissue` tissue.

    The grid is anchored at the origin of the slide's bounds, so tiles never overlap between
    fragments; all tiles lie wholly inside the bounds. Corners are whole level-0 pixels and are
    the truth: tiles are read exactly there.

    Args:
        fraction: tissue share of boxes, `TissueMask.fraction`.
        stride_um: step between tiles in um; one tile when None.

    Raises:
        MissingMppError: the slide has no resolution.
        NeedsUpsamplingError: the slide is coarser than `mpp` by more than `max_upsampling`.
    """
    upsampling = info.check_upsampling(mpp, max_upsampling)
    size0 = info.size0_of((tile_px, tile_px), mpp)
    step = size0 if stride_um is None else _step0(info, stride_um)
    corners = all_corners(info.bounds0, size0, step)
    tissue = fraction(corners, size0) if len(corners) else np.zeros(0, np.float32)
    kept = tissue >= min_tissue
    level = info.level_for((size0[0] / tile_px, size0[1] / tile_px))
    edge = _edge_tissue(fraction, info.bounds0, corners, size0)
    return TileGrid(
        corners[kept], tissue[kept], tile_px, mpp, size0, level, upsampling, len(corners), edge
    )


def all_corners(
    bounds0: tuple[int, int, int, int], size0: tuple[float, float], step0: tuple[float, float]
) -> NDArray[np.int32]:
    """Return every corner (N, 2) of the grid over `bounds0` (x, y, w, h), row by row."""
    x = _axis(bounds0[2], size0[0], step0[0]) + bounds0[0]
    y = _axis(bounds0[3], size0[1], step0[1]) + bounds0[1]
    rows, columns = np.meshgrid(y, x, indexing="ij")
    return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.int32)


def _edge_tissue(
    fraction: Fractions,
    bounds0: tuple[int, int, int, int],
    corners: NDArray[np.int32],
    size0: tuple[float, float],
) -> float:
    """Return the share of the tissue inside `bounds0` that lies beyond the grid's last tiles."""
    origin, extent = np.array([bounds0[:2]]), (float(bounds0[2]), float(bounds0[3]))
    tissue = float(fraction(origin, extent)[0]) * extent[0] * extent[1]
    if not tissue or not len(corners):
        return 1.0 if tissue else 0.0
    end = corners[-1] - origin[0] + size0
    covered = min(float(end[0]), extent[0]), min(float(end[1]), extent[1])
    inside = float(fraction(origin, covered)[0]) * covered[0] * covered[1]
    return max(0.0, 1 - inside / tissue)


def _axis(extent: float, size: float, step: float) -> NDArray[np.int64]:
    if size > extent * (1 + _ROUNDING):
        return np.zeros(0, np.int64)
    n = int((extent * (1 + _ROUNDING) - size) / step) + 1
    # Rounded down, so that a tile inside the bounds stays inside them.
    return np.floor(np.arange(n) * step + _ROUNDING).astype(np.int64)


def _step0(info: SlideInfo, stride_um: float) -> tuple[float, float]:
    w, h = info.size0_of((1, 1), stride_um)
    return w, h
