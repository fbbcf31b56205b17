"""Which tiles of its bags a run uses: counted before training, recorded with the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.console import Console
from pipelines.tilecounts import dropped_words
from wsi.bags import BagStore, TileFilter
from wsi.bags.foreign import NOT_RECORDED
from wsi.errors import BagError
from wsi.findings import few


@dataclass(frozen=True)
class TileUse:
    """What a filter does to the bags of a run.

    Attributes:
        used: tiles that stay.
        left_out: tiles by the setting that leaves them out.
        without: why slides that keep no tile cannot be used, by slide id.
    """

    used: int
    left_out: Mapping[str, int]
    without: Mapping[str, str]

    def line(self) -> str:
        """Return it for people."""
        parts = [f"{self.used:,} used", *dropped_words(self.left_out, "left out")]
        return f"tiles: {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Return what the run records; slides without tiles are recorded as not evaluable."""
        return {"used": self.used, "left_out": dict(self.left_out)}


def tile_use(
    store: BagStore, bag_ids: Mapping[str, str], tiles: TileFilter, console: Console
) -> TileUse | None:
    """Return what `tiles` leaves of the bags; None when it leaves all, which needs no reading.

    Args:
        bag_ids: slide id to id of its bag.

    Raises:
        BagError: a bag lacks what the filter needs.
    """
    if not tiles:
        return None
    if tiles.min_tissue > 0:
        _refuse_unrecorded(store, bag_ids)
    used, left_out, without = 0, Counter[str](), {}
    with console.progress("counting tiles", len(bag_ids)) as track:
        for slide_id, bag_id in bag_ids.items():
            bag = store.read(bag_id)
            counts = {k: int(out.sum()) for k, out in tiles.left_out(slide_id, bag).items()}
            left_out.update(counts)
            kept = len(bag) - sum(counts.values())
            used += kept
            if not kept:
                without[slide_id] = f"no tile left by {tiles}"
            track.advance()
    return TileUse(used, left_out, without)


def _refuse_unrecorded(store: BagStore, bag_ids: Mapping[str, str]) -> None:
    # They are stored as 1, by which a limit would seem to hold.
    without = [
        slide_id
        for slide_id, bag_id in bag_ids.items()
        if store.info(bag_id).provenance.tissue.get("fractions") == NOT_RECORDED
    ]
    if without:
        raise BagError(
            f"{few(without)}: imported bags have no tissue fractions — set data.min_tissue=0"
        )
