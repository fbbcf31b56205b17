"""What a bag is without its tiles: how many there are, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi.bags.scores import ALL_TILES, TileFilter
from wsi.errors import BagError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class BagMeans:
    """Tile counts and mean features of bags, in the order of `ids`.

    Attributes:
        tiles: (n,) int64.
        features: (n, D) float64.
    """

    ids: tuple[str, ...]
    tiles: Array
    features: Array


def bag_means(
    read: Callable[[str], Any],
    ids: Sequence[str],
    tiles: TileFilter = ALL_TILES,
    looked: Callable[[], object] = lambda: None,
) -> BagMeans:
    """Return tile counts and mean features, holding one bag at a time.

    Args:
        read: id to bag, with features (N, D) and what `tiles` looks at.
        tiles: which tiles count.
        looked: called after each bag.

    Raises:
        BagError: there is no bag, or a bag has no tile left or features that are not finite.
    """
    if not ids:
        raise BagError("there is no bag to take the mean of — give at least one")
    counts, means = [], []
    for bag_id in ids:
        bag = read(bag_id)
        features, kept = np.asarray(bag.features), tiles.kept(bag_id, bag)
        features = features if kept is None else features[kept]
        if len(features) == 0:
            raise BagError(f"{bag_id}: no tile is left by {tiles} — leave the slide out")
        counts.append(len(features))
        means.append(features.mean(axis=0, dtype=np.float64))
        if not np.isfinite(means[-1]).all():
            raise BagError(f"{bag_id}: features are not finite — make its bag again")
        looked()
    return BagMeans(tuple(ids), np.array(counts, np.int64), np.stack(means))
