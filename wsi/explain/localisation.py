"""Whether a map points at what a pathologist outlined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon, union_all

Pair = tuple[float, float]

_NOTHING = 1e-6  # of a tile's area: less is rounding


def tiles_in(
    xy0: NDArray[np.integer], size0: Pair, regions: Sequence[Polygon | MultiPolygon]
) -> NDArray[np.float64]:
    """Return (N,): the share of each tile's area that lies in `regions`, level-0 px."""
    corner = np.asarray(xy0, np.float64)
    end = corner + size0
    boxes = shapely.box(corner[:, 0], corner[:, 1], end[:, 0], end[:, 1])
    area = union_all(list(regions))
    return shapely.area(shapely.intersection(boxes, area)) / (size0[0] * size0[1])


def tile_auroc(values: NDArray[np.float64], share: NDArray[np.float64]) -> float | None:
    """Return the AUROC of values (N,) for tiles that overlap a lesion, by their share (N,) in it.

    None where all tiles do, or none does.
    """
    from sklearn.metrics import roc_auc_score

    positive = share > _NOTHING
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, values))
