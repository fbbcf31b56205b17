"""Whether a map points at what a pathologist outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon, union_all

Pair = tuple[float, float]

HALF = 0.5
"""Share of a tile in lesions, or of a lesion in a tile, from which the tile counts as lesion."""


def share_in(
    xy0: NDArray[np.integer], size0: Pair, regions: Sequence[Polygon | MultiPolygon]
) -> NDArray[np.float64]:
    """Return the share (N,) of each tile's area that lies in `regions`, level-0 px."""
    boxes = _boxes(xy0, size0)
    return shapely.area(shapely.intersection(boxes, union_all(list(regions)))) / _area(size0)


def lesion_tiles(
    xy0: NDArray[np.integer], size0: Pair, regions: Sequence[Polygon | MultiPolygon]
) -> NDArray[np.bool_]:
    """Return bool (N,): tiles that lie by half in lesions, or hold half of a smaller one.

    A tile that an outline merely grazes shows no lesion, and no map should point at it.
    """
    boxes = _boxes(xy0, size0)
    found = share_in(xy0, size0, regions) >= HALF
    for region in regions:
        if region.area < _area(size0):
            found |= shapely.area(shapely.intersection(boxes, region)) >= HALF * region.area
    return found


def tile_auroc(values: NDArray[np.float64], positive: NDArray[np.bool_]) -> float | None:
    """Return the AUROC of values (N,) for the positive tiles (N,).

    None where all tiles are, or none is.
    """
    from sklearn.metrics import roc_auc_score

    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, values))


def _boxes(xy0: NDArray[np.integer], size0: Pair) -> NDArray[np.object_]:
    corner = np.asarray(xy0, np.float64)
    end = corner + size0
    return np.asarray(shapely.box(corner[:, 0], corner[:, 1], end[:, 0], end[:, 1]), object)


def _area(size0: Pair) -> float:
    return size0[0] * size0[1]
