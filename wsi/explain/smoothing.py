"""Smoothing over neighbouring tiles, which tissue that ends does not dim."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial import KDTree

Float64 = NDArray[np.float64]
Pair = tuple[float, float]

_REACH = 3.0  # standard deviations


def smooth(values: Float64, xy0: NDArray[np.integer], size0: Pair, sigma: float) -> Float64:
    """Return (N,): the Gaussian mean of values (N,) over the tiles around each.

    Weights are divided by their sum over the tiles that exist, so that glass counts for nothing
    and an even map stays even up to the edge of the tissue. Sums over tiles are not kept.

    Args:
        sigma: standard deviation in tile sizes; 0 changes nothing.
    """
    if sigma <= 0:
        return values
    place = np.asarray(xy0, np.float64) / size0
    tree = KDTree(place)
    near = tree.sparse_distance_matrix(tree, _REACH * sigma, output_type="coo_matrix")
    weight = np.exp(-0.5 * (near.data / sigma) ** 2)
    kernel = csr_array((weight, (near.row, near.col)), shape=(len(values), len(values)))
    return (kernel @ values) / kernel.sum(axis=1)
