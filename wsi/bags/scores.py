"""Scores of tiles stored beside their features, and which tiles they leave over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi.errors import BagError

if TYPE_CHECKING:
    from wsi.specs import DataSpec

SCORES = ("blur", "pen", "fold")
"""Names of the scores and of their datasets in a bag file, see `wsi.quality`."""

Scores = Mapping[str, NDArray[np.float16]]
Kept = NDArray[np.bool_]


@dataclass(frozen=True)
class TileFilter:
    """Which tiles of a bag are used.

    Args:
        min_tissue: tiles with a smaller tissue fraction are left out.
        limits: by score, the largest value a tile may have.
    """

    min_tissue: float = 0.0
    limits: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, data: DataSpec) -> TileFilter:
        """Return the filter of a run's settings."""
        return cls(data.min_tissue, data.limits)

    def __bool__(self) -> bool:
        return self.min_tissue > 0 or bool(self.limits)

    def __str__(self) -> str:
        least = [f"data.min_tissue={self.min_tissue:g}"] if self.min_tissue > 0 else []
        return " ".join(least + [f"data.max_{k}={v:g}" for k, v in self.limits.items()])

    def left_out(self, slide_id: str, bag: Any) -> dict[str, Kept]:
        """Return the tiles (N,) of a bag left out by each reason, every tile under its first.

        Args:
            slide_id: for messages.
            bag: has `tissue` (N,) or None and `quality` (by score (N,), or None).

        Raises:
            BagError: tissue fractions or scores are needed and the bag has none.
        """
        found = {}
        if self.min_tissue > 0:
            if bag.tissue is None:
                raise BagError(f"{slide_id}: no tissue fractions — set data.min_tissue=0")
            found["tissue"] = np.asarray(bag.tissue) < self.min_tissue
        if self.limits and bag.quality is None:
            raise BagError(
                f"{slide_id}: its bag has no scores of tiles, which {self} needs — make the bags "
                "again with `wsi preprocess --redo`, or leave the setting out"
            )
        return found | beyond(bag.quality or {}, self.limits, *found.values())

    def kept(self, slide_id: str, bag: Any) -> Kept | None:
        """Return the tiles (N,) of a bag that stay, None for all; see `left_out`."""
        if not self:
            return None
        return ~np.any([*self.left_out(slide_id, bag).values()], axis=0)


ALL_TILES = TileFilter()


def beyond(scores: Scores, limits: Mapping[str, float], *earlier: Kept) -> dict[str, Kept]:
    """Return the tiles (N,) above the limit of each score, every tile under its first reason.

    Args:
        scores: by name, (N,).
        limits: by name, the largest value a tile may have.
        earlier: tiles (N,) that count under another reason already.
    """
    found: dict[str, Kept] = {}
    for name, limit in limits.items():
        over = np.asarray(scores[name]) > np.float16(limit)
        for taken in (*earlier, *found.values()):
            over &= ~taken
        found[name] = over
    return found


def check_scores(subject: str, scores: Mapping[str, np.ndarray], n: int) -> None:
    """Raise BagError unless `scores` are the known ones, float16 (n,) each, all in [0, 1]."""
    if tuple(scores) != SCORES:
        raise BagError(f"{subject}: scores {', '.join(scores)} — give {', '.join(SCORES)}")
    for name, values in scores.items():
        if (values.shape, values.dtype.name) != ((n,), "float16"):
            raise BagError(
                f"{subject}: {name} is {values.shape} {values.dtype} — expected ({n},) float16"
            )
        bad = int(np.count_nonzero(~((values >= 0) & (values <= 1))))
        if bad:
            raise BagError(f"{subject}: {bad} {name} scores lie outside [0, 1]")
