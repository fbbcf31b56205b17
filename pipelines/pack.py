"""`wsi bags pack`: all bags in a few flat files, which training maps into memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipelines.console import Console, counted
from wsi.bags import BagStore, PackedCohort, open_store
from wsi.bags.packing import is_current, pack, packable, packed_bytes, packed_folder
from wsi.cohorts import match_ids, read_ids
from wsi.errors import BagError, BagMissingError
from wsi.findings import few


@dataclass(frozen=True)
class Options:
    """What the command line decides."""

    folder: Path
    out: Path | None = None
    ids: Path | None = None
    dry_run: bool = False


def pack_bags(options: Options, console: Console) -> int:
    """Pack the bags of a folder, unless a packed cohort of just these is there."""
    store = open_store(options.folder)
    out = options.out or packed_folder(store)
    whole = options.ids is None
    infos = packable(store, _chosen(store, options.ids))
    n, size = sum(info.n for info in infos), packed_bytes(infos)
    what = f"{counted(len(infos), 'bag')}, {counted(n, 'tile')}, {size / 1e9:.3g} GB"
    result = {"path": str(out), "bags": len(infos), "tiles": n, "bytes": size}
    if is_current(out, infos, whole=whole):
        console.say(f"{out} is up to date: {what}")
    elif options.dry_run:
        console.say(f"would pack to {out}: {what}")
    else:
        with console.progress("packing", len(infos)) as track:
            for slide_id in pack(store, out, infos, whole=whole):
                track.advance(1, slide_id)
        console.say(f"packed to {out}: {what}")
    console.result(result)
    return 0


def _chosen(store: BagStore, table: Path | None) -> Collection[str] | None:
    """Return the ids of the bags that a table names; None without one.

    Raises:
        BagMissingError: a slide of the table has no bag.
    """
    if table is None:
        return None
    named = read_ids(table)
    matched = match_ids(named, [info.slide_id for info in store.infos()])
    missing = [row.slide_id for row in named.rows if row.slide_id not in matched]
    if missing:
        raise BagMissingError(
            f"{len(missing)} slides of {table} have no bag in {store.root}: {few(missing)} — run "
            "`wsi preprocess` for them, or leave them out"
        )
    return set(matched.values())


def usable_packed(store: BagStore, bag_ids: Collection[str], console: Console) -> Path | None:
    """Return the packed cohort beside the bags when it holds for `bag_ids`, every byte checked.

    One that does not hold is said, with the reason, and passed over: the bags are the truth.
    """
    folder = packed_folder(store)
    try:
        packed = PackedCohort(folder)
        packed.check(store.infos())
        absent = [bag_id for bag_id in bag_ids if bag_id not in packed.entries]
        damaged = [] if absent else list(packed.damaged(bag_ids))
    except BagMissingError:
        return None
    except BagError as error:
        console.warn(f"reading single bags: {error}")
        return None
    if absent or damaged:
        how = "lacks bags" if absent else "has damaged rows of bags"
        console.warn(
            f"reading single bags: {folder} {how} {few(absent or damaged)} — run `wsi bags pack`"
        )
        return None
    console.say(f"reading bags from {folder}, which agrees with their sidecars")
    return folder
