"""Which datasets a bag file holds, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wsi.bags.bag import Bag
from wsi.bags.sidecar import BagInfo


@dataclass(frozen=True)
class StoredBag:
    """What a backend finds in a file: the arrays by the names of `datasets`, and whose."""

    arrays: Mapping[str, np.ndarray]
    slide_id: object
    key: object

    def bag(self, info: BagInfo) -> Bag:
        """Return the bag that `info` describes.

        Raises:
            BagError: the arrays are not such a bag.
        """
        arrays = self.arrays
        quality = {name: arrays[name] for name in info.scores} or None
        first = arrays["features"], arrays["coords"], arrays["tissue"]
        return Bag(info.slide_id, *first, info.provenance, quality)


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
