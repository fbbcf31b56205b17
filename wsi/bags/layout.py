"""Which datasets a bag file holds, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wsi.bags.bag import Bag
from wsi.bags.sidecar import BagInfo


def datasets(info: BagInfo) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of every dataset in the bag file of `info`."""
    n = info.n
    first: dict[str, tuple[tuple[int, ...], str]] = {
        "features": ((n, info.dim), info.dtype),
        "coords": ((n, 2), "int32"),
        "tissue": ((n,), "float16"),
    }
    return first | dict.fromkeys(info.scores, ((n,), "float16"))


def arrays_of(bag: Bag) -> dict[str, np.ndarray]:
    """Return the datasets of a bag by the names they have in its file."""
    first = {"features": bag.features, "coords": bag.xy0, "tissue": bag.tissue}
    return first | dict(bag.quality or {})


def bag_of(info: BagInfo, arrays: Mapping[str, np.ndarray]) -> Bag:
    """Return the bag, or the rows of it, that `arrays` hold.

    Raises:
        BagError: the arrays are not such a bag.
    """
    quality = {name: arrays[name] for name in info.scores} or None
    first = arrays["features"], arrays["coords"], arrays["tissue"]
    return Bag(info.slide_id, *first, info.provenance, quality)
