"""A slide's tiles made ready for an encoder: read, scored, thinned out, colours normalised."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsi.bags import DROPPED, beyond
from wsi.errors import BadTilesError
from wsi.pixels import PixelSteps
from wsi.quality import FoldRule, tile_scores
from wsi.slides import Slide
from wsi.tile_batches import BadTile, TileBatch, tile_batches
from wsi.tiling import TileGrid

Tiles = NDArray[np.uint8]
Place = Callable[[tuple[int, int, int, int]], Tiles]
"""Gives uint8 memory of a shape for tiles to be put into."""


@dataclass(frozen=True)
class Prepared:
    """Consecutive tiles of a grid, those that an encoder gets and what became of the others.

    Attributes:
        rows: rows of the grid that go to the encoder, (k,).
        scores: `blur`, `pen` and `fold` of each, (k,).
        left_out: how many others were left out, by reason.
        bad: those that could not be decoded.
        tiles: uint8 (k, h, w, 3); None where they travel apart.
    """

    rows: NDArray[np.int64]
    scores: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[BadTile, ...] = ()
    tiles: Tiles | None = None

    @property
    def size(self) -> int:
        """Return the number of tiles dealt with, of any kind."""
        return len(self.rows) + sum(self.left_out.values())


@dataclass
class Preparation:
    """Makes the tiles of one slide ready.

    Attributes:
        limits: the largest score a tile may have, by name of the score.
        rule: how folds look on this slide.
        steps: what happens to its pixels.
        batch: tiles decoded at a time.
        max_bad: how many tiles may fail to decode.
        place: gives the memory that tiles are put into; ordinary memory when None.
        spent: seconds by kind of work.
    """

    slide: Slide
    grid: TileGrid
    limits: Mapping[str, float]
    rule: FoldRule
    steps: PixelSteps
    batch: int
    max_bad: int = 0
    place: Place | None = None
    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def parts(self, rows: NDArray[np.integer] | None = None, held: int = 0) -> Iterator[Prepared]:
        """Yield the tiles of the grid in its order.

        Args:
            rows: which of them, in order; all when None.
            held: how many more tiles of the slide are there already.

        Raises:
            BadTilesError: too many tiles cannot be decoded, or all that hold data.
        """
        decoded, bad = held, []
        for read in tile_batches(self.slide, self.grid, self.batch, self.max_bad, rows):
            decoded += len(read.tiles)
            bad += read.bad
            yield self._prepared(read)
        if bad and not decoded:
            raise BadTilesError(
                f"{self.slide.info.path.name}: none of its {len(bad)} tiles with data can be "
                f"decoded, {bad[0].reason} — copy the slide again from its source",
                0,
            )

    def _prepared(self, read: TileBatch) -> Prepared:
        left_out: Counter[str] = Counter()
        if read.missing:
            left_out["missing"] = read.missing
        if read.bad:
            left_out["bad"] = len(read.bad)
        rows = np.asarray(read.rows, np.int64)
        if not len(rows):
            return Prepared(rows, left_out=left_out, bad=tuple(read.bad))
        memory = self._memory(read)
        before = time.perf_counter()
        tiles = self.steps.to_srgb(np.stack(read.tiles, out=memory))
        converted = time.perf_counter()
        scores = tile_scores(tiles, self.grid.mpp, self.rule)
        kept = np.ones(len(rows), bool)
        for name, over in beyond(scores, self.limits).items():
            if over.any():
                left_out[DROPPED + name] += int(over.sum())
            kept &= ~over
        scored = time.perf_counter()
        if not kept.all():
            tiles = tiles[kept]
        tiles = _in(memory, self.steps.normalise(tiles)) if len(tiles) else tiles
        self.spent["colour"] += converted - before + time.perf_counter() - scored
        self.spent["score"] += scored - converted
        some = {name: values[kept] for name, values in scores.items()}
        return Prepared(rows[kept], some, left_out, tuple(read.bad), tiles)

    def _memory(self, read: TileBatch) -> Tiles | None:
        if self.place is None:
            return None
        before = time.perf_counter()
        memory = self.place((len(read.tiles), *read.tiles[0].shape))
        self.spent["wait"] += time.perf_counter() - before
        return memory


def _in(memory: Tiles | None, tiles: Tiles) -> Tiles:
    """Return `tiles` as they lie at the start of `memory`, where there is any."""
    if memory is None or np.shares_memory(memory, tiles):
        return tiles
    memory[: len(tiles)] = tiles
    return memory[: len(tiles)]
