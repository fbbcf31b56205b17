"""`wsi bags`: list and convert bags."""

from __future__ import annotations

from pathlib import Path

from pipelines.console import Console
from pipelines.tilecounts import fates, left_out_words
from wsi.bags import convert, open_store


def list_bags(folder: Path, console: Console) -> int:
    """Print one row per bag."""
    store = open_store(folder)
    rows = []
    for info in store.infos():
        tiling = info.provenance.tiling["settings"]
        rows.append(
            {
                "slide_id": info.slide_id,
                "status": info.status,
                "tiles": info.n,
                "dim": info.dim,
                "dtype": info.dtype,
                "encoder": info.provenance.encoder.get("name", ""),
                "mpp": tiling.get("mpp", ""),
                "tile_px": tiling.get("tile_px", ""),
                "left_out": ", ".join(left_out_words(fates(info))),
                "reason": info.reason or "",
            }
        )
    if rows:
        console.table(list(rows[0]), (list(row.values()) for row in rows), str(store.root))
    console.result(rows)
    done = sum(row["status"] == "done" for row in rows)
    tiles = sum(row["tiles"] for row in rows)
    console.say(f"{done} bags, {tiles} tiles, {len(rows) - done} empty slides in {store.root}")
    return 0


def convert_bags(folder: Path, to: str, out: Path, console: Console) -> int:
    """Write all bags of `folder` to `out` in another format; what is there already is kept."""
    source = open_store(folder)
    n = 0
    with console.progress("bags", len(source.infos())) as track:
        for slide_id in convert(source, out, to):
            n += 1
            track.advance(1, slide_id)
    console.say(f"{n} bags in {out}")
    console.result({"bags": n, "path": str(out), "format": to})
    return 0
