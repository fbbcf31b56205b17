"""Rows of an earlier bag of a slide that hold for a new one: its mask changed, not its tiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.bags.bag import Bag, Provenance
from wsi.bags.base import BagStore
from wsi.bags.scores import SCORES, Scores
from wsi.bags.writer import BagWriter
from wsi.errors import BagError

Rows = NDArray[np.integer]


@dataclass(frozen=True)
class Earlier:
    """What an earlier bag gives to a new one.

    Attributes:
        row: (N,) row of the earlier bag for each tile of the new one, -1 where it has none.
        bag: the earlier bag, or None when nothing of it holds.
        max_rel_error: bound of the rounding error of its features, as its sidecar states it.
    """

    row: NDArray[np.int64]
    bag: Bag | None = None
    max_rel_error: float | None = None

    @property
    def fresh(self) -> Rows:
        """Return the tiles of the new bag that have to be read."""
        return np.flatnonzero(self.row < 0)

    def held(self, start: int, stop: int) -> Rows:
        """Return the tiles in [start, stop) of the new bag that are there already."""
        return np.flatnonzero(self.row[start:stop] >= 0) + start


def earlier_rows(store: BagStore, slide_id: str, made: Provenance, xy0: Rows) -> Earlier:
    """Return which of the tiles at `xy0` (N, 2) the store holds already, made the same way.

    Only where tissue is may differ: file, resolution, encoder and whatever was done to pixels are
    the same. The earlier bag is checked byte by byte, since a new hash would hide its damage.
    """
    nothing = Earlier(np.full(len(xy0), -1, np.int64))
    try:
        info = store.info(slide_id)
        if info.status == "empty" or _tiles_of(info.provenance) != _tiles_of(made):
            return nothing
        if store.verify(slide_id):
            return nothing
        bag = store.read(slide_id)
    except BagError:
        return nothing  # there is none, or none that can be trusted: all tiles are read
    if bag.quality is None:
        return nothing
    at = {(x, y): row for row, (x, y) in enumerate(bag.xy0.tolist())}
    row = np.asarray([at.get((x, y), -1) for x, y in xy0.tolist()], np.int64)
    return Earlier(row, bag, info.max_rel_error)


def held_rows(store: BagStore, slide_id: str, row: NDArray[np.int64]) -> Earlier:
    """Return the earlier bag of a slide with the rows of it that `earlier_rows` found to hold."""
    if not (row >= 0).any():
        return Earlier(row)
    return Earlier(row, store.read(slide_id), store.info(slide_id).max_rel_error)


def _tiles_of(made: Provenance) -> dict[str, Any]:
    """Return all that a tile's features and scores depend on, beside its place."""
    content = made.to_json()
    del content["tissue"]
    slide = {name: made.slide.get(name) for name in ("fingerprint", "mpp")}
    encoder = made.encoder["fingerprint"]
    return content | {"slide": slide, "tiling": made.tiling["settings"], "encoder": encoder}


@dataclass
class Interleaved:
    """Writes fresh rows in the order of the grid, with the earlier bag's rows in between.

    Attributes:
        xy0, tissue: of all tiles of the grid, (N, 2) and (N,).
    """

    writer: BagWriter
    earlier: Earlier
    xy0: Rows
    tissue: NDArray[np.floating]
    _next: int = field(default=0, init=False)

    def append(self, rows: Rows, features: NDArray[np.float32], scores: Scores) -> None:
        """Add fresh rows, later ones than before, after the earlier bag's that precede them."""
        stop = int(rows[-1]) + 1
        held = self.earlier.held(self._next, stop)
        self._next = stop
        if len(held):
            old, old_scores = self._stored(held)
            rows = np.concatenate([held, rows])
            order = np.argsort(rows)
            # Stored features widen and narrow again without a change.
            features = np.concatenate([old.astype(np.float32), features])[order]
            both = {k: np.concatenate([old_scores[k], np.float16(scores[k])]) for k in SCORES}
            rows, scores = rows[order], {k: values[order] for k, values in both.items()}
        self.writer.append(features, self.xy0[rows], self.tissue[rows], scores)

    def finish(self) -> int:
        """Add what is left of the earlier bag, and return how many of its rows were used."""
        held = self.earlier.held(self._next, len(self.xy0))
        if len(held):
            features, scores = self._stored(held)
            self.writer.append(features, self.xy0[held], self.tissue[held], scores)
        reused = len(self.xy0) - len(self.earlier.fresh)
        if reused:
            self.writer.counts["reused"] = reused
            self.writer.rounded_before(self.earlier.max_rel_error)
        return reused

    def _stored(self, tiles: Rows) -> tuple[NDArray[np.floating], Scores]:
        bag = self.earlier.bag
        if bag is None or bag.quality is None:
            raise BagError("no earlier bag holds these tiles — read them")
        rows = self.earlier.row[tiles]
        return bag.features[rows], {name: values[rows] for name, values in bag.quality.items()}
